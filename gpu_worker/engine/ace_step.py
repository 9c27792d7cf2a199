"""ACE-Step 1.5 as an Engine: diffusers' pipeline, sung so that a spec and seed give the same bits again."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpu_worker.engine import sampling as samplings
from gpu_worker.engine import tasks
from gpu_worker.engine.adapters import Adapters
from gpu_worker.engine.base import Song, SongRequest, StepObserver
from gpu_worker.engine.loudness import to_loudness
from gpu_worker.engine.memory import Plan
from gpu_worker.engine.mixing import paste, to_peak
from gpu_worker.engine.pipeline import SongPipeline
from gpu_worker.engine.texts import Texts
from gpu_worker.engine.watch import Watch
from serinette.errors import EngineCrashed, EngineOutOfMemory, GenerationError, InvalidOutput, Unsupported
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import GenerationSpec, Task

# torch has an error of its own for CUDA's memory; for the CPU's and cuBLAS's there are only these words.
_FULL = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


@dataclass(frozen=True, slots=True)
class _Part:
    """One request in the pipeline's words."""

    request: SongRequest
    prompt: str
    metadata: dict[str, object]
    window: tasks.Window | None
    source: Tensor | None
    duration_s: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """What is loaded, to the bit, and on what it runs, for people."""

    name: str
    revision: str
    device: str


class AceStepEngine:
    """One loaded pipeline."""

    def __init__(self, pipe: SongPipeline, adapters: Adapters, fits: Plan, identity: Identity) -> None:
        self._pipe = pipe
        self._fits = fits
        self._adapters = adapters
        self._device = identity.device
        self._grid = _grid(pipe, fits.longest_s)
        self._watch: Watch | None = None
        self._model = _describe(pipe, self._grid, identity)
        pipe.mask_padding()
        Texts.remembered_by(pipe.text_encoder)
        for coder in (pipe.vae.encoder, pipe.vae.decoder):
            coder.register_forward_pre_hook(self._look_up)
            # Hooks inside a compiled forward would be traced away.
            for block in [] if hasattr(coder.forward, "_torchdynamo_orig_callable") else coder.block:
                block.register_forward_pre_hook(self._look_up)

    @property
    def model(self) -> Model:
        """What is loaded."""
        return self._model

    @property
    def device(self) -> str:
        """What it runs on."""
        return self._device

    @property
    def audio_s(self) -> float:
        """Seconds of audio that may be sung at once."""
        return self._fits.audio_s

    def sampling(self, spec: GenerationSpec) -> tuple[Sampling, tuple[str, ...]]:
        """The spec's sampling with the checkpoint's defaults filled in; see Engine."""
        if spec.model not in {None, self._model.name}:
            raise Unsupported(f"model: this worker holds {self._model.name!r}, not {spec.model!r}", field="model")
        if spec.lora is not None:
            self._adapters.check(spec.lora)
        if samplings.effective_task(spec) not in self._model.tasks:
            raise Unsupported(
                f"task: the checkpoint {self._model.name!r} has no audio tokenizer, so it cannot cover or use codes",
                field="task",
            )
        return samplings.fill_in(spec, turbo=self._model.turbo)

    def sing(self, batch: Sequence[SongRequest], observe: StepObserver) -> list[Song | None]:
        """Sing; see Engine."""
        self._watch = Watch(observe, len(batch))
        try:
            return self._sing(batch, self._watch)
        except (MemoryError, RuntimeError) as error:
            failure = _explain(error, batch, self._device)
            if failure is None:
                raise
        finally:
            self._watch = None
            self._pipe.maybe_free_model_hooks()
        # Only now, with the traceback gone, are its tensors nobody's.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise failure

    @torch.no_grad()
    def _sing(self, batch: Sequence[SongRequest], watch: Watch) -> list[Song | None]:
        watch.tell(Stage.CONDITIONING)
        self._adapters.use(batch[0].spec.lora, batch[0].spec.lora_scale)
        parts = [self._prepare(request) for request in batch]
        latents = self._denoise(parts, watch)
        songs: list[Song | None] = []
        for place, part in enumerate(parts):
            watch.tell(Stage.DECODING)
            # At its own length: the decoder would hear what lies behind a song's end.
            own = latents[place : place + 1, : self._pipe.frames_of(part.duration_s)]
            songs.append(None if place in watch.given_up else self._finish(part, own))
        return songs

    def _prepare(self, request: SongRequest) -> _Part:
        spec, grid = request.spec, self._grid
        duration_s = tasks.length_s(request, grid)
        window, warnings = tasks.window_of(spec, duration_s)
        metadata = tasks.metadata_of(spec, duration_s)
        instruction = self._pipe._get_task_instruction(
            str(samplings.effective_task(spec)), spec.track, list(spec.tracks or ())
        )
        prompt, cuts = self._pipe.fit(
            spec.prompt, tasks.lyrics_of(spec), tasks.language_of(spec), metadata, instruction
        )
        return _Part(
            request=request,
            prompt=prompt,
            metadata=metadata,
            window=window,
            source=torch.from_numpy(request.source) if samplings.has_source(spec) else None,
            duration_s=duration_s,
            warnings=(*warnings, *cuts),
        )

    def _denoise(self, parts: Sequence[_Part], watch: Watch) -> Tensor:
        requests = [part.request for part in parts]
        spec, reference = requests[0].spec, requests[0].reference
        sampling, _ = self.sampling(spec)

        def on_step(_pipe: object, step: int, _time: float, _tensors: object) -> None:
            watch.tell(Stage.DENOISING, step + 1, sampling.steps)

        # The VAE's sample() draws from the global generator whatever it is given: audio is heard with the song's seed.
        torch.manual_seed(requests[0].seed)
        return self._pipe.sing(
            [part.metadata for part in parts],
            [part.duration_s for part in parts],
            prompt=[part.prompt for part in parts],
            lyrics=[tasks.lyrics_of(request.spec) for request in requests],
            vocal_language=[tasks.language_of(request.spec) for request in requests],
            # On the CPU, so that every device starts from the same noise.
            generator=[torch.Generator().manual_seed(request.seed) for request in requests],
            src_audio=self._whole_frames(parts[0].source),
            reference_audio=None if reference is None else torch.from_numpy(reference),
            callback_on_step_end=on_step,
            **tasks.shared_arguments(spec, sampling),
            **tasks.window_arguments(parts[0].window, self._grid),
        )

    def _whole_frames(self, source: Tensor | None) -> Tensor | None:
        # The encoder drops what does not fill a latent frame; silence fills it up and is cut off again at the end.
        return None if source is None else pad(source, (0, -source.shape[-1] % self._pipe.vae.hop_length))

    def _finish(self, part: _Part, latents: Tensor) -> Song:
        spec, sample_rate = part.request.spec, self._grid.sample_rate
        samples: Tensor = self._pipe.vae.decode(latents.transpose(1, 2)).sample[0].float()
        if samples.numel() == 0 or not bool(torch.isfinite(samples).all()):
            raise InvalidOutput(
                "the model produced samples that are not finite; try another seed, other sampling or float32"
            )
        if spec.task is Task.REPAINT and part.window is not None and part.source is not None:
            samples = paste(part.source.to(samples.device), samples, part.window, sample_rate)
        else:
            samples = to_peak(samples)[:, : round(part.duration_s * sample_rate)]
        warnings = part.warnings
        if spec.loudness_lufs is not None:
            samples, complaint = to_loudness(samples, sample_rate, spec.loudness_lufs)
            warnings += (complaint,) if complaint else ()
        return Song(samples.cpu().contiguous().numpy(), sample_rate, part.request.seed, warnings)

    def _look_up(self, _module: object, _inputs: object) -> None:
        if self._watch is not None:
            self._watch.again()


