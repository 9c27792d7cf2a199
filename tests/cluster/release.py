"""One release in one namespace: installed by helm, asked through its gateway's own pod, dumped when a test fails."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.chart_tools import CHART, helm, kubectl
from tests.cluster.target import Target, values_of

CLI = ("python", "-m", "serinette.cli")
SERVER = ("--server", "http://127.0.0.1:8019")
# Everything that a release makes; events and pods' logs are dumped beside.
KINDS = "deploy,sts,rs,pod,svc,pvc,secret,cm,netpol,pdb,ing,job,sa,role,rolebinding"
KEDA_KINDS = "scaledobjects.keda.sh,triggerauthentications.keda.sh,hpa"

COUNT = """
import json, sys
from serinette.settings import SharedSettings, connect_redis
from serinette.names import Keys, Lane
keys, redis = SharedSettings().keys, connect_redis(SharedSettings())
print(json.dumps({"waiting": sum(redis.zcard(keys.waiting("default", lane)) for lane in Lane),
                  "busy": redis.scard(keys.busy("default")), "live": redis.zcard(keys.live)}))
"""
# What a worker does that dies between popping a job and claiming it: the list has lost the job, and no slot holds it.
POP = """
from rq import Queue
from serinette.settings import SharedSettings, connect_redis
from serinette.names import Lane, queue_name
queue = Queue(queue_name("default", Lane.NORMAL), connection=connect_redis(SharedSettings()))
print((queue.connection.lpop(queue.key) or b"").decode())
"""


class CommandFailed(AssertionError):
    """A command of the suite's ended with another status than 0."""


