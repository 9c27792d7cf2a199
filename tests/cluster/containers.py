"""Containers of one release: asked for through its gateway's own pod, and seen as the cluster has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.cluster.release import Release, until

# Requests as [method, path, body], answers as [status, JSON or text].
_ASK = """
import json, sys, httpx
with httpx.Client(base_url="http://127.0.0.1:8019", timeout=60, follow_redirects=True) as gateway:
    answer = [gateway.request(method, path, json=body) for method, path, body in json.loads(sys.argv[1])]
kind = "application/json"
print(json.dumps([[a.status_code, a.json() if a.headers.get("content-type") == kind else a.text] for a in answer]))
"""
_UPLOAD = """
import io, math, struct, wave, httpx
with wave.open(kept := io.BytesIO(), "wb") as file:
    file.setparams((1, 2, 8000, 0, "NONE", ""))
    file.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(n / 5))) for n in range(16000)))
answer = httpx.post("http://127.0.0.1:8019/v1/uploads", files={"file": ("a.wav", kept.getvalue())}, timeout=60)
assert answer.status_code == 201, answer.text
print(answer.json()["id"])
"""
_READ = """
import sys
from serinette.settings import SharedSettings
from serinette.store import Store
sys.stdout.buffer.write(Store.open(SharedSettings()).get(sys.argv[1]))
"""
_SELECTOR = "app.kubernetes.io/component=container"
# The least that a pod of the gateway's own image needs.
SMALL: dict[str, Any] = {"cpu": 0.1, "memory_mib": 128, "disk_mib": 64, "timeout_s": 600}

Job = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Containers:
    """They run the gateway's own image: it is on the nodes, and has a shell and a Python."""

    release: Release

    @property
    def image(self) -> str:
        """The gateway's."""
        (found,) = self.release.get("deploy", f"{self.release.prefix}-gateway")
        return str(found["spec"]["template"]["spec"]["containers"][0]["image"])

    def ask(self, *requests: tuple[str, str, object]) -> list[tuple[int, Any]]:
        """Answers of the gateway: status and JSON, or text."""
        answer = self.release.inside("python", "-c", _ASK, json.dumps(requests), timeout_s=300)
        return [(status, body) for status, body in json.loads(answer)]

    def post(self, script: str, count: int = 1, **spec: Any) -> list[str]:
        """Ask for containers that run a shell's script; their ids."""
        body = {"image": self.image, "command": ["sh", "-c", script], **SMALL, **spec}
        answers = self.ask(*[("POST", "/v1/containers", body)] * count)
        assert {status for status, _ in answers} == {202}, answers
        return [job["id"] for _, job in answers]

    def jobs(self, ids: Sequence[str]) -> list[Job]:
        """As their owner sees them."""
        return [job for _, job in self.ask(*[("GET", f"/v1/jobs/{each}", None) for each in ids])]

    def ended(self, ids: Sequence[str], timeout_s: float = 600) -> list[Job]:
        """Wait until all have ended."""

        def look() -> list[Job] | None:
            found = self.jobs(ids)
            return found if {job["status"] for job in found} <= {"succeeded", "failed", "canceled"} else None

        until(f"the end of {len(ids)} containers", look, timeout_s, pause_s=3)
        return self.jobs(ids)

    def run(self, script: str, **spec: Any) -> Job:
        """Run one to its end."""
        (job,) = self.ended(self.post(script, **spec))
        return job

    def computing(self, job_id: str) -> None:
        """Wait until its command runs."""

        def look() -> bool:
            (job,) = self.jobs([job_id])
            return bool((job["progress"] or {}).get("stage") == "computing")

        until("its command runs", look, 300)

    def cancel(self, job_id: str) -> None:
        """Ask for its end."""
        ((status, _),) = self.ask(("POST", f"/v1/jobs/{job_id}/cancel", None))
        assert status in {200, 202}, status

    def upload(self) -> str:
        """Two seconds of sound; the upload's id."""
        return self.release.inside("python", "-c", _UPLOAD).strip()

    def read(self, key: str) -> str:
        """An object of the store."""
        return self.release.inside("python", "-c", _READ, key)

    def log(self, job: Job) -> str:
        """The whole log of one that has ended."""
        return self.read(job["run"]["log_key"])

    def output(self, job: Job, name: str) -> str:
        """One output, as a client fetches it."""
        ((status, answer),) = self.ask(("GET", f"/v1/jobs/{job['id']}/outputs/{name}", None))
        assert status == 200, answer
        return str(answer)

    def there(self) -> list[str]:
        """Names of all Kubernetes Jobs and pods of containers."""
        return self.release.kubectl("get", "job,pod", "--selector", _SELECTOR, "--output", "name").split()

    def all_gone(self, timeout_s: float = 300) -> None:
        """Wait until the cluster has none of them any more."""
        until("the cluster is rid of all containers", lambda: not self.there(), timeout_s)

    def pods(self, job_id: str) -> list[dict[str, Any]]:
        """Of one job."""
        return self.release.get("pod", "--selector", f"serinette.dev/job={job_id}")

    def made(self) -> set[str]:
        """Names of all pods that Kubernetes Jobs made so far, by the cluster's events, which no poll can miss."""
        selector = "involvedObject.kind=Job,reason=SuccessfulCreate"
        return {str(event["message"]) for event in self.release.get("events", "--field-selector", selector)}

    def kill_controller(self) -> None:
        """At once, whatever it is doing."""
        selector = f"app.kubernetes.io/instance={self.release.name},app.kubernetes.io/component=controller"
        self.release.kubectl("delete", "pod", "--selector", selector, "--grace-period=0", "--force", "--wait=false")
