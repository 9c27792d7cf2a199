"""How to sample: the checkpoint's own defaults where the spec leaves a choice, and words on what has no effect."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from serinette.job import Sampling
from serinette.spec import CODES_PER_S, INSTRUMENTAL, LANGUAGES, GenerationSpec, Task

AUDIO_CODE = re.compile(r"<\|audio_code_(\d+)\|>")

# ACE-Step 1.5's published settings. Turbo: distilled to 8 steps, guidance in the weights. Base and SFT: neither.
TURBO = Sampling(steps=8, guidance_scale=1.0, shift=3.0, turbo=True)
BASE = Sampling(steps=50, guidance_scale=7.0, shift=1.0, turbo=False)

# ACE-Step 1.5's constants (TASK_TYPES_TURBO): what turbo checkpoints were trained for.
TURBO_TASKS = frozenset({Task.TEXT2MUSIC, Task.REPAINT, Task.COVER})

_NAMED, _LONGEST_WORD = 8, 24  # words that one warning names, and characters of each

_USED_BY = {
    "repaint_start_s": frozenset({Task.REPAINT, Task.LEGO}),
    "repaint_end_s": frozenset({Task.REPAINT, Task.LEGO}),
    "track": frozenset({Task.EXTRACT, Task.LEGO}),
    "tracks": frozenset({Task.COMPLETE}),
    "cover_strength": frozenset({Task.COVER}),
    "audio_codes": frozenset({Task.TEXT2MUSIC, Task.COVER}),
    "source_audio": frozenset(Task) - {Task.TEXT2MUSIC, Task.WRITE, Task.FORMAT},
    "prompt": frozenset(Task) - {Task.DESCRIBE},
    "lyrics": frozenset(Task) - {Task.DESCRIBE},
}


def own_of(*, turbo: bool) -> Sampling:
    """A checkpoint's own settings."""
    return TURBO if turbo else BASE


def effective_task(spec: GenerationSpec) -> Task:
    """The task that is generated: text2music with semantic codes is a cover of them."""
    return Task.COVER if spec.task is Task.TEXT2MUSIC and has_codes(spec) else spec.task


def has_codes(spec: GenerationSpec) -> bool:
    """Whether semantic codes, and not the source, say what to generate."""
    return bool(spec.audio_codes and spec.audio_codes.strip()) and spec.task in _USED_BY["audio_codes"]


def has_source(spec: GenerationSpec) -> bool:
    """Whether the song follows its source's audio."""
    return spec.source_audio is not None and spec.task in _USED_BY["source_audio"] and not has_codes(spec)


def fill_in(spec: GenerationSpec, *, turbo: bool, planner: bool = False) -> tuple[Sampling, tuple[str, ...]]:
    """The spec's sampling with the checkpoint's defaults filled in, and a warning for each field without effect."""
    own = own_of(turbo=turbo)
    guidance_scale = own.guidance_scale if spec.guidance_scale is None or turbo else spec.guidance_scale
    steps = len(spec.timesteps) if spec.timesteps else spec.steps or own.steps
    sampling = Sampling(
        steps=steps,
        guidance_scale=guidance_scale,
        shift=own.shift if spec.shift is None else spec.shift,
        turbo=turbo,
    )
    asked = {"thinking": spec.thinking, "rewrite": spec.rewrite}
    unplanned = [name for name, wanted in asked.items() if wanted and not planner]
    return sampling, (
        *_without_effect(spec, sampling),
        *of_the_task(spec),
        *_of_training(spec, turbo=turbo),
        *(f"{name}: ignored, this worker has no planner" for name in unplanned),
    )


def _without_effect(spec: GenerationSpec, sampling: Sampling) -> list[str]:
    warnings = []
    if sampling.turbo and (spec.guidance_scale or 0) > 1:
        warnings.append("guidance_scale: ignored, a turbo checkpoint has guidance in its weights")
    if sampling.guidance_scale <= 1:
        warnings += [
            f"{name}: ignored, there is no guidance to limit" for name in ("cfg_start", "cfg_end") if _asked(spec, name)
        ]
    if spec.timesteps:
        warnings += [f"{name}: ignored, timesteps decide" for name in ("steps", "shift") if _asked(spec, name)]
    return warnings


def of_the_task(spec: GenerationSpec) -> list[str]:
    """A warning for each field that the task does not use."""
    task = effective_task(spec)
    warnings = [
        f"{name}: ignored, task {spec.task} does not use it"
        for name, users in _USED_BY.items()
        if _asked(spec, name) and task not in users
    ]
    if has_codes(spec) and spec.source_audio is not None and spec.task is Task.COVER:
        warnings.append("source_audio: ignored, audio_codes decide what is covered")
    # As many codes as fill the song, the last of them perhaps in part.
    codes = math.ceil(round(spec.duration_s * CODES_PER_S, 6))
    filled = len(AUDIO_CODE.findall(spec.audio_codes or "")) == codes
    if _asked(spec, "duration_s") and (has_source(spec) or (has_codes(spec) and not filled)):
        warnings.append(f"duration_s: ignored, {'audio_codes' if has_codes(spec) else 'the source'} gives the length")
    return warnings


def _of_training(spec: GenerationSpec, *, turbo: bool) -> list[str]:
    warnings, task = [], effective_task(spec)
    if spec.vocal_language.partition("-")[0].lower() not in LANGUAGES:
        warnings.append(f"vocal_language: the model was not trained on {spec.vocal_language}")
    if turbo and task not in TURBO_TASKS:
        warnings.append(f"task: turbo checkpoints were not trained for {task}; a base checkpoint does it better")
    return warnings


def of_the_vocabulary(
    prompt: str, lyrics: str, heard: Iterable[tuple[int, int]], closed: Mapping[str, Any]
) -> list[str]:
    """Warnings on texts for a model of few words; `heard` are the spans of the prompt that its tokens stand for.

    `closed` is the `closed_vocabulary` of the tokenizer's configuration: in words what it `knows`, and the words
    `passed_over`, which say nothing (those that are not ASCII also as a part of a word).
    """
    characters = list(prompt)
    for start, end in heard:
        characters[start:end] = " " * (end - start)
    passed_over = closed["passed_over"]
    inside = "|".join(sorted((word for word in passed_over if not word.isascii()), key=len, reverse=True))
    rest = re.sub(inside, " ", "".join(characters)) if inside else "".join(characters)
    words = [word for word in re.findall(r"\w[\w'’-]*", rest) if word.lower() not in passed_over]
    named = list({word.lower(): word[:_LONGEST_WORD] for word in words}.values())
    warnings = []
    if named:
        more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
        said = ", ".join(f'"{word}"' for word in named[:_NAMED])
        warnings.append(f"prompt: the model does not know {said}{more}; it knows {closed['knows']}")
    if lyrics != INSTRUMENTAL:
        warnings.append("lyrics: ignored, the model has no voice")
    return warnings


def _asked(spec: GenerationSpec, name: str) -> bool:
    """Whether the client asked for something other than the default (the wire leaves defaults out)."""
    return bool(getattr(spec, name) != type(spec).model_fields[name].default)
