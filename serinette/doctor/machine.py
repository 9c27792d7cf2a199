"""A machine with `serinette up`: what runs in its data directory, its disk, its GPU and the checkpoint."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from pydantic import SecretStr

from serinette.brake import failures
from serinette.checkpoints import CheckpointFiles, noted_files
from serinette.doctor.findings import Finding, answered, bad, first_of, ok, unknown, warning
from serinette.doctor.queue import DoctorSettings
from serinette.local import SOCKET, Run, gateway_detail
from serinette.names import DEFAULT_POOL
from serinette.presence import Presence, WorkerStage, present
from serinette.settings import SharedSettings, connect_redis

# Valkey refuses jobs on a full disk; below the first bound an hour's songs may fill it, below the second a minute's.
_FEW_BYTES, _TOO_FEW_BYTES = 5 * 10**9, 10**9 // 2
_TIMEOUT_S = 20.0
_ERROR = re.compile(r" ERROR [\w.]+: (.+)")


def settings_of(data_dir: Path, settings: DoctorSettings) -> DoctorSettings:
    """The same with queue and store of a data directory, where they are there and the settings name no others."""
    own: dict[str, Any] = {}
    if "store_url" not in settings.model_fields_set:
        own["store_url"] = (data_dir / "store").as_uri()
    if "redis_url" not in settings.model_fields_set and (data_dir / SOCKET).exists():
        own["redis_url"] = SecretStr(f"unix://{quote(str(data_dir / SOCKET))}")
        own |= {"redis_username": None, "redis_password": None}  # those of the environment are another server's
    return settings.model_copy(update=own)


def check_machine(run: Run, data_dir: Path, settings: SharedSettings) -> list[Finding]:
    """Ask everything but queue and store, which `diagnose` asks."""
    logs = f"its log is in {data_dir / 'logs'}"
    return [
        *answered("up", "running", logs, lambda: check_up(run, data_dir, settings)),
        *answered("disk", "free", "see df", lambda: [judge_disk(data_dir, shutil.disk_usage(data_dir).free)]),
        *answered("gpu", "usable", "see nvidia-smi", lambda: [judge_gpu(_look_at_gpus())], _TORCH_TIMEOUT_S),
        *answered("checkpoint", "whole", logs, lambda: [judge_checkpoint(run, data_dir)]),
    ]


def check_up(run: Run, data_dir: Path, settings: SharedSettings) -> Iterator[Finding]:
    """Whether it runs, its gateway is ready, and a worker can generate."""
    if not run.running:
        remedy = "`serinette up` starts it again, with the jobs and songs that are there"
        yield warning("up", "running", f"nothing runs in {data_dir}; the last was {run.holder}", remedy)
        return
    yield ok("up", "running", f"{run.holder}, in {data_dir}")
    if run.url:
        try:
            answer = httpx.get(f"{run.url}/readyz", timeout=_TIMEOUT_S, trust_env=False)
            waits_for = "" if answer.is_success else gateway_detail(answer)
        except httpx.HTTPError as error:
            waits_for = f"does not answer ({error})"
        remedy = f"see {data_dir / 'logs' / 'gateway.log'}"
        yield first_of("up", "gateway", (waits_for, bad, waits_for, remedy), otherwise=f"{run.url} is ready")
    if "redis_url" not in settings.model_fields_set:
        yield unknown("up", "workers", f"its queue is not in {data_dir}", "name it: --redis-url")
        return
    with closing(connect_redis(settings)) as redis:
        workers, failed = present(redis, settings.keys), failures(redis, settings.keys, DEFAULT_POOL)
    yield judge_workers(workers, len(failed), data_dir / "logs")


def judge_workers(workers: Sequence[Presence], failures: int, logs: Path) -> Finding:
    """Whether one of them can generate; else what holds the first. `failures`: loads since the last that passed."""
    ready = [worker for worker in workers if worker.stage is WorkerStage.READY]
    if ready:
        what = {f"{worker.model.name if worker.model else '?'} on {worker.device}" for worker in ready}
        return ok("up", "workers", f"{len(ready)} of {len(workers)} ready: {', '.join(sorted(what))}")
    waits_for = next((worker.message or worker.stage for worker in workers), "starting")
    failed = failures or any(worker.message for worker in workers)
    message = f"none is ready, after {failures} failed starts: {last_error(logs) or waits_for}"
    remedy = f"correct that, or see {logs / 'worker.log'}; it starts again by itself"
    later = f"wait: a large model takes minutes to fetch and to load; its log is {logs / 'worker.log'}"
    holds = (not failed, warning, f"none is ready yet: {waits_for}", later)
    return first_of("up", "workers", holds, (True, bad, message, remedy), otherwise="")


def last_error(logs: Path) -> str:
    """What the workers' logs say last of an error; empty when they say nothing of one."""
    found = ""
    for log in sorted(logs.glob("worker*.log")):
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65_536))
            found = next(reversed(_ERROR.findall(file.read().decode(errors="replace"))), found)
    return found


def judge_disk(data_dir: Path, free_bytes: int) -> Finding:
    """Whether there is room for jobs and songs."""
    message = f"{free_bytes / 1e9:,.1f} GB are free for {data_dir}"
    remedy = "free space, or name another directory (--data-dir); SERINETTE_RETENTION_S is how long songs are kept"
    return first_of(
        "disk",
        "free",
        (free_bytes < _TOO_FEW_BYTES, bad, message, remedy),
        (free_bytes < _FEW_BYTES, warning, message, remedy),
        otherwise=message,
    )


