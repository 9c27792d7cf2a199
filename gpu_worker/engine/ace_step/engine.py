"""ACE-Step 1.5 as an Engine: diffusers' pipeline, used so that a spec and seed give the same bits again."""

from __future__ import annotations

import gc
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from gpu_worker.engine.ace_step import sampling as samplings
from gpu_worker.engine.ace_step import tasks
from gpu_worker.engine.ace_step.adapters import Adapters
from gpu_worker.engine.ace_step.conditions import TextCache
from gpu_worker.engine.ace_step.pipeline import SongInput, SongPipeline
from gpu_worker.engine.ace_step.planning import PlannedRequest, SongPlanner
from gpu_worker.engine.interface import BatchProgress, Checkpoint, Song, SongRequest, StepObserver
from gpu_worker.engine.memory.plan import Plan
from gpu_worker.engine.memory.windows import decode
from serinette.errors import EngineCrashed, EngineOutOfMemory, GenerationError, InvalidOutput, Unsupported
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import CODES_PER_S, GenerationSpec, Planned, Task

# torch has an error of its own for CUDA's memory; for the CPU's and cuBLAS's there are only these words.
_FULL = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")


@dataclass(frozen=True, slots=True)
class _Part:
    """One request, and what the pipeline gets for it."""

    request: SongRequest
    planned: PlannedRequest
    song: SongInput
    duration_s: float
    window: tasks.Window | None
    kept: tuple[int, int] | None
    warnings: tuple[str, ...]


