"""ACE-Step 1.5 as a family of models: from a checkpoint's directory to an engine that is ready."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers.utils.logging
import torch
import transformers.utils.logging
from torch.nn.utils import remove_weight_norm

from gpu_worker.engine.ace_step.adapters import Adapters
from gpu_worker.engine.ace_step.conversion import is_original
from gpu_worker.engine.ace_step.engine import AceStepEngine
from gpu_worker.engine.ace_step.footprint import need_of
from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.ace_step.planning import SongPlanner
from gpu_worker.engine.ace_step.tasks import grid_of
from gpu_worker.engine.checkpoints.locating import adapter_directory, planner_directory
from gpu_worker.engine.interface import Checkpoint, ModelFamily, SongRequest
from gpu_worker.engine.memory.plan import CPU_WINDOWS, Plan, plan
from gpu_worker.engine.memory.windows import overlap_of
from gpu_worker.planner.loading import check
from gpu_worker.planner.planner import Planner
from gpu_worker.settings import WorkerSettings
from serinette.errors import ConfigurationError
from serinette.spec import GenerationSpec

log = logging.getLogger(__name__)


def load(checkpoint: Checkpoint, device: torch.device, settings: WorkerSettings) -> AceStepEngine:
    """The engine of a checkpoint. Raises ConfigurationError when it cannot be loaded, or does not fit the device."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # ships no types for it
    own = "bfloat16" if device.type == "cuda" else "float32"
    dtype = getattr(torch, own if settings.dtype == "auto" else settings.dtype)
    planner = planner_directory(settings, checkpoint)
    if planner:
        check(planner)  # before minutes go into the song model
    fits = _fits(checkpoint.directory, planner, dtype, settings, device)
    pipe = _pipeline(checkpoint.directory, dtype)
    overlap_frames = overlap_of(pipe.vae.config.downsampling_ratios)
    fits = replace(fits, windows=replace(fits.windows, overlap_frames=overlap_frames))
    settle_kernels(device)
    if fits.offload:
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.to(device)
    part_audio(pipe.vae, fits)
    adapters = Adapters(pipe, settings.loras, partial(adapter_directory, settings), settings.max_loras)
    checkpoint = replace(checkpoint, name=settings.model_name or checkpoint.name)
    beside = _planner(planner, grid_of(pipe, fits.longest_s).codebook, dtype, device) if planner else None
    engine = AceStepEngine(pipe, adapters, fits, checkpoint, beside)
    if settings.compile:
        began_s = time.monotonic()
        engine.compile()
        warm_up(engine, settings.max_batch)
        engine.load_times = {"compile_s": time.monotonic() - began_s}
    return engine


def _pipeline(directory: Path, dtype: torch.dtype) -> SongPipeline:
    try:
        pipe: SongPipeline = SongPipeline.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{directory}: cannot be loaded: {str(error).strip().partition(chr(10))[0]}"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    # Texts of a batch are filled up behind their ends: a tokenizer's own configuration may say before.
    pipe.tokenizer.padding_side = pipe.tokenizer.truncation_side = "right"
    fold_weight_norm(pipe.vae)
    return pipe


def _planner(directory: Path, codebook: int, dtype: torch.dtype, device: torch.device) -> SongPlanner:
    planner = Planner.load(directory, device=device, dtype=dtype, codebook=codebook)
    log.info("planner %s: %s", directory, f"{planner.codebook} codes" if planner.codebook else "metadata alone")
    return SongPlanner(planner, directory.name)


def _fits(
    directory: Path, planner: Path | None, dtype: torch.dtype, settings: WorkerSettings, device: torch.device
) -> Plan:
    """What fits on the device. No bounds on a CPU, whose memory the operating system manages."""
    if device.type != "cuda":
        return Plan(False, CPU_WINDOWS, math.inf)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    made = plan(need_of(directory, dtype, planner), free_bytes, offload=settings.cpu_offload)
    log.info("with %.1f GiB free: %s", free_bytes / 1024**3, made)
    return made


def settle_kernels(device: torch.device) -> None:
    """Otherwise cuDNN may choose another, equally fast sum for the same song."""
    if device.type == "cuda":
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False


def part_audio(vae: Any, fits: Plan) -> None:  # noqa: ANN401  # diffusers ships no types
    """Have audio encoded in pieces as large as those that are decoded. Those come here in pieces already."""
    vae.enable_tiling()
    vae.tile_latent_min_length = fits.windows.frames
    vae.tile_sample_min_length = fits.windows.frames * vae.hop_length
    vae.tile_sample_overlap = fits.windows.overlap_frames * vae.hop_length


def fold_weight_norm(vae: torch.nn.Module) -> None:
    """Weights as their norm and direction give them, once: the stock decoder computes them 37 times a call."""
    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)


def warm_up(engine: AceStepEngine, max_batch: int) -> None:
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
    longest_s = engine.model.max_duration_s  # a small card's is less than what would be asked here
    for songs in batches:
        specs = [
            GenerationSpec(prompt=prompt, duration_s=min(duration_s, longest_s), steps=2)
            for prompt, duration_s in songs
        ]
        engine.generate_all([SongRequest(spec, seed=0) for spec in specs], lambda _stage, _step, _steps: frozenset())
    torch.compiler.set_stance("eager_on_recompile")


def _advice(directory: Path) -> str | None:
    if not is_original(directory):
        return None
    return f"is in ACE-Step's own layout; convert it first: serinette convert {directory} NEW_DIRECTORY"


ACE_STEP = ModelFamily(frozenset({"AceStepPipeline", SongPipeline.__name__}), load, _advice)
