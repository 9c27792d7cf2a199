"""From settings to an engine: the device, the checkpoint, and the family of models that it belongs to."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from gpu_worker.engine.ace_step.loading import ACE_STEP
from gpu_worker.engine.checkpoints.locating import locate
from gpu_worker.engine.interface import Engine, ModelFamily
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError

log = logging.getLogger(__name__)

# Another family of models: a line here, and a folder beside ace_step/ that makes it (docs/engine.md).
FAMILIES: tuple[ModelFamily, ...] = (ACE_STEP,)


def load(settings: WorkerSettings) -> Engine:
    """Load the checkpoint of `settings`, ready to generate.

    Raises:
        ConfigurationError: there is no such checkpoint or device, or the files are not whole.
        StoreUnavailable: the object store that holds it does not answer.
    """
    started = time.monotonic()
    device = device_of(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    began = time.monotonic()
    checkpoint = locate(settings, family_of)
    weights_s = time.monotonic() - began
    engine = family_of(checkpoint.directory).load(checkpoint, device, settings)
    engine.load_times = {**engine.load_times, "weights_s": weights_s}
    log.info("loaded %s in %.1f s: %s on %s", engine.model.name, time.monotonic() - started, checkpoint, device)
    return engine


def device_of(settings: WorkerSettings) -> torch.device:
    """The device that `settings` mean. Raises ConfigurationError if it does not exist."""
    cuda = torch.cuda.is_available()
    try:
        device = torch.device(("cuda" if cuda else "cpu") if settings.device == "auto" else settings.device)
    except RuntimeError as error:
        raise ConfigurationError(f"device {settings.device}: must be auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise ConfigurationError(f"device {settings.device}: must be auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (not cuda or (device.index or 0) >= torch.cuda.device_count()):
        found = f"{torch.cuda.device_count()} CUDA device(s)" if cuda else "no CUDA device"
        raise ConfigurationError(f"device {settings.device}: torch {torch.__version__} finds {found}; use auto or cpu")
    if settings.cpu_offload and device.type != "cuda":
        raise ConfigurationError("cpu_offload: needs a CUDA device to take the parts from; switch it off on a CPU")
    return device


def family_of(directory: Path) -> ModelFamily:
    """The family of the checkpoint in `directory`.

    Raises:
        ConfigurationError: it belongs to none, or a file of weights is not whole.
    """
    index = directory / "model_index.json"
    if not index.exists():
        for advice in filter(None, (family.advice(directory) for family in FAMILIES)):
            raise ConfigurationError(f"{directory}: {advice}")
    try:
        kind = json.loads(index.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{index}: cannot be read, so this is no checkpoint in diffusers' layout") from error
    family = next((family for family in FAMILIES if kind in family.pipeline_classes), None)
    if family is None:
        known = ", ".join(sorted(name for family in FAMILIES for name in family.pipeline_classes))
        raise ConfigurationError(f"{index}: names a {kind}; what can be loaded is {known}")
    for path in sorted(directory.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(f"{path}: is damaged or cut off ({error}); fetch it again") from error
    return family