class AceStepEngine:
    """One loaded pipeline, and the planner beside it where there is one."""

    def __init__(
        self,
        pipe: SongPipeline,
        adapters: Adapters,
        fits: Plan,
        checkpoint: Checkpoint,
        planner: SongPlanner | None = None,
    ) -> None:
        self._pipe = pipe
        self._windows = fits.windows
        self.songs_together = fits.songs
        self._adapters = adapters
        device = pipe._execution_device
        on_card = f"{device}, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else None
        self.device = on_card or f"cpu, {torch.get_num_threads()} threads"
        self._planner = planner
        self._grid = tasks.grid_of(pipe, fits.longest_s)
        self._progress: BatchProgress | None = None
        self.model = _describe(pipe, self._grid, checkpoint, planner)
        self.load_times: Mapping[str, float] = {}
        pipe.prepare_to_share()
        TextCache.on(pipe.text_encoder)
        hooks = {
            coder: [part.register_forward_pre_hook(self._repeat_progress) for part in (coder, *coder.block)]
            for coder in (pipe.vae.encoder, pipe.vae.decoder)
        }
        self._hooks_of_decoders_blocks = hooks[pipe.vae.decoder][1:]

    def compile(self) -> None:
        """Compile the transformer's blocks and the decoder; the first calls of each kind take minutes from here on."""
        self._pipe.transformer.requires_grad_(False)  # PEFT would later, and a graph is bound to it
        # Within a graph they would be another graph for every batch, as each has a progress of its own.
        for hook in self._hooks_of_decoders_blocks:
            hook.remove()
        # Block by block: all blocks of the transformer share their graphs, which whole forwards would not.
        for module in (*self._pipe.transformer.layers, self._pipe.vae.decoder):
            module.forward = torch.compile(module.forward, dynamic=True)

    def sampling(self, spec: GenerationSpec) -> tuple[Sampling, tuple[str, ...]]:
        """The spec's sampling with the checkpoint's defaults filled in; see Engine."""
        if spec.model not in {None, self.model.name}:
            raise Unsupported(f"model: this worker holds {self.model.name!r}, not {spec.model!r}", field="model")
        if spec.lora is not None:
            self._adapters.check(spec.lora)
        if spec.task.text_alone:
            planner = self._planner_for(spec.task)
            own = samplings.own_of(turbo=self.model.turbo)
            return own, (*samplings.of_the_task(spec), *planner.warnings(spec))
        if samplings.effective_task(spec) not in self.model.tasks:
            raise Unsupported(
                f"task: the checkpoint {self.model.name!r} has no audio tokenizer, so it cannot cover or use codes",
                field="task",
            )
        sampling, warnings = samplings.fill_in(spec, turbo=self.model.turbo, planner=self._planner is not None)
        return sampling, (*warnings, *(self._planner.warnings(spec) if self._planner else ()))

    def _planner_for(self, task: Task) -> SongPlanner:
        """The planner, for text. Raises Unsupported where there is none that can do the task."""
        if self._planner and task in self.model.tasks:
            return self._planner
        set_one = "; the operator can set SERINETTE_PLANNER_MODEL"
        if self._planner is None:
            why = f"{task} needs a planner, which this worker has not{set_one}"
        elif not self._grid.codebook:
            why = f"the checkpoint {self.model.name!r} has no audio tokenizer of {CODES_PER_S} Hz, so it cannot {task}"
        else:
            why = (
                f"{task} needs a planner that knows the {self._grid.codebook} audio codes of the checkpoint, and "
                f"{self._planner.name} knows {self._planner.codebook}{set_one}"
            )
        raise Unsupported(f"task: {why}", field="task")

    def duration_s(self, request: SongRequest) -> float:
        """Seconds that the song will last; see Engine. Text lasts no time, each counts as a second; but where a source
        is described, its codes take memory as those of a song do.
        """
        if request.spec.task in {Task.WRITE, Task.FORMAT}:
            return 1.0
        return tasks.length_s(tasks.continued(request, self._grid)[0], self._grid)

    def generate_all(self, batch: Sequence[SongRequest], observe: StepObserver) -> list[Song | None]:
        """All songs of a batch at once; None in the place of those given up."""
        songs = {place: made for place, made in self.generate(batch, observe) if isinstance(made, Song)}
        return [songs.get(place) for place in range(len(batch))]

    def generate(self, batch: Sequence[SongRequest], observe: StepObserver) -> Iterator[tuple[int, Song | Planned]]:
        """Each song as soon as it is decoded; see Engine."""
        self._progress = BatchProgress(observe, len(batch))
        try:
            yield from self._generate(batch, self._progress)
            return
        except (MemoryError, RuntimeError) as error:
            failure = _explain(error, batch, self.device)
            if failure is None:
                raise
        finally:
            self._progress = None
            self._pipe.maybe_free_model_hooks()
        # Only now, with the traceback gone, are its tensors free.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise failure

    @torch.no_grad()
    def _generate(self, batch: Sequence[SongRequest], progress: BatchProgress) -> Iterator[tuple[int, Song | Planned]]:
        if self._planner and batch[0].spec.task.text_alone:
            yield from self._planner.write(batch, progress, self._codes)
            return
        planned = [PlannedRequest(request) for request in batch]
        if self._planner and batch[0].spec.planned:
            planned = self._planner.plan(batch, [self.duration_s(request) for request in batch], progress)
        progress.report(Stage.CONDITIONING)
        spec = batch[0].spec
        self._adapters.use(spec.lora, spec.lora_scale, progress.repeat)
        sampling, _ = self.sampling(spec)
        parts = [self._prepare(each, sampling) for each in planned]

        def on_step(_pipe: object, step: int, _time: float, _tensors: object) -> None:
            progress.report(Stage.DENOISING, step + 1, sampling.steps)

        latents = self._pipe.generate(
            [part.song for part in parts],
            callback_on_step_end=on_step,
            **tasks.shared_arguments(spec, sampling),
        )

        def wanted(place: int) -> bool:
            progress.report(Stage.DECODING)
            return place not in progress.given_up

        frames = [part.song.frames for part in parts]
        for place, samples in decode(
            lambda given: self._pipe.vae.decode(given).sample, latents, frames, self._windows, wanted
        ):
            song, planned_ = self._finish(parts[place], samples), parts[place].planned
            yield place, replace(song, plan=planned_.plan, audio_codes=planned_.audio_codes)

    def _codes(self, request: SongRequest) -> tuple[int, ...]:
        return self._pipe.codes_of(self._whole_frames(request), request.seed)

    def _prepare(self, planned: PlannedRequest, sampling: Sampling) -> _Part:
        grid = self._grid
        request, kept = tasks.continued(planned.request, grid)
        spec = request.spec
        task = samplings.effective_task(spec)
        duration_s, frames = tasks.length_s(request, grid), tasks.frames_of(request, grid)
        window, warnings = tasks.window_of(spec, duration_s)
        metadata = tasks.metadata_of(spec, duration_s)
        instruction = self._pipe._get_task_instruction(str(task), spec.track, list(spec.tracks or ()))
        prompt, cuts = self._pipe.fit(
            spec.prompt, tasks.lyrics_of(spec), tasks.language_of(spec), metadata, instruction
        )
        song = SongInput(
            prompt=prompt,
            lyrics=tasks.lyrics_of(spec),
            language=tasks.language_of(spec),
            metadata=metadata,
            instruction=instruction,
            frames=frames,
            seed=request.seed,
            source=self._whole_frames(request) if samplings.has_source(spec) else None,
            semantic=task is Task.COVER,
            codes=spec.audio_codes if samplings.has_codes(spec) else None,
            reference=None if request.reference is None else torch.from_numpy(request.reference),
            window=tasks.window_frames(window, frames, grid),
            silent_window=task is Task.REPAINT,
            source_steps=tasks.source_steps(spec, sampling),
            later_instruction=self._pipe._get_task_instruction(str(Task.TEXT2MUSIC)),
        )
        return _Part(request, planned, song, duration_s, window, kept, (*warnings, *cuts))

    def _whole_frames(self, request: SongRequest) -> Tensor:
        # The encoder drops what does not fill a latent frame; silence fills it up and is cut off again at the end.
        if request.source is None:
            raise RuntimeError("a song on a source has none, which length_s refuses")
        return pad(torch.from_numpy(request.source), (0, -request.source.shape[1] % self._grid.hop))

    def _finish(self, part: _Part, samples: Tensor) -> Song:
        request, sample_rate = part.request, self._grid.sample_rate
        if samples.numel() == 0 or not math.isfinite(float(tasks.peak_of(samples))):
            raise InvalidOutput(
                "the model produced samples that are not finite; try another seed, other sampling or float32"
            )
        if request.spec.task is Task.REPAINT and part.window is not None and request.source is not None:
            samples = tasks.paste(torch.from_numpy(request.source), samples, part.window, sample_rate, part.kept)
        else:
            samples = tasks.to_peak(samples[:, : round(part.duration_s * sample_rate)])  # of the audible part
        return Song(samples.contiguous().numpy(), sample_rate, request.seed, part.warnings)

    def _repeat_progress(self, _module: object, _inputs: object) -> None:
        if self._progress is not None:
            self._progress.repeat()


