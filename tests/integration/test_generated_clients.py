"""Clients that generators make of the gateway's description of its API, run against a real stack with a fast engine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.stack import Stack, running

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "tests" / "browser" / "node_modules"
# What this generator does not know, in its own words for it.
PYTHON = {
    "project_name_override": "generated",
    "package_name_override": "generated",
    "content_type_overrides": {
        **dict.fromkeys(
            ("audio/mpeg", "audio/wav", "audio/flac", "audio/ogg", "audio/mp4", "audio/*", "application/zip"),
            "application/octet-stream",
        ),
        "application/jsonl": "application/json",
    },
}
# Node.js wants imports to name files whole.
HEY = """
export default {{
  input: "{document}", plugins: ["@hey-api/client-fetch"], output: {{ path: "hey", module: {{ extension: ".js" }} }},
}};
"""
SESSION = """
import time
from io import BytesIO
from generated import Client
from generated.api.batches import get_batch, submit_batch
from generated.api.jobs import get_job, get_job_audio, submit_job
from generated.api.uploads import upload_audio
from generated.models import BatchRequest, JobRequest
from generated.types import File

with Client(base_url={url!r}, raise_on_unexpected_status=True) as client:

    def ended(body):
        job = submit_job.sync(client=client, body=JobRequest.from_dict(body))
        while job.status not in ("succeeded", "failed", "canceled"):
            job = get_job.sync(job.id, client=client, prefer="wait=20")
        assert job.status == "succeeded", job.error
        return get_job_audio.sync(job.id, client=client).payload.read()

    first = ended({{"prompt": "jazz", "duration_s": 2}})
    upload = upload_audio.sync(client=client, body=File(payload=BytesIO(first), mime_type="audio/mpeg"))
    second = ended({{"prompt": "quartet", "task": "cover", "source_audio": upload.id}})
    specs = [{{"prompt": prompt, "duration_s": 1}} for prompt in ("a", "b")]
    batch = submit_batch.sync(client=client, body=BatchRequest.from_dict({{"specs": specs}}))
    while batch.status != "completed":
        time.sleep(0.1)
        batch = get_batch.sync(batch.id, client=client)
    assert (first[:3], second[:3], batch.request_counts.completed) == (b"ID3", b"ID3", 2)
"""


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("fast"), worker={"SERINETTE_ENGINE_MODULE": "tests.engines"}) as stack:
        yield stack


@pytest.fixture(scope="module")
def document(fast: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Our API's own, as it is served."""
    path = tmp_path_factory.mktemp("document") / "v1.json"
    path.write_bytes(httpx.get(f"{fast.url}/openapi/v1.json").raise_for_status().content)
    return path


def run(directory: Path, *command: str, url: str = "") -> str:
    """A command to its end; what it wrote."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SERINETTE_URL": url,
    }
    ended = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_a_python_client_of_openapi_python_client(fast: Stack, document: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PYTHON))
    options = [f"--path={document}", f"--config={config}", "--meta=none", f"--output-path={tmp_path / 'generated'}"]
    run(tmp_path, sys.executable, "-m", "openapi_python_client", "generate", *options)
    run(tmp_path, sys.executable, "-c", SESSION.format(url=fast.url))


@pytest.fixture(scope="module")
def javascript(document: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with both TypeScript clients and the programs that use them, type-checked and compiled."""
    if shutil.which("node") is None or not (PACKAGES / ".bin" / "openapi-ts").exists():
        pytest.skip("needs node and npm: npm ci --prefix tests/browser")
    directory = tmp_path_factory.mktemp("javascript")
    (directory / "node_modules").symlink_to(PACKAGES)
    (directory / "package.json").write_text('{"type": "module"}')
    shutil.copy(ROOT / "examples" / "typescript" / "song.ts", directory)
    shutil.copy(ROOT / "tests" / "generated" / "hey.ts", directory)
    tools = directory / "node_modules" / ".bin"
    run(directory, str(tools / "openapi-typescript"), str(document), "--output", "schema.d.ts")
    (directory / "openapi-ts.config.mjs").write_text(HEY.format(document=document))
    run(directory, str(tools / "openapi-ts"))
    options = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--types", "node"]
    run(directory, str(tools / "tsc"), *options, "song.ts", "hey.ts")
    return directory


def test_a_typescript_client_of_openapi_typescript(fast: Stack, javascript: Path) -> None:
    """The example, as it stands."""
    assert "a batch of 2 songs" in run(javascript, "node", "song.js", url=fast.url)
    for name in ("song.mp3", "cover.mp3"):
        assert (javascript / name).read_bytes()[:3] == b"ID3"


def test_a_typescript_client_of_hey_api(fast: Stack, javascript: Path) -> None:
    said = json.loads(run(javascript, "node", "hey.js", url=fast.url))
    assert said["completed"] == 2
    assert min(said["first"], said["second"]) > 1_000
