"""The whole OpenAPI document against a real gateway: schemathesis sends what it allows and what it forbids.

No answer is an error of ours, and each has a status, a content type, headers and a shape of the document. The
cases are derived from the document alone, so that every run sends the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from redis import Redis

from serinette.job import JobError
from serinette.settings import SharedSettings
from serinette.store import Store
from tests.gateways import HandSlot, RunningGateway, gateway
from tests.unit.tenants import bearing, key_of

TENANT = "default"
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,allow_header_conformance,ignored_auth"
)
# 501 says that this deployment cannot do it: an answer, and no error.
CONFIG = """
hooks = "bodies.py"

[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "501"]

[parameters]
{parameters}
"""

# It knows no JSON Lines: they are sent as text.
BODIES = """
import schemathesis

schemathesis.serializer.alias("application/jsonl", "text/plain")
"""


def ended_jobs(running: RunningGateway, redis: Redis, store: Store, headers: dict[str, str]) -> list[str]:
    """A job that succeeded, one that failed and one that was canceled: for what is said of a job by its id."""
    with httpx.Client(base_url=running.url, headers=headers) as http:
        generated, failed, canceled = (http.post("/v1/jobs", json={"prompt": "jazz"}).json()["id"] for _ in range(3))
        http.post(f"/v1/jobs/{canceled}/cancel").raise_for_status()
    slot = HandSlot(redis, store)
    for job_id in (generated, failed):
        assert slot.claim(job_id) == 1
    slot.succeed(generated, [b"song" * 1000], TENANT)
    slot.fail(failed, JobError(code="out_of_memory", message="the song does not fit"))
    return [generated, failed, canceled]


def fuzz(directory: Path, running: RunningGateway, job_ids: list[str], *options: str) -> None:
    """Run schemathesis in a process of its own; what it says is the test's failure."""
    named = [f'"path.{name}" = {json.dumps(job_ids)}' for name in ("job_id", "request_id")]
    config = directory / "schemathesis.toml"
    (directory / "bodies.py").write_text(BODIES)
    config.write_text(CONFIG.format(parameters="\n".join(named)))
    command = [
        sys.executable,
        "-m",
        "schemathesis.cli",
        f"--config-file={config}",
        "run",
        f"{running.url}/openapi.json",
    ]
    command += ["--generation-deterministic", "--max-redirects=0", "--request-timeout=60", "--no-color"]
    command += ["--continue-on-failure", f"--checks={CHECKS}", *options]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested: " in done.stdout


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("auth", [True, False])
def test_every_answer_is_as_the_document_says(
    tmp_path: Path, redis_url: str, redis: Redis, file_store_url: str, auth: bool
) -> None:
    store = Store.open(SharedSettings(store_url=file_store_url))
    headers = bearing(key_of(redis, TENANT)) if auth else {}
    sent = [f"--header={name}: {value}" for name, value in headers.items()]
    # What keys change is the same for every case: without them the examples will do.
    phases = "--phases=examples,coverage,fuzzing" if auth else "--phases=examples"
    with gateway(tmp_path, redis_url, file_store_url, auth=auth, max_wait_s=0.05) as running:
        jobs = ended_jobs(running, redis, store, headers)
        fuzz(tmp_path, running, jobs, phases, "--max-examples=4", *sent)
        assert running.process.poll() is None
