"""From settings to an engine: where the checkpoint is, whether it is whole, and on what it runs."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import diffusers.utils.logging
import torch
import transformers.utils.logging
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch.nn.utils import remove_weight_norm

from gpu_worker.engine.ace_step import AceStepEngine, Identity
from gpu_worker.engine.adapters import Adapters
from gpu_worker.engine.base import SongRequest
from gpu_worker.engine.checkpoint import bundled_checkpoint
from gpu_worker.engine.conversion import is_original
from gpu_worker.engine.decoding import OVERLAP_FRAMES
from gpu_worker.engine.fetching import fetch
from gpu_worker.engine.footprint import need_of
from gpu_worker.engine.memory import CPU_WINDOWS, Plan, plan
from gpu_worker.engine.pipeline import SongPipeline
from gpu_worker.engine.revision import revision_of
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec

log = logging.getLogger(__name__)

# The narrower first: diffusers lets some pass and raises others again as errors of its own.
_REFUSALS: tuple[tuple[type[Exception], str], ...] = (
    (GatedRepoError, "the hub gives it only to those who accepted its terms; accept them on its page and set HF_TOKEN"),
    (RevisionNotFoundError, "the hub has no such revision of it; name a branch, tag or commit of it after @"),
    (RepositoryNotFoundError, "the hub has no such repository, or shows it to some alone; check its name and HF_TOKEN"),
    (
        RemoteEntryNotFoundError,
        "it has no model_index.json, so it is not in diffusers' layout; ACE-Step's own is made into that by "
        "`serinette convert`, once `hf download` has brought it",
    ),
    (HfHubHTTPError, "the hub answers with an error; try again later"),
)
_NO_HUB = "the hub does not give it, and it is not in the local cache whole; check the network"
_HUB_ID = re.compile(r"(?P<id>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w.-]+))?")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint on this machine's disk. `revision` is the hub's commit; None where the files must tell."""

    directory: Path
    name: str
    revision: str | None = None


