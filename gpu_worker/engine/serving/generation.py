"""One job inside the engine: its variations, their progress, and the single answer to its slot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gpu_worker.engine.interface import Engine, Song, SongRequest
from gpu_worker.engine.serving.batching import Kind, kind_of
from gpu_worker.wire import Audio, Decoded, Failed, Generated, Message, Report, Samples, Stopped, share_samples
from serinette.job import Sampling, Stage
from serinette.presence import Model
from serinette.spec import GenerationSpec, Planned

# A report that says nothing new is sent this often, to slots whose songs are generated and to those that wait.
_SIGN_OF_LIFE_S = 1.0
_WAITING_S = 5.0

Send = Callable[[Message, list[int]], None]


@dataclass(frozen=True, slots=True)
class _Terms:
    """What the engine said to the spec before it began."""

    model: Model
    sampling: Sampling
    warnings: tuple[str, ...]
    kind: Kind | None


class Generation:
    """A job from its request to its answer. `cancel` may come from any thread, all else from the model's."""

    def __init__(
        self, job_id: str, spec: GenerationSpec, audio: dict[str, Samples], send: Send, *, alone: bool = False
    ) -> None:
        self.job_id = job_id
        self._spec = spec
        self._requests = [
            SongRequest(spec, seed, audio.get("source"), audio.get("reference"), lm_seed)
            for seed, lm_seed in zip(spec.seeds, spec.lm_seeds, strict=True)
        ]
        self._send = send
        self._alone = alone
        self._lock = threading.Lock()
        self._terms: _Terms | None = None
        self._songs: dict[int, Audio] = {}
        self._texts: dict[int, Planned] = {}
        self._warnings: list[str] = []
        self._sample_rate = 0
        planned = spec.planned or spec.task.text_alone
        self._places = [Report(stage=Stage.PLANNING if planned else Stage.CONDITIONING)] * spec.variations
        self._started: float | None = None
        self._batch_size = 1
        self._jobs = 1
        self._last_report: tuple[Report | None, float] = (None, 0.0)
        self.canceled = False
        self.answered = False

    @property
    def kind(self) -> Kind | None:
        """What it must share with the jobs of its batch."""
        return self._terms.kind if self._terms else None

    @property
    def remaining(self) -> list[int]:
        """Variations still to be generated."""
        if self.answered:
            return []
        return [index for index in range(self._spec.variations) if index not in {*self._songs, *self._texts}]

    def request(self, index: int) -> SongRequest:
        """One variation, for the engine."""
        return self._requests[index]

    def cancel(self) -> None:
        """Give the job up: answered at once while it waits, by the model's next step when it is generated."""
        self.canceled = True
        with self._lock:
            if self._started is not None or self.answered:
                return
            self.answered = True
        self._end(Stopped())

    def prepare(self, engine: Engine) -> None:
        """Ask the engine for its terms, once. Raises what `Engine.sampling` and `Engine.duration_s` raise."""
        requests = self._requests  # none when it was canceled meanwhile, which another thread answers
        if self._terms is None and requests:
            sampling, warnings = engine.sampling(self._spec)
            duration_s = engine.duration_s(requests[0])
            kind = None if self._alone else kind_of(self._spec, sampling, duration_s)
            self._terms = _Terms(engine.model, sampling, warnings, kind)

    def begin(self, batch_size: int, jobs: int) -> bool:
        """Some of its variations are about to be generated, in a batch of this size and so many jobs.

        Reports it to the slot before the model does anything; False if the job is given up already.
        """
        with self._lock:
            self._started = self._started or time.monotonic()
            self._batch_size = max(self._batch_size, batch_size)
            self._jobs = jobs
        self._report_place()
        return not self.answered

    def report(self, index: int, stage: Stage, step: int | None, steps: int | None) -> None:
        """Report where one variation is."""
        done = self._steps if stage is Stage.DECODING else step
        self._places[index] = Report(stage=stage, step=done, steps=steps)
        self._report_place()

    def report_waiting(self) -> None:
        """Report that other jobs' songs are being generated: the engine is alive."""
        self._report(Report(stage=Stage.WAITING_FOR_ENGINE), _WAITING_S)

    def hand_over(self, index: int, made: Song | Planned) -> None:
        """Hand one variation's song over, and keep none of its samples, or keep its text; the last one answers the
        job.
        """
        if self.answered:
            return
        if isinstance(made, Song):
            self._hand_over_song(index, made)
        else:
            self._texts[index] = made
        if not self.remaining:
            self._answer_generated()

    def _hand_over_song(self, index: int, song: Song) -> None:
        channels, frames = song.samples.shape
        audio = Audio(
            role="song",
            channels=channels,
            frames=frames,
            seed=song.seed,
            plan=song.plan,
            audio_codes=song.audio_codes,
        )
        descriptor = share_samples(song.samples)
        try:
            self._send(Decoded(index=index, song=audio), [descriptor])
        finally:
            os.close(descriptor)
        self._songs[index], self._sample_rate = audio, song.sample_rate
        self._warnings += song.warnings

    def answer(self, message: Generated | Failed | Stopped) -> None:
        """Send the job's answer, unless it has had one."""
        with self._lock:
            if self.answered:
                return
            self.answered = True
        self._end(message)

    @property
    def _steps(self) -> int:
        return self._terms.sampling.steps if self._terms else 0

    def _report_place(self) -> None:
        report = summarize(self._places, self._steps)
        self._report(report.model_copy(update={"jobs": self._jobs}), _SIGN_OF_LIFE_S)

    def _end(self, message: Message) -> None:
        self._send(message, [])
        # The session keeps its last job, but not the samples of its sources, which are hundreds of megabytes.
        self._requests = []

    def _report(self, report: Report, interval_s: float) -> None:
        last, at = self._last_report
        now = time.monotonic()
        if not self.answered and (report != last or now - at >= interval_s):
            self._last_report = (report, now)
            self._send(report, [])

    def _answer_generated(self) -> None:
        terms = self._terms
        if terms is None or self._started is None:
            raise RuntimeError("a song was handed over of a job that had not begun")
        self.answer(
            Generated(
                songs=tuple(audio for _, audio in sorted(self._songs.items())),
                texts=tuple(text for _, text in sorted(self._texts.items())),
                sample_rate=self._sample_rate,
                sampling=terms.sampling,
                model=terms.model,
                generate_s=time.monotonic() - self._started,
                batch_size=self._batch_size,
                warnings=tuple(dict.fromkeys([*terms.warnings, *self._warnings])),
            )
        )


def summarize(places: Sequence[Report], steps: int) -> Report:
    """A job's progress from that of its variations, which may come one after the other: it never runs backwards."""
    done = sum(place.step or 0 for place in places if place.stage is not Stage.PLANNING)
    if all(place.stage is Stage.DECODING for place in places):
        return Report(stage=Stage.DECODING)
    if done:
        return Report(stage=Stage.DENOISING, step=done, steps=steps * len(places))
    if planned := [place for place in places if place.stage is Stage.PLANNING]:
        farthest = max(planned, key=lambda place: place.step or 0)
        return Report(stage=Stage.PLANNING, step=farthest.step or 0, steps=farthest.steps)
    return Report(stage=Stage.CONDITIONING)