def run(command: Sequence[str | Path], *, timeout_s: float = 120, stdin: str | None = None) -> str:
    """What a command printed."""
    words = [str(part) for part in command]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=timeout_s, input=stdin)
    if done.returncode:
        raise CommandFailed(
            f"{' '.join(words)[:600]} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )
    return done.stdout


def until(what: str, look: Callable[[], Any], timeout_s: float = 300, pause_s: float = 2) -> Any:
    """Poll until the answer is truthy, and return it; the error at the deadline names the last one."""
    deadline_s = time.monotonic() + timeout_s
    while not (seen := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"{what} did not come about within {timeout_s:g} s; last seen: {seen!r}")
        time.sleep(pause_s)
    return seen


@dataclass
class Release:
    """A release called `name` in `namespace`."""

    target: Target
    namespace: str
    name: str = "one"
    songs: list[str] = field(default_factory=list)  # ids of all submitted jobs

    @property
    def prefix(self) -> str:
        """How its objects' names begin."""
        return f"{self.name}-serinette"

    @property
    def worker(self) -> str:
        """Of its one pool."""
        return f"{self.prefix}-worker-default"

    def kubectl(self, *words: str | Path, timeout_s: float = 120, stdin: str | None = None) -> str:
        """A command on its namespace."""
        base: list[str | Path] = [kubectl(), "--context", self.target.context, "--namespace", self.namespace]
        return run([*base, *words], timeout_s=timeout_s, stdin=stdin)

    def get(self, *words: str) -> list[dict[str, Any]]:
        """Objects by kind and options."""
        answer = json.loads(self.kubectl("get", *words, "--output", "json"))
        return list(answer["items"]) if "items" in answer else [answer]

    def upgrade_command(self, values: Path, chart: Path = CHART) -> list[str | Path]:
        """Installs it, or brings it to other values."""
        command: list[str | Path] = [helm(), "--kube-context", self.target.context, "--namespace", self.namespace]
        command += ["upgrade", "--install", self.name, chart]
        for path in self.target.values if chart == CHART else self.target.old_values:
            command += ["--values", path]
        return [*command, "--values", values]

    def install(self, scenario: str = "plain", chart: Path = CHART) -> None:
        """Install or upgrade, and wait for its gateway. Another chart than ours has other parts beside that."""
        with tempfile.TemporaryDirectory() as directory:
            values = Path(directory) / "values.yaml"
            own = values_of(scenario, self.namespace)
            if chart != CHART:
                own.pop("controller")  # 01f4adc has it by another name
            values.write_text(self.target.helm_values(own))
            run(self.upgrade_command(values, chart), timeout_s=300)
        for part in ("gateway", "controller") if chart == CHART else ("gateway",):
            self.kubectl("rollout", "status", f"deploy/{self.prefix}-{part}", "--timeout=600s", timeout_s=620)

    def uninstall(self, timeout_s: float = 300) -> None:
        """As an operator would."""
        base: list[str | Path] = [helm(), "--kube-context", self.target.context, "--namespace", self.namespace]
        run([*base, "uninstall", self.name, "--ignore-not-found"], timeout_s=timeout_s)

    def inside(self, *words: str, timeout_s: float = 120, part: str = "gateway") -> str:
        """A command in the gateway's pod: no ingress, no name beyond the cluster's."""
        return self.kubectl("exec", f"deploy/{self.prefix}-{part}", "--", *words, timeout_s=timeout_s)

    def submit(self, count: int = 1, *, duration_s: int = 5, steps: int | None = None) -> list[str]:
        """Submit songs; their ids."""
        ids = []
        for index in range(count):
            words = ["submit", f"music box, song {index}", "--duration", str(duration_s), "--no-wait"]
            words += ["--steps", str(steps)] if steps else []
            ids.append(self.inside(*CLI, *words, *SERVER).strip().splitlines()[-1])
        self.songs += ids
        return ids

    def jobs(self) -> dict[str, dict[str, Any]]:
        """All its jobs by id."""
        answer = json.loads(self.inside(*CLI, "jobs", "--limit", "100", "--json", *SERVER))
        return {job["id"]: job for job in answer}

    def statuses(self, ids: Sequence[str]) -> list[str]:
        """Of these jobs, in order; `lost` for one that the gateway does not know."""
        jobs = self.jobs()
        return [str(jobs[each]["status"]) if each in jobs else "lost" for each in ids]

    def cancel(self, ids: Sequence[str]) -> None:
        """Ask for their end."""
        for each in ids:
            self.inside(*CLI, "cancel", each, *SERVER)

    def wait_for(self, ids: Sequence[str], timeout_s: float = 600) -> None:
        """Wait until all these are songs; a job that ended otherwise, or is lost, fails at once."""

        def look() -> bool:
            found = self.statuses(ids)
            assert not {"failed", "canceled", "lost"} & set(found), dict(zip(ids, found, strict=True))
            return set(found) <= {"succeeded"}

        until(f"{len(ids)} songs", look, timeout_s, pause_s=3)

    def queue(self) -> dict[str, int]:
        """Jobs waiting, workers busy and jobs unfinished, as Redis has them."""
        answer: dict[str, int] = json.loads(self.inside("python", "-c", COUNT))
        return answer

    def pop_one(self) -> str:
        """Take a waiting job out of RQ's list and drop it; its id."""
        return self.inside("python", "-c", POP).strip()

    def replicas(self) -> int:
        """Workers wanted now."""
        (found,) = self.get("deploy", self.worker)
        return int(found["spec"].get("replicas", 0))

    def most_workers(self) -> int:
        """The highest number it was ever scaled to, by the events of its Deployment, which no poll can miss."""
        selector = f"involvedObject.name={self.worker},reason=ScalingReplicaSet"
        answer = [str(event["message"]) for event in self.get("events", "--field-selector", selector)]
        return max((int(found[1]) for text in answer if (found := re.search(r"\bto (\d+)", text))), default=0)

    def all_workers(self) -> list[dict[str, Any]]:
        """Its workers' pods."""
        return self.get(
            "pod", "--selector", f"app.kubernetes.io/instance={self.name},app.kubernetes.io/component=worker"
        )

    def workers(self, *, leaving: bool = False) -> list[dict[str, Any]]:
        """Its workers' pods that stay; or those that leave."""
        return [pod for pod in self.all_workers() if ("deletionTimestamp" in pod["metadata"]) == leaving]

    def pool(self) -> dict[str, Any]:
        """Its one pool, as `GET /v1/workers` answers it."""
        look = "import httpx; print(httpx.get('http://127.0.0.1:8019/v1/workers').text)"
        found: dict[str, Any] = json.loads(self.inside("python", "-c", look))["pools"][0]
        return found

    def image(self) -> str:
        """Of its gateway."""
        (found,) = self.get("deploy", f"{self.prefix}-gateway")
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    def check_drained(self) -> None:
        """Ask the new version's image whether work in the old layout remains. Raises CommandFailed while it does."""
        with tempfile.TemporaryDirectory() as directory:
            values = Path(directory) / "values.yaml"
            values.write_text(self.target.helm_values(values_of("plain", self.namespace)))
            paths = [part for path in (*self.target.values, values) for part in ("--values", path)]
            rendered = run([helm(), "template", self.name, CHART, "--api-versions", "keda.sh/v1alpha1", *paths])
        image = re.search(r"image: (\S*serinette-gateway\S*)", rendered)
        assert image
        (secret,) = self.get("secret", f"{self.prefix}-valkey")
        password = base64.b64decode(secret["data"]["password"]).decode()
        # A worker's labels: the NetworkPolicy of Valkey admits those.
        labels = f"app.kubernetes.io/name=serinette,app.kubernetes.io/instance={self.name},"
        words = ["run", "check-drained", "--rm", "--attach", "--restart=Never", f"--image={image[1]}"]
        words += [f"--labels={labels}app.kubernetes.io/component=worker", f"--env=SERINETTE_REDIS_PASSWORD={password}"]
        words += [f"--env=SERINETTE_REDIS_URL=redis://{self.prefix}-valkey:6379/0"]
        self.kubectl(*words, "--command", "--", "python", "-m", "controller", "check-drained")

    def keda(self, replicas: int) -> None:
        """Stop KEDA's operator, or start it again."""
        base: list[str | Path] = [kubectl(), "--context", self.target.context]
        base += ["--namespace", self.target.keda_namespace]
        run([*base, "scale", "deploy/keda-operator", f"--replicas={replicas}"])
        run([*base, "rollout", "status", "deploy/keda-operator", "--timeout=300s"], timeout_s=320)

    def left_over(self) -> list[str]:
        """What of it is still there."""
        selector = f"app.kubernetes.io/instance={self.name}"
        words = ["get", f"{KINDS},{KEDA_KINDS}", "--selector", selector, "--output", "name", "--ignore-not-found"]
        return self.kubectl(*words).split()

    def doctor(self, *options: str, **environment: str) -> tuple[bool, list[dict[str, str]]]:
        """Its queue and store as its gateway's pod sees them, under another environment: healthy, findings."""
        words = ["env", *(f"{name}={value}" for name, value in environment.items()), *CLI, "doctor", "--json"]
        shell = " ".join(f"'{word}'" for word in [*words, "--no-cluster", *options])
        answer = json.loads(self.inside("sh", "-c", f"{shell} || true"))
        return bool(answer["healthy"]), list(answer["findings"])

    def dump(self, directory: Path) -> None:
        """Objects, events and logs for an analysis, a file each."""
        directory.mkdir(parents=True, exist_ok=True)
        questions = {
            "objects.yaml": ("get", f"{KINDS},{KEDA_KINDS}", "--output", "yaml"),
            "pods.txt": ("describe", "pods"),
            "events.txt": ("get", "events", "--sort-by", ".lastTimestamp"),
            "nodes.txt": ("describe", "nodes"),
            "keda.txt": ("logs", "--namespace", self.target.keda_namespace, "deploy/keda-operator", "--tail=500"),
        }
        for name, words in questions.items():
            (directory / name).write_text(self._or_error(*words))
        for pod in self._or_error("get", "pods", "--output", "name").split():
            for which in ("", "--previous"):
                words = ("logs", pod, "--all-containers", "--tail=2000", *([which] if which else []))
                name = pod.partition("/")[2] + (".previous" if which else "") + ".log"
                (directory / name).write_text(self._or_error(*words))

    def _or_error(self, *words: str) -> str:
        try:
            return self.kubectl(*words)
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            return f"{error}\n"
