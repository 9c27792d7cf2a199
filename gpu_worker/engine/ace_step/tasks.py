"""A request in the pipeline's words, and back: what each task asks of a song's input, what the source's length allows,
and how the decoder's samples become the song.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpu_worker.engine.ace_step.pipeline import SongPipeline
from gpu_worker.engine.ace_step.sampling import AUDIO_CODE, effective_task, has_codes, has_source
from gpu_worker.engine.interface import SongRequest
from gpu_worker.wire import Samples
from serinette.errors import InvalidAudio, InvalidSpec
from serinette.job import Sampling
from serinette.spec import CODES_PER_S, INSTRUMENTAL, GenerationSpec, Task

# 40 dB beyond full scale: what is louder is no recording, and makes the encoder's numbers infinite.
_LOUDEST = 100.0
# Streaming platforms and EBU R128 ask for 1 dB of room below full scale.
PEAK = 10.0 ** (-1.0 / 20.0)
# Long enough that a cut does not click, shorter than one latent frame (40 ms).
_CROSSFADE_S = 0.02


@dataclass(frozen=True, slots=True)
class Grid:
    """The checkpoint's measures of time and size."""

    sample_rate: int
    channels: int
    latents_per_s: float
    latents_per_code: int
    code_count: int
    max_duration_s: float

    @property
    def hop(self) -> int:
        """Samples of one latent frame."""
        return round(self.sample_rate / self.latents_per_s)

    @property
    def codebook(self) -> int:
        """The codes that a planner may write, which are for five a second."""
        return self.code_count if self.latents_per_code * CODES_PER_S == self.latents_per_s else 0


@dataclass(frozen=True, slots=True)
class Window:
    """The part of the source that is generated anew, in seconds."""

    start_s: float
    end_s: float


def grid_of(pipe: SongPipeline, longest_s: float) -> Grid:
    """The measures of a checkpoint, of which no song may be longer than `longest_s`."""
    coded = pipe.audio_tokenizer is not None and pipe.audio_token_detokenizer is not None
    return Grid(
        sample_rate=pipe.sample_rate,
        channels=pipe.vae.config.audio_channels,
        latents_per_s=pipe.latents_per_second,
        latents_per_code=pipe.audio_token_detokenizer.config.pool_window_size if coded else 0,
        code_count=pipe.audio_tokenizer.quantizer.codebook_size if coded else 0,
        max_duration_s=min(
            longest_s, math.floor(pipe.condition_encoder.silence_latent.shape[1] / pipe.latents_per_second)
        ),
    )


def continued(request: SongRequest, grid: Grid) -> tuple[SongRequest, tuple[int, int] | None]:
    """The request with silence where its window reaches beyond the source, its seconds counted from there; and the
    samples of the result that are the source's. As it is, and None, where the window lies within.

    Raises:
        InvalidAudio: the song would become too long.
    """
    spec, source = request.spec, request.source
    if spec.task is not Task.REPAINT or source is None:
        return request, None
    own, rate = source.shape[1], grid.sample_rate
    start_s = spec.repaint_start_s or 0.0
    end_s = own / rate if spec.repaint_end_s is None else spec.repaint_end_s
    before, after = (max(0, round(beyond_s * rate)) for beyond_s in (-start_s, end_s - own / rate))
    if not before and not after:
        return request, None
    _check_length((before + own + after) / rate, grid)
    # What begins after the source's end begins at it: there is nothing to keep in between.
    window = {
        "repaint_start_s": (before + min(max(round(start_s * rate), -before), own)) / rate,
        "repaint_end_s": (before + round(end_s * rate)) / rate,
    }
    padded = np.pad(source, ((0, 0), (before, after)))
    return replace(request, spec=spec.model_copy(update=window), source=padded), (before, before + own)