def load(settings: WorkerSettings) -> AceStepEngine:
    """Load the checkpoint of `settings`, ready to sing.

    Raises:
        ConfigurationError: there is no such checkpoint or device, or the files are not whole.
        StoreUnavailable: the object store that holds it does not answer.
    """
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ships no types for it
    started = time.monotonic()
    device = device_of(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = locate(settings)
    check(checkpoint.directory)
    dtype = _dtype(settings, device)
    fits = _fits(checkpoint.directory, dtype, settings, device)
    pipe = _pipeline(checkpoint.directory, dtype)
    _place(pipe, fits, settings, device)
    revision = checkpoint.revision or revision_of(checkpoint.directory)
    name = settings.model_name or checkpoint.name
    adapters = Adapters(pipe, settings.loras, partial(adapter_directory, settings), settings.max_loras)
    engine = AceStepEngine(pipe, adapters, fits, Identity(name, revision, _in_words(device)))
    if settings.compile:
        _warm_up(engine, settings.max_batch)
    log.info("loaded %s in %.1f s: %s on %s", name, time.monotonic() - started, checkpoint.directory, device)
    return engine


def device_of(settings: WorkerSettings) -> torch.device:
    """The device that `settings` mean. Raises ConfigurationError for one that is not there."""
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


def locate(settings: WorkerSettings) -> Checkpoint:
    """The checkpoint that `settings.model` names, on this machine's disk: built, found or downloaded."""
    checkpoints = settings.work_dir / "checkpoints"
    url = urlsplit(settings.model)
    directory = Path(unquote(url.path)) if url.scheme == "file" else Path(settings.model).expanduser()
    name = directory.name
    try:
        if settings.model == "bundled":
            return Checkpoint(bundled_checkpoint(checkpoints), "bundled")
        if url.scheme in {"s3", "gs", "az"}:
            return Checkpoint(fetch(settings, settings.model, checkpoints), name)
        if directory.is_dir():
            return Checkpoint(directory, name)
        if hub := _HUB_ID.fullmatch(settings.model):
            return _from_hub(hub["id"], hub["revision"])
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {settings.model}: cannot be fetched: {_first_line(error)}") from error
    raise ConfigurationError(
        f"model {settings.model}: no such directory, and neither `bundled`, a hub id (owner/name) nor a URL "
        "(s3://, gs://, az://, file://)"
    )


def adapter_directory(settings: WorkerSettings, place: str) -> Path:
    """The directory of the adapter at `place`, on this machine's disk.

    Raises:
        ConfigurationError: there is none.
        StoreUnavailable: the object store that holds it does not answer.
    """
    url = urlsplit(place)
    if url.scheme in {"s3", "gs", "az"}:
        return fetch(settings, place, settings.work_dir / "loras")
    directory = Path(unquote(url.path)) if url.scheme == "file" else Path(place).expanduser()
    if not directory.is_dir():
        raise ConfigurationError(f"{place}: no such directory")
    return directory


def _from_hub(model: str, revision: str | None) -> Checkpoint:
    try:
        snapshot = Path(SongPipeline.download(model, revision=revision, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"model {model}: {refusal(error)}") from error
    return Checkpoint(snapshot, model.partition("/")[2], snapshot.name)


def refusal(error: Exception) -> str:
    """What the hub's error, or what it was made of, means for whoever named the model, and what to do."""
    chain: list[BaseException] = [error]
    while cause := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(cause)
    said = next((words for kind, words in _REFUSALS for link in chain if isinstance(link, kind)), _NO_HUB)
    return f"{said} ({_first_line(error)[:300]})"


def check(directory: Path) -> None:
    """Raise ConfigurationError unless `directory` holds an ACE-Step pipeline whose weights are whole."""
    index = directory / "model_index.json"
    if not index.exists() and is_original(directory):
        raise ConfigurationError(
            f"{directory}: is in ACE-Step's own layout; make one that is loaded here of it: "
            f"serinette convert {directory} NEW_DIRECTORY"
        )
    try:
        kind = json.loads(index.read_text()).get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigurationError(f"{index}: cannot be read, so this is no checkpoint in diffusers' layout") from error
    if kind not in {"AceStepPipeline", SongPipeline.__name__}:
        raise ConfigurationError(f"{index}: names a {kind}; an AceStepPipeline is needed")
    for path in sorted(directory.rglob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # compares the header with the file's length
                pass
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(f"{path}: is damaged or cut off ({error}); fetch it again") from error


def _pipeline(directory: Path, dtype: torch.dtype) -> SongPipeline:
    try:
        pipe: SongPipeline = SongPipeline.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{directory}: cannot be loaded: {_first_line(error)}") from error
    pipe.set_progress_bar_config(disable=True)
    # Texts of a batch are filled up behind their ends: a tokenizer's own configuration may say before.
    pipe.tokenizer.padding_side = pipe.tokenizer.truncation_side = "right"
    fold_weight_norm(pipe.vae)
    return pipe


def _fits(directory: Path, dtype: torch.dtype, settings: WorkerSettings, device: torch.device) -> Plan:
    """What fits on the device. A CPU's memory is the system's to part: no bounds."""
    if device.type != "cuda":
        return Plan(False, CPU_WINDOWS, math.inf, math.inf)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    made = plan(need_of(directory, dtype), free_bytes, max_batch=settings.max_batch, offload=settings.cpu_offload)
    log.info("with %.1f GiB free: %s", free_bytes / 1024**3, made)
    return made


def _place(pipe: SongPipeline, fits: Plan, settings: WorkerSettings, device: torch.device) -> None:
    if device.type == "cuda":
        # Otherwise cuDNN may choose another, equally fast sum for the same song.
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
    if fits.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    part_audio(pipe.vae, fits)
    if settings.compile:
        pipe.transformer.requires_grad_(False)  # PEFT would later, and a graph is bound to it
        # Block by block: all blocks of the transformer share their graphs, which whole forwards would not.
        for module in (*pipe.transformer.layers, pipe.vae.decoder):
            module.forward = torch.compile(module.forward, dynamic=True)


def part_audio(vae: Any, fits: Plan) -> None:  # noqa: ANN401  # diffusers ships no types
    """Have audio encoded in pieces as large as those that are decoded. Those come here in pieces already."""
    vae.enable_tiling()
    vae.tile_latent_min_length = fits.windows.frames
    vae.tile_sample_min_length = fits.windows.frames * vae.hop_length
    vae.tile_sample_overlap = OVERLAP_FRAMES * vae.hop_length


def fold_weight_norm(vae: torch.nn.Module) -> None:
    """Weights as their norm and direction give them, once: the stock decoder computes them 37 times a call."""
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)


def _warm_up(engine: AceStepEngine, max_batch: int) -> None:
    """Compile before the first job, which would take minutes and seem to hang.

    Lengths of songs and texts are free in every graph. A song beyond the decoder's tile (20 s) is a graph of its own.
    So are songs in company, each time that a mask comes to it: for texts, for lengths, for both. What is compiled for
    none of these is run eagerly from then on: no job waits for a compiler.
    """
    torch.compiler.set_stance("default")
    text, longer = "a", "a song of another length"
    batches: list[list[tuple[str, float]]] = [[(text, duration_s)] for duration_s in (4.0, 30.0)]
    if max_batch > 1:
        batches += [[(first, 5.0 - shorter_s), (longer, 5.0)] for first in (longer, text) for shorter_s in (0.0, 1.0)]
    for songs in batches:
        specs = [GenerationSpec(prompt=prompt, duration_s=duration_s, steps=2) for prompt, duration_s in songs]
        engine.sing([SongRequest(spec, seed=0) for spec in specs], lambda _stage, _step, _steps: frozenset())
    torch.compiler.set_stance("eager_on_recompile")


def _dtype(settings: WorkerSettings, device: torch.device) -> torch.dtype:
    if settings.dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return dtypes[settings.dtype]


def _in_words(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"cpu, {torch.get_num_threads()} threads"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
