"""One attempt at one job: its sources, the engine, the encoders, the store or the spool, the record."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.drain import RetryingStore
from gpu_worker.slot.encoding import Encoded, Encoders
from gpu_worker.slot.engine_client import EngineClient
from gpu_worker.slot.held_job import HeldJob
from gpu_worker.slot.sources import Role, Sources
from gpu_worker.slot.spool import Parcel, Spool, put_record_or_erase
from gpu_worker.wire import Audio, Generate, Generated, Samples
from serinette import telemetry
from serinette.errors import InvalidOutput, StoreUnavailable
from serinette.job import Artifact, JobStatus, Record, Result, Stage, Timings
from serinette.jobs import Outcome
from serinette.jobs.finishing import find_end, record_of
from serinette.media import CONTENT_TYPES, EXTENSIONS, encoded_rate, song_tags
from serinette.names import artifact_key
from serinette.presence import Model
from serinette.spec import GenerationSpec
from serinette.store import Store

# A cancel, a deadline or a drain is noticed within this while a song is encoded.
_POLL_S = 0.2
# So long a finished song waits for a last look at the cancel flag.
_LAST_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class SlotResources:
    """What a slot needs for all its jobs."""

    engine: EngineClient
    store: Store
    settings: WorkerSettings
    spool: Spool | None = None


class Generation:
    """The way of one held job from its spec to its record."""

    def __init__(self, held: HeldJob, resources: SlotResources) -> None:
        settings = resources.settings
        self._held = held
        self._spec = GenerationSpec.from_wire(held.entry.wire)
        self._engine = resources.engine
        self._store = RetryingStore(resources.store, settings.store_patience_s, held.check)
        self._spool = resources.spool
        self._settings = settings
        self._encoders = Encoders(settings.run_dir, settings.encoders)
        self._encoding: dict[int, Future[Encoded]] = {}
        self._parcel: Parcel | None = None
        self._uploaded: list[str] = []
        self._warnings: list[str] = []
        self._encode_s = 0.0
        self._upload_s = 0.0

    def run(self) -> Record | Parcel:
        """The record in the store that counts, which may say that the job ended without a song; or, while the store is
        away, the parcel in which songs and record wait for it.

        Raises:
            SerinetteError: a GenerationError, RequestError or Unavailable ends the attempt; Interruption gives it up.
        """
        held = self._held
        try:
            if known := self._known_record():
                return known
            result = self._result(self._generated())
            # Once more, though not for long: a cancel that was never published, or is not heard yet, still comes before
            # the record. With Redis away it is recorded all the same.
            held.heartbeat.beat_and_wait(_LAST_LOOK_S)
            held.check()
        except BaseException:
            # Songs that were not taken would be the next job's.
            self._engine.close()
            # Nothing refers to these yet. From the record on they may be the job's songs, whatever else fails.
            if self._parcel:
                self._parcel.discard()
            for key in self._uploaded:
                self._store.delete(key)
            raise
        finally:
            self._encoders.close()
        # From now on neither cancel nor deadline ends the attempt.
        held.recording = True
        record = record_of(held.entry, held.attempt, Outcome(JobStatus.SUCCEEDED, result=result), held.now())
        with telemetry.span("record"):
            return self._put_record(record)

    def _known_record(self) -> Record | None:
        entry = self._held.entry
        patient = self._spool is None or self._held.attempt.number > 1
        try:
            return find_end(self._store if patient else self._store.impatient(), entry)
        except StoreUnavailable:
            if patient:
                raise
            return None  # it was never generated, unless Redis has forgotten: then a song is wasted

    # -- the engine

    def _generated(self) -> Generated:
        held = self._held
        model = self._engine.wait_ready(held)
        sounds = self._sources(model)
        spec = self._spec
        held.check()
        audio = tuple(Audio(role=role, channels=each.shape[0], frames=each.shape[1]) for role, each in sounds.items())
        request = Generate(job_id=held.job_id, spec=spec.to_wire(), audio=audio, alone=held.suspect)

        def keep(index: int, song: Audio, decoded: Samples) -> None:
            seed = self._seed(song, index)
            tags = song_tags(
                spec,
                seed,
                model.name,
                model.revision,
                held.job_id,
                plan=song.plan,
                audio_codes=song.audio_codes,
                texts=self._settings.tag_texts,
            )
            self._encoding[index] = self._encoders.submit(decoded, model.sample_rate, spec, tags)

        try:
            return self._engine.generate(request, list(sounds.values()), held, keep)
        finally:
            held.times.trace()
            held.gpu_s = held.times.engine_s()

    def _sources(self, model: Model) -> dict[Role, Samples]:
        wanted: dict[Role, str | None] = {"source": self._spec.source_audio, "reference": self._spec.reference_audio}
        if any(wanted.values()):
            self._held.report(Stage.FETCHING)
        sources = Sources(self._store, self._held.entry.tenant, model, self._settings.run_dir)
        sounds = {role: sources.fetch(audio_id, role) for role, audio_id in wanted.items() if audio_id}
        if self._spec.thinking and sources.plan:
            self._spec = sources.plan.filled_into(self._spec)
        return sounds

    def _seed(self, song: Audio, index: int) -> int:
        return song.seed if song.seed is not None else self._spec.seeds[index]

    # -- its songs

    def _result(self, generated: Generated) -> Result:
        songs, wanted = generated.songs, self._spec.variations
        if len(songs) != len(self._encoding) or len(songs) + len(generated.texts) != wanted:
            raise InvalidOutput(f"the engine generated {len(songs)} songs, {wanted} were asked for")
        if songs:
            self._held.report(Stage.ENCODING)
        artifacts = tuple(self._artifact(generated, index) for index in range(len(songs)))
        started_at, created_at = self._held.attempt.started_at, self._held.entry.created_at
        return Result(
            artifacts=artifacts,
            texts=generated.texts,
            model=generated.model.name,
            model_revision=generated.model.revision,
            sampling=None if generated.texts else generated.sampling,
            timings=Timings(
                queue_s=max(0.0, (started_at - created_at).total_seconds()),
                generate_s=generated.generate_s,
                encode_s=self._encode_s,
                upload_s=self._upload_s,
                run_s=(self._held.now() - started_at).total_seconds(),
            ),
            warnings=tuple(dict.fromkeys([*generated.warnings, *self._warnings])),
        )

    def _artifact(self, generated: Generated, index: int) -> Artifact:
        held, song, format_ = self._held, generated.songs[index], self._spec.format
        held.check()
        encoded = self._encoded(index)
        data = encoded.data
        self._warnings += encoded.warnings
        self._encode_s += encoded.encode_s
        encoded_at_s = time.monotonic()
        key = artifact_key(held.entry.tenant, held.job_id, held.attempt.id, index, EXTENSIONS[format_])
        if index == len(generated.songs) - 1:
            held.report(Stage.UPLOADING)
        with telemetry.span("upload", attributes={"song": index, "size_bytes": len(data)}):
            self._uploaded.append(key)
            stored = self._in_store(lambda store: store.put(key, data, CONTENT_TYPES[format_]))
            if not stored and not (self._parcel and self._parcel.add(index, data)):
                self._store.put(key, data, CONTENT_TYPES[format_])
        self._upload_s += time.monotonic() - encoded_at_s
        return Artifact(
            index=index,
            key=key,
            seed=self._seed(song, index),
            format=format_,
            content_type=CONTENT_TYPES[format_],
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            duration_s=song.frames / generated.sample_rate,
            sample_rate=encoded_rate(format_, generated.sample_rate),
            channels=song.channels,
            plan=song.plan,
        )

    def _encoded(self, index: int) -> Encoded:
        while True:
            try:
                return self._encoding[index].result(_POLL_S)
            except TimeoutError:
                self._held.check()

    # -- the store, or the spool

    def _put_record(self, record: Record) -> Record | Parcel:
        """The record that counts, or the parcel in which it waits."""
        found: list[Record] = []
        entry = self._held.entry
        if self._in_store(lambda store: found.append(put_record_or_erase(store, record, entry))):
            return found[0]
        if self._parcel is None:
            return put_record_or_erase(self._store, record, entry)
        if self._parcel.seal(record):
            return self._parcel
        try:
            return self._parcel.send(self._store, record, entry)
        except StoreUnavailable:
            self._parcel.discard()
            raise

    def _in_store(self, put: Callable[[RetryingStore], object]) -> bool:
        """Whether the store took it; from the first time that it did not, there may be a parcel."""
        if self._parcel:
            return False
        if self._spool is None or self._spool.full:
            put(self._store)
            return True
        try:
            put(self._store.impatient())
        except StoreUnavailable:
            self._parcel = self._spool.begin(self._held.attempt.id)
            return False
        return True