def length_s(request: SongRequest, grid: Grid) -> float:
    """How long the song will be.

    Raises:
        InvalidSpec: the codes are not the checkpoint's.
        InvalidAudio: the source has the wrong channels, is too long, or is no sound.
    """
    for role, samples in (("source", request.source), ("reference", request.reference)):
        if samples is not None:
            _check(role, samples, grid)
    duration_s = request.spec.duration_s
    if has_codes(request.spec):
        code_s = grid.latents_per_code / grid.latents_per_s
        coded_s = _code_count(request.spec, grid) * code_s
        if not 0 <= coded_s - duration_s < code_s:  # else the song ends within its last code
            duration_s = coded_s
    elif has_source(request.spec):
        if request.source is None:
            raise InvalidAudio("the source audio did not come with the request")
        duration_s = request.source.shape[1] / grid.sample_rate
    _check_length(duration_s, grid)
    return duration_s


def _check_length(duration_s: float, grid: Grid) -> None:
    if duration_s > grid.max_duration_s:
        raise InvalidAudio(
            f"the song would last {duration_s:.1f} s; at most {grid.max_duration_s:g} s can be generated"
        )


def _check(role: str, samples: Samples, grid: Grid) -> None:
    """What the decoder of uploads lets through and the model would turn into numbers that blame the model."""
    if samples.shape[0] != grid.channels:
        raise InvalidAudio(f"the {role} audio has {samples.shape[0]} channels, the model takes {grid.channels}")
    if samples.shape[1] == 0:
        raise InvalidAudio(f"the {role} audio holds no samples; send another file")
    loudest = float(np.abs(samples).max())
    if not loudest <= _LOUDEST:  # not a number is not less either
        raise InvalidAudio(
            f"the {role} audio holds samples of {loudest:g}, where 1 is full scale and {_LOUDEST:g} is allowed; "
            "write the file anew"
        )


def frames_of(request: SongRequest, grid: Grid) -> int:
    """Latent frames of the song: what its source or its codes have, or its duration needs."""
    if has_codes(request.spec):
        return _code_count(request.spec, grid) * grid.latents_per_code
    if has_source(request.spec) and request.source is not None:
        samples: int = request.source.shape[1]
        return math.ceil(samples / grid.hop)
    return math.ceil(request.spec.duration_s * grid.latents_per_s)


def _code_count(spec: GenerationSpec, grid: Grid) -> int:
    codes = [int(code) for code in AUDIO_CODE.findall(spec.audio_codes or "")]
    if not codes:
        raise InvalidSpec("audio_codes: holds no <|audio_code_N|>", field="audio_codes")
    if max(codes) >= grid.code_count:
        raise InvalidSpec(
            f"audio_codes: {max(codes)} is not one of this checkpoint's codes, 0 to {grid.code_count - 1}",
            field="audio_codes",
        )
    return len(codes)


def window_of(spec: GenerationSpec, duration_s: float) -> tuple[Window | None, tuple[str, ...]]:
    """The window of repaint and lego on a source of `duration_s`, and warnings; None for other tasks.

    Raises:
        InvalidSpec: the window starts where the source has ended.
    """
    if spec.task not in {Task.REPAINT, Task.LEGO}:
        return None, ()
    start_s = spec.repaint_start_s or 0.0
    end_s = duration_s if spec.repaint_end_s is None else spec.repaint_end_s
    if start_s >= duration_s:
        raise InvalidSpec(
            f"repaint_start_s: must be less than the source's length, {duration_s:.2f} s", field="repaint_start_s"
        )
    if end_s > duration_s:
        return Window(start_s, duration_s), (
            f"repaint_end_s: {end_s:g} is past the end of the source; generated to its end at {duration_s:.2f} s",
        )
    return Window(start_s, end_s), ()


def shared_arguments(spec: GenerationSpec, sampling: Sampling) -> dict[str, Any]:
    """What all songs of a batch have in common, in the stock pipeline's words."""
    return {
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "shift": sampling.shift,
        "cfg_interval_start": spec.cfg_start,
        "cfg_interval_end": spec.cfg_end,
        "timesteps": list(spec.timesteps) if spec.timesteps else None,
    }