# In a process of its own: torch is no dependency of the doctor, takes seconds to import, and may hang with its driver.
_ASK_TORCH = """
import json, torch
devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
print(json.dumps([torch.version.cuda, [f"{device.name}, {device.total_memory / 2**30:.0f} GiB" for device in devices]]))
"""
_TORCH_TIMEOUT_S = 60.0


class Gpus(NamedTuple):
    """What was found of GPUs. Torch is asked where it is installed and the driver lists one."""

    listed: Sequence[str] = ()  # by the driver: name, version of the driver
    torch: str | None = None  # its version
    cuda: str | None = None  # that it is built with
    usable: Sequence[str] = ()  # by torch
    fault: str = ""  # why the driver lists none, though its program is here


def _look_at_gpus() -> Gpus:
    listed: list[str] = []
    if smi := shutil.which("nvidia-smi"):
        command = [smi, "--query-gpu=name,driver_version", "--format=csv,noheader"]
        seen = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        if seen.returncode != 0:
            return Gpus(fault=(seen.stdout or seen.stderr).strip().partition("\n")[0] or f"status {seen.returncode}")
        listed = seen.stdout.splitlines()
    if find_spec("torch") is None:
        return Gpus(listed)
    if not listed:
        return Gpus(listed, version("torch"))
    command = [sys.executable, "-c", _ASK_TORCH]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_TORCH_TIMEOUT_S)
    return Gpus(listed, version("torch"), *json.loads(asked.stdout))


def judge_gpu(gpus: Gpus) -> Finding:
    """Whether songs are generated on a GPU."""
    torch, listed = f"torch {gpus.torch}", f"; the driver lists {'; '.join(gpus.listed)}" if gpus.listed else ""
    if gpus.fault:
        remedy = "repair or restart the driver (after an update, restart the machine); without a GPU, remove nvidia-smi"
        return warning("gpu", "usable", f"nvidia-smi fails: {gpus.fault}", remedy)
    if gpus.torch is None:
        return ok("gpu", "usable", f"torch is not installed here, so no song is generated here{listed}")
    named = "; ".join(f"cuda:{number} {name}" for number, name in enumerate(gpus.usable))
    no_cuda = "install a torch with CUDA: in a clone, remove .venv and run `make up` without TORCH_INDEX"
    old = f"update the driver to one for CUDA {gpus.cuda}, and look at CUDA_VISIBLE_DEVICES"
    return first_of(
        "gpu",
        "usable",
        (gpus.listed and not gpus.cuda, bad, f"{torch} is built without CUDA{listed}", no_cuda),
        (gpus.listed and not gpus.usable, bad, f"{torch} finds no GPU{listed}", old),
        otherwise=f"{named}; {torch}{listed}" if named else f"none: songs are generated on the CPU, by {torch}",
    )


def judge_checkpoint(run: Run, data_dir: Path) -> Finding:
    """Which it is, how large, and whether it is here and whole."""
    if run.model == "bundled":
        return ok("checkpoint", "whole", "the bundled music box: no general music model, and nothing to download")
    if files := noted_files(data_dir / "work" / "checkpoints", [run.model]):
        return _judge_fetched(files[0])
    directory = Path(run.model).expanduser()
    weights = sorted(directory.rglob("*.safetensors"))
    if not weights and run.model.startswith(("/", ".", "~")):
        return bad("checkpoint", "whole", f"{run.model}: no weights are there", "correct --model (SERINETTE_MODEL)")
    if not weights:
        remedy = "the line of the workers above says why; docs/models.md lists what can be had"
        return unknown("checkpoint", "whole", f"{run.model}: nothing of it is here yet", remedy)
    cut = [str(path) for path in weights if not whole(path)]
    size = f"{run.model}: {sum(path.stat().st_size for path in weights) / 1e9:.1f} GB of weights"
    other = "it is in another layout than diffusers': `serinette convert` makes that of ACE-Step's own"
    return first_of(
        "checkpoint",
        "whole",
        (cut, bad, f"{size}, cut off in {', '.join(cut)}", "fetch those files again"),
        (not (directory / "model_index.json").is_file(), bad, f"{size}, without a model_index.json", other),
        otherwise=f"{size}, whole",
    )


def _judge_fetched(files: CheckpointFiles) -> Finding:
    fetched = files.fetched()
    place = next(each for each in (files.directory, *files.directory.parents) if each.exists())
    lacking_bytes, free_bytes = fetched.size_bytes - fetched.done_bytes, shutil.disk_usage(place).free
    message = f"{files.model}: {fetched}, into {files.directory}"
    return first_of(
        "checkpoint",
        "whole",
        (
            lacking_bytes > free_bytes,
            bad,
            f"{message}; {free_bytes / 1e9:.1f} GB are free there",
            "free space there, or move it: HF_HOME for the hub's, --data-dir for an object store's",
        ),
        (lacking_bytes, warning, message, "wait, or start `serinette up` again: it goes on where it stopped"),
        otherwise=f"{files.model}: {fetched.size_bytes / 1e9:.1f} GB in {files.directory}, whole",
    )


def whole(path: Path) -> bool:
    """Whether a safetensors file is as long as its header says: 8 bytes of the header's length, it, and the tensors
    (https://huggingface.co/docs/safetensors). Its own readers take headers of up to 100 MB.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 100_000_000)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return bool(path.stat().st_size == 8 + length + max(ends, default=0))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error):
        return False
