"""SIGTERM in the first moments of a container: process 1 loses what it has no handler for, and imports take a second.

Each command runs as process 1 of a PID namespace, as the manifests start it; the slot and the engine, which the
supervisor starts, and `serinette up`, for which there is no image, behind the images' entry point.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.metadata import files
from pathlib import Path

import psutil
import pytest
import yaml

from scripts.chart_tools import ROOT
from tests.pod import Pod, pod
from tests.processes import eventually
from tests.servers import free_ports

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc")
# From the interpreter's own start over its imports to a process at work.
DELAYS_S = (0.02, 0.1, 0.3, 0.6, 1.2, 2.5)
# Of a busy machine; a process that ignores the signal stays for ever.
LEFT_WITHIN_S = 45
COMMANDS = ("gateway", "controller", "worker", "slot", "engine", "up")


def may_unshare() -> bool:
    with suppress(OSError):
        return subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0
    return False


def entry_point(dockerfile: str) -> list[str]:
    found = re.findall(r"^ENTRYPOINT (.+)$", (ROOT / dockerfile).read_text(), re.MULTILINE)
    return list(json.loads(found[-1])) if found else []


def command(name: str) -> list[str]:
    """What the container's first process is started as."""
    modules = {"slot": ["gpu_worker.slot"], "engine": ["tests.engines"], "up": ["serinette.cli", "up"]}
    if name in modules:
        return [*entry_point("gpu_worker/Dockerfile"), "python", "-m", *modules[name]]
    for manifest in yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text()):
        if manifest["kind"] == "Deployment":
            return list(manifest["spec"]["template"]["spec"]["containers"][0]["command"])
    raise AssertionError(f"k8s/{name}.yaml has no Deployment")


def installed(words: Sequence[str]) -> list[str]:
    """The command with this environment's programs: its packages may be installed elsewhere."""
    inits = [str(file.locate()) for file in files("dumb-init") or () if file.name == "dumb-init"]
    places = {"python": sys.executable, "dumb-init": inits[0]}
    return [places.get(word, word) for word in words]


def first_process(outer: psutil.Process) -> psutil.Process:
    """Process 1 of the namespace, once it is the command and not `unshare` any more."""

    def found() -> list[psutil.Process]:
        with suppress(psutil.Error):
            return [child for child in outer.children() if child.cmdline()[:1] not in ([], ["unshare"])]
        return []

    assert eventually(found, 60)
    return found()[0]


def left(words: Sequence[str], environment: dict[str, str], delay_s: float, log: Path) -> int | None:
    """The exit status after a SIGTERM that comes so long after the start; None: it is still there."""
    with log.open("wb") as file:
        outer = subprocess.Popen([*UNSHARE, "--kill-child", *words], env=environment, stdout=file, stderr=file)
    try:
        first = first_process(psutil.Process(outer.pid))
        time.sleep(delay_s)
        first.send_signal(signal.SIGTERM)
        return outer.wait(LEFT_WITHIN_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        outer.kill()  # and all of the namespace with it
        outer.wait()


@pytest.fixture
def asked(tmp_path: Path, redis_url: str) -> Iterator[Pod]:
    if not may_unshare():
        pytest.skip("needs unshare with a PID namespace of its own (root, or CAP_SYS_ADMIN)")
    with pod(tmp_path, redis_url) as made:
        yield made


@pytest.mark.parametrize("name", COMMANDS)
def test_process_1_leaves_whenever_it_is_asked(asked: Pod, tmp_path: Path, name: str) -> None:
    words = installed(command(name))

    def one(delay_s: float) -> int | None:
        work = tmp_path / f"{delay_s}"
        work.mkdir()
        own = {"SERINETTE_WORK_DIR": str(work), "SERINETTE_PORT": str(free_ports(1)[0]), "PYTHONPATH": str(ROOT)}
        own["SERINETTE_DATA_DIR"] = str(work / "data")
        return left(words, {**asked.environment, **own}, delay_s, work / "log")

    with ThreadPoolExecutor(len(DELAYS_S)) as threads:
        statuses = dict(zip(DELAYS_S, threads.map(one, DELAYS_S), strict=True))
    # Ended by the signal while it started, or in order by its own handler later.
    logs = {delay_s: (tmp_path / f"{delay_s}" / "log").read_text(errors="replace")[-500:] for delay_s in DELAYS_S}
    assert set(statuses.values()) <= {0, 128 + signal.SIGTERM}, (statuses, logs)
    assert all("Traceback" not in text for text in logs.values()), logs
    job_id = asked.submit()
    time.sleep(0.5)  # a slot that was left over would take it at once
    assert asked.lane().get_job_ids() == [job_id]
    assert not [it for it in psutil.process_iter(["environ"]) if _below(it, tmp_path)], "a process is left"


def _below(process: psutil.Process, directory: Path) -> bool:
    own = process.info["environ"] or {}
    return process.pid != os.getpid() and str(own.get("SERINETTE_WORK_DIR", "")).startswith(str(directory))


@pytest.mark.parametrize(
    ("dockerfile", "names"), [("api/Dockerfile", COMMANDS[:2]), ("gpu_worker/Dockerfile", ["worker"])]
)
def test_images_and_manifests_start_one_init(dockerfile: str, names: Sequence[str]) -> None:
    init = entry_point(dockerfile)
    assert init[:1] == ["dumb-init"]
    for name in names:
        assert command(name)[: len(init)] == init
