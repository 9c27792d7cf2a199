"""The controller and one node of a cluster, in threads of the test's own: what a Kubernetes Job asks for is done.

The steps around the command are controller/containers/steps.py's, over the presigned URLs of the manifest; the command
is a real process, in whose words and environment /inputs and /outputs stand for directories of the test. Images are
not looked at.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from controller.containers import steps as container_steps
from controller.containers.manifest import FETCH, JOB_LABEL, MAIN, UPLOAD
from tests.unit.container_bench import NAMESPACE, ContainerBench, duty, terminated

Object = dict[str, Any]


@dataclass
class Node:
    """Runs the pods of all Kubernetes Jobs."""

    bench: ContainerBench
    directory: Path
    _stop: threading.Event = field(default_factory=threading.Event)
    _seen: set[str] = field(default_factory=set)
    _pods: list[threading.Thread] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        """Rounds of the controller, and a pod for each Job that came, until `stop`."""
        controller = duty(self.bench.settings, self.bench.redis, self.bench.kubeconfig)
        while not self._stop.wait(0.05):
            try:
                controller()
                for job in self.bench.kube.objects("batch/v1", "Job", NAMESPACE):
                    if job["metadata"]["uid"] not in self._seen:
                        self._seen.add(job["metadata"]["uid"])
                        pod = threading.Thread(target=self._pod, args=(job,))
                        self._pods.append(pod)
                        pod.start()
            except Exception as error:  # raised where the test ends
                self.failures.append(error)
                return

    def stop(self) -> None:
        """End all pods."""
        self._stop.set()
        for pod in self._pods:
            pod.join(60)

    def _pod(self, job: Object) -> None:
        try:
            self._lived(job)
        except Exception as error:  # raised where the test ends
            self.failures.append(error)

    def _lived(self, job: Object) -> None:
        root = self.directory / job["metadata"]["uid"]
        spec = job["spec"]["template"]["spec"]
        steps = {each["name"]: each for each in (*spec["initContainers"], *spec["containers"])}
        job_id = job["metadata"]["labels"][JOB_LABEL]
        for name in ("inputs", "outputs"):
            (root / name).mkdir(parents=True)
        try:
            container_steps.fetch(_plan(steps[FETCH]), root / "inputs")
        except httpx.HTTPError:
            self._report(job, "Failed", {"waiting": {}})
            return
        code = self._command(job_id, job, _Command(steps[MAIN], root))
        container_steps.upload(_plan(steps[UPLOAD]), root / "outputs")
        self._report(job, "Failed" if code else "Succeeded", terminated(code))

    def _command(self, job_id: str, job: Object, command: _Command) -> int:
        written = ""
        self.bench.log(job_id, written)
        self._report(job, "Running")
        with command.process() as process:
            ender = threading.Thread(target=self._end_with, args=(job, process))
            ender.start()
            assert process.stdout
            for line in process.stdout:
                at = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "000Z")
                written += f"{at} {line}"
                self.bench.log(job_id, written)
            code = process.wait()
            ender.join()
        return code

    def _report(self, job: Object, phase: str, main: Object | None = None) -> None:
        with suppress(AssertionError):  # its Job is gone
            self.bench.pod(job["metadata"]["labels"][JOB_LABEL], phase, main)

    def _end_with(self, job: Object, process: subprocess.Popen[str]) -> None:
        """A Job that is deleted takes its pod along."""
        while process.poll() is None:
            if self._stop.wait(0.05) or not self._there(job):
                process.terminate()
                process.wait()

    def _there(self, job: Object) -> bool:
        found = self.bench.kube.get("batch/v1", "Job", job["metadata"]["name"], NAMESPACE)
        return found is not None and found["metadata"]["uid"] == job["metadata"]["uid"]


@dataclass(frozen=True)
class _Command:
    main: Object
    root: Path

    def process(self) -> subprocess.Popen[str]:
        words = [self._here(word) for word in (*self.main.get("command", ()), *self.main.get("args", ()))]
        words[0] = {"python": sys.executable}.get(words[0], words[0])
        environment = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
        environment |= {each["name"]: self._here(each.get("value", "a secret")) for each in self.main["env"]}
        return subprocess.Popen(
            words, env=environment, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def _here(self, text: str) -> str:
        for name in ("inputs", "outputs"):
            text = text.replace(f"/{name}", str(self.root / name))
        return text.replace("$$(", "$(")


def _plan(step: Object) -> Any:
    """What a step was given, read as its container gets it."""
    given = {each["name"]: each["value"] for each in step["env"]}
    return json.loads(given["SERINETTE_STEP"].replace("$$(", "$("))


@contextmanager
def node(bench: ContainerBench, directory: Path) -> Iterator[Node]:
    """A cluster at work; nothing went wrong in it that the test did not ask for."""
    running = Node(bench, directory / "node")
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join(60)
        shutil.rmtree(directory / "node", ignore_errors=True)
    assert not running.failures, running.failures
