"""The way of one song through a slot: its sources, the engine, the encoder, the store, the record."""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from gpu_worker.settings import WorkerSettings
from gpu_worker.slot.encoding import Encoded, Encoders
from gpu_worker.slot.engine_client import EngineClient
from gpu_worker.slot.heartbeat import Heartbeat
from gpu_worker.slot.hold import Hold
from gpu_worker.slot.patient_store import PatientStore
from gpu_worker.slot.sources import Role, Sources
from gpu_worker.slot.spool import Parcel, Spool, Spooled
from gpu_worker.slot.tracing import trace_stages
from gpu_worker.wire import Audio, Generate, Generated, Samples
from serinette import telemetry
from serinette.errors import InvalidOutput, StoreUnavailable
from serinette.job import Artifact, JobStatus, Progress, Record, Result, Stage, Timings, now
from serinette.jobs import Outcome
from serinette.jobs.finishing import find_record, put_record, record_of
from serinette.media import CONTENT_TYPES, EXTENSIONS, encoded_rate, song_tags
from serinette.names import artifact_key
from serinette.presence import Model
from serinette.spec import GenerationSpec
from serinette.store import Store

# A cancel, a deadline or a drain is noticed within this while a song is encoded.
_POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Singer:
    """What a slot sings with, all its life."""

    engine: EngineClient
    store: Store
    settings: WorkerSettings
    spool: Spool | None = None

    def performance(self, hold: Hold, heartbeat: Heartbeat) -> Performance:
        """The performance of one job."""
        store = PatientStore(self.store, self.settings.store_patience_s, hold.check)
        encoders = Encoders(self.settings.run_dir, self.settings.encoders)
        return Performance(hold, heartbeat, self.engine, store, self.settings.run_dir, encoders, self.spool)