def source_steps(spec: GenerationSpec, sampling: Sampling) -> int | None:
    """For how many steps a cover follows its source or codes; None: to the end.

    As upstream: `cover_steps = int(num_steps * audio_cover_strength)`, then the conditions of a song of text alone
    (ACE-Step 1.5, generate_audio).
    """
    if effective_task(spec) is not Task.COVER or spec.cover_strength >= 1:
        return None
    return int(sampling.steps * spec.cover_strength)


def window_frames(window: Window | None, frames: int, grid: Grid) -> tuple[int, int] | None:
    """The window in latent frames of a song of so many, widened to whole ones and never empty."""
    if window is None:
        return None
    start = min(math.floor(window.start_s * grid.latents_per_s), frames - 1)
    return start, max(start + 1, min(math.ceil(window.end_s * grid.latents_per_s), frames))


def metadata_of(spec: GenerationSpec, duration_s: float) -> dict[str, object]:
    """What the text says to the model besides the caption, in the spelling it was trained on."""
    signature = spec.time_signature and spec.time_signature.partition("/")[0]
    key = spec.key_scale and re.sub(r" ?(major|minor)$", r" \1", spec.key_scale)
    return {"bpm": spec.bpm, "keyscale": key, "timesignature": signature, "audio_duration": duration_s}


def language_of(spec: GenerationSpec) -> str:
    """The language without region or script: the model knows `ja`, not `ja-JP`."""
    return spec.vocal_language.partition("-")[0].lower()


def lyrics_of(spec: GenerationSpec) -> str:
    """The words, or what stands for none."""
    return spec.lyrics if spec.lyrics.strip() else INSTRUMENTAL


def peak_of(samples: Tensor) -> Tensor:
    """The most that samples are away from zero; not finite if one of them is not. In one pass: the model waits."""
    lowest, highest = samples.aminmax()
    return torch.maximum(-lowest, highest)


def to_peak(samples: Tensor) -> Tensor:
    """Samples with their peak at -1 dBFS, as the stock pipeline gives them."""
    return samples * (PEAK / peak_of(samples).clamp(min=1e-6))


def paste(
    source: Tensor, generated: Tensor, window: Window, sample_rate: int, kept: tuple[int, int] | None = None
) -> Tensor:
    """The source with the window generated anew: sample for sample the source outside it, crossfaded inside its ends.

    Both are [channels, frames]; `generated` may be longer and is at the decoder's own level, which is the source's.
    `kept`: the frames that are the source's own where it was continued. A joint there has nothing to fade from: what
    the two differ by at it is added to what is generated, and fades.
    """
    frames = source.shape[-1]
    first, last = kept or (0, frames)
    start = round(window.start_s * sample_rate)
    end = min(round(window.end_s * sample_rate), frames)
    if end <= start:
        return source.clone()
    generated = generated / generated[:, start:end].abs().max().clamp(min=1.0)
    longest = min(round(_CROSSFADE_S * sample_rate), (end - start) // 2)
    weight = torch.ones(end - start, device=generated.device)
    new = generated[:, start:end].clone()
    fall = 1 - torch.arange(1, longest + 1, device=generated.device) / (longest + 1)
    if start > 0:
        fade = min(longest, last - start)
        weight[:fade] = torch.arange(1, fade + 1, device=generated.device) / (fade + 1)
        if fade == 0:
            new[:, :longest] += (source[:, start - 1] - generated[:, start - 1])[:, None] * fall
    if end < frames:
        fade = min(longest, end - first)
        weight[end - start - fade :] = torch.arange(fade, 0, -1, device=generated.device) / (fade + 1)
        if fade == 0:
            new[:, end - start - longest :] += (source[:, end] - generated[:, end])[:, None] * fall.flip(0)
    mixed = source.clone()
    mixed[:, start:end] = torch.lerp(source[:, start:end], new, weight)
    return mixed