def _describe(pipe: SongPipeline, grid: tasks.Grid, checkpoint: Checkpoint, planner: SongPlanner | None) -> Model:
    own = samplings.own_of(turbo=pipe.is_turbo)
    lacking = set() if grid.code_count else {Task.COVER}
    if planner is None:
        lacking |= {task for task in Task if task.text_alone}
    elif not 0 < grid.codebook == planner.codebook:
        lacking.add(Task.DESCRIBE)
    return Model(
        name=checkpoint.name,
        revision=checkpoint.revision,
        turbo=pipe.is_turbo,
        sample_rate=grid.sample_rate,
        channels=grid.channels,
        default_steps=own.steps,
        default_guidance_scale=own.guidance_scale,
        default_shift=own.shift,
        max_duration_s=grid.max_duration_s,
        tasks=tuple(str(task) for task in Task if task not in lacking),
        planner=planner.name if planner else None,
    )


def _explain(error: MemoryError | RuntimeError, batch: Sequence[SongRequest], device: str) -> GenerationError | None:
    """What torch's error means for the song; None for an error that is not about the device."""
    if isinstance(error, torch.AcceleratorError):
        return EngineCrashed(f"{device} failed and is lost to this process: {str(error).partition(chr(10))[0]}")
    full = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(words in str(error) for words in _FULL)
    if not full:
        return None
    tried = re.search(r"tried to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    return EngineOutOfMemory(
        f"{_size(batch)} does not fit into the memory of {device}"
        f"{f', which had no {tried[1]} left' if tried else ''}: ask for a shorter song; "
        "the operator can set SERINETTE_CPU_OFFLOAD or a smaller SERINETTE_MAX_BATCH"
    )


def _size(batch: Sequence[SongRequest]) -> str:
    first = batch[0]
    song = f"a song of {first.spec.duration_s:g} s"
    if first.source is not None:
        song = f"a song on {first.source.shape[1]} frames of audio"
    return song if len(batch) == 1 else f"{len(batch)} times {song}"