@dataclass(slots=True)
class Performance:
    """One attempt at one job."""

    hold: Hold
    heartbeat: Heartbeat
    engine: EngineClient
    store: PatientStore
    run_dir: Path | None
    encoders: Encoders
    spool: Spool | None = None
    parcel: Parcel | None = None
    encoding: dict[int, Future[Encoded]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    encode_s: float = 0.0
    upload_s: float = 0.0
    uploaded: list[str] = field(default_factory=list)

    def generate(self) -> Record:
        """From the job's spec to the record in the store that counts, which may say that it ended without a song.

        Raises:
            SerinetteError: a GenerationError, RequestError or Unavailable ends the attempt; Interruption gives it up.
            Spooled: the songs are there, and the store is away.
        """
        job_id = self.hold.job_id
        spec = GenerationSpec.from_wire(self.hold.entry.wire)
        if known := self._known(self.hold.entry.tenant, job_id):
            return known
        try:
            sung = self._ask_engine(job_id, spec)
            result = self._result(job_id, spec, sung)
            self.heartbeat.look()
            self.hold.check()
        except BaseException:
            # Songs that were not taken would be the next job's.
            self.engine.close()
            # Nothing refers to these yet. From the record on they may be the job's songs, whatever else fails.
            if self.parcel:
                self.parcel.discard()
            self.store.erase(self.uploaded)
            raise
        finally:
            self.encoders.close()
        # From now on neither cancel nor deadline ends the attempt.
        self.hold.recording = True
        return self._recorded(
            record_of(self.hold.entry, self.hold.attempt, Outcome(JobStatus.SUCCEEDED, result=result))
        )

    def _known(self, tenant: str, job_id: str) -> Record | None:
        if self.spool is None or self.hold.attempt.number > 1:
            return find_record(self.store, tenant, job_id)
        try:
            return find_record(self.store.hasty(), tenant, job_id)
        except StoreUnavailable:  # nobody has sung it yet: what would be wasted is a song, should Redis have forgotten
            return None

    def _recorded(self, record: Record) -> Record:
        with telemetry.span("record"):
            winner = self._put_record(record)
        self.hold.generated = winner.attempt is not None and winner.attempt.id == self.hold.attempt.id
        if not self.hold.generated:
            self.store.erase(self.uploaded)
        return winner

    def _put_record(self, record: Record) -> Record:
        if self.parcel is None:
            try:
                return put_record(self._in_haste(), record)
            except StoreUnavailable:
                self.parcel = self.spool.begin(self.hold.attempt.id) if self.spool else None
        if self.parcel and self.parcel.seal(record):
            raise Spooled(self.parcel)
        winner = put_record(self.store, record)
        if self.parcel:
            self.parcel.discard()
        return winner

    def _in_haste(self) -> PatientStore:
        """The store, not to be waited for if the spool can take the song instead."""
        return self.store.hasty() if self.spool and not self.spool.full else self.store

    def _keep(self, index: int, key: str, data: bytes, content_type: str) -> None:
        self.uploaded.append(key)
        if self.parcel is None:
            try:
                self._in_haste().put(key, data, content_type)
                return
            except StoreUnavailable:
                self.parcel = self.spool.begin(self.hold.attempt.id) if self.spool else None
        if self.parcel is None or not self.parcel.add(index, data):
            self.store.put(key, data, content_type)

    def _tell(self, stage: Stage, step: int | None = None, steps: int | None = None) -> None:
        self.hold.clock.tell(stage, step)
        engine_s = round(self.hold.clock.engine_s(), 3)
        self.heartbeat.report(Progress(stage=stage, step=step, steps=steps, engine_s=engine_s, at=now()))

    def _ask_engine(self, job_id: str, spec: GenerationSpec) -> Generated:
        model = self.engine.wait_ready(self.hold, self._tell)
        samples = self._sources(spec, model)
        self.hold.check()
        descriptions = tuple(
            Audio(role=role, channels=sound.shape[0], frames=sound.shape[1]) for role, sound in samples.items()
        )
        request = Generate(job_id=job_id, spec=spec.to_wire(), audio=descriptions, alone=self.hold.suspect)

        def keep(index: int, song: Audio, decoded: Samples) -> None:
            tags = song_tags(spec, _seed(spec, song, index), model.name, model.revision, job_id)
            self.encoding[index] = self.encoders.submit(decoded, model.sample_rate, spec, tags)

        try:
            return self.engine.sing(request, list(samples.values()), self.hold, self._tell, keep)
        finally:
            trace_stages(self.hold.clock)
            self.hold.gpu_s = self.hold.clock.engine_s()

    def _sources(self, spec: GenerationSpec, model: Model) -> dict[Role, Samples]:
        wanted: dict[Role, str | None] = {"source": spec.source_audio, "reference": spec.reference_audio}
        if any(wanted.values()):
            self._tell(Stage.FETCHING)
        sources = Sources(self.store, self.hold.entry.tenant, model, self.run_dir)
        return {role: sources.fetch(audio_id, role) for role, audio_id in wanted.items() if audio_id}

    def _result(self, job_id: str, spec: GenerationSpec, sung: Generated) -> Result:
        if not len(sung.songs) == len(self.encoding) == spec.variations:
            raise InvalidOutput(f"the engine generated {len(sung.songs)} songs, {spec.variations} were asked for")
        self._tell(Stage.ENCODING)
        artifacts = tuple(self._artifact(job_id, spec, sung, index) for index in range(len(sung.songs)))
        started_at, created_at = self.hold.attempt.started_at, self.hold.entry.created_at
        return Result(
            artifacts=artifacts,
            model=sung.model.name,
            model_revision=sung.model.revision,
            sampling=sung.sampling,
            timings=Timings(
                queue_s=max(0.0, (started_at - created_at).total_seconds()),
                generate_s=sung.generate_s,
                encode_s=self.encode_s,
                upload_s=self.upload_s,
                run_s=(now() - started_at).total_seconds(),
            ),
            warnings=tuple(dict.fromkeys([*sung.warnings, *self.warnings])),
        )

    def _artifact(self, job_id: str, spec: GenerationSpec, sung: Generated, index: int) -> Artifact:
        self.hold.check()
        song = sung.songs[index]
        encoded = self._encoded(index)
        data = encoded.data
        self.warnings += encoded.warnings
        self.encode_s += encoded.encode_s
        encoded_at_s = time.monotonic()
        key = artifact_key(self.hold.entry.tenant, job_id, self.hold.attempt.id, index, EXTENSIONS[spec.format])
        if index == len(sung.songs) - 1:
            self._tell(Stage.UPLOADING)
        with telemetry.span("upload", told={"song": index, "size_bytes": len(data)}):
            self._keep(index, key, data, CONTENT_TYPES[spec.format])
        self.upload_s += time.monotonic() - encoded_at_s
        return Artifact(
            index=index,
            key=key,
            seed=_seed(spec, song, index),
            format=spec.format,
            content_type=CONTENT_TYPES[spec.format],
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            duration_s=song.frames / sung.sample_rate,
            sample_rate=encoded_rate(spec.format, sung.sample_rate),
            channels=song.channels,
        )

    def _encoded(self, index: int) -> Encoded:
        while True:
            try:
                return self.encoding[index].result(_POLL_S)
            except TimeoutError:
                self.hold.check()


def _seed(spec: GenerationSpec, song: Audio, index: int) -> int:
    return song.seed if song.seed is not None else (spec.seed or 0) + index