def _grid(pipe: SongPipeline, longest_s: float) -> tasks.Grid:
    coded = pipe.audio_tokenizer is not None and pipe.audio_token_detokenizer is not None
    return tasks.Grid(
        sample_rate=pipe.sample_rate,
        channels=pipe.vae.config.audio_channels,
        latents_per_s=pipe.latents_per_second,
        latents_per_code=pipe.audio_token_detokenizer.config.pool_window_size if coded else 0,
        code_count=pipe.audio_tokenizer.quantizer.codebook_size if coded else 0,
        max_duration_s=min(
            longest_s, math.floor(pipe.condition_encoder.silence_latent.shape[1] / pipe.latents_per_second)
        ),
    )


def _describe(pipe: SongPipeline, grid: tasks.Grid, identity: Identity) -> Model:
    own = samplings.TURBO if pipe.is_turbo else samplings.BASE
    return Model(
        name=identity.name,
        revision=identity.revision,
        turbo=pipe.is_turbo,
        sample_rate=grid.sample_rate,
        channels=grid.channels,
        default_steps=own.steps,
        default_guidance_scale=own.guidance_scale,
        default_shift=own.shift,
        max_duration_s=grid.max_duration_s,
        tasks=tuple(str(task) for task in Task if grid.code_count or task is not Task.COVER),
    )


def _explain(error: MemoryError | RuntimeError, batch: Sequence[SongRequest], device: str) -> GenerationError | None:
    """What torch's error means for the song; None for one that says nothing of the device."""
    if isinstance(error, torch.AcceleratorError):
        return EngineCrashed(f"{device} failed and is lost to this process: {str(error).partition(chr(10))[0]}")
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _FULL)
    if not full:
        return None
    tried = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return EngineOutOfMemory(
        f"{_size(batch)} does not fit into the memory of {device}"
        f"{f', which had no {tried[1]} left' if tried else ''}: ask for a shorter song; "
        "the operator can set SERINETTE_VAE_TILING, SERINETTE_CPU_OFFLOAD or a smaller SERINETTE_MAX_BATCH"
    )


def _size(batch: Sequence[SongRequest]) -> str:
    first = batch[0]
    song = f"a song of {first.spec.duration_s:g} s"
    if first.source is not None:
        song = f"a song on {first.source.shape[1]} frames of audio"
    return song if len(batch) == 1 else f"{len(batch)} times {song}"
