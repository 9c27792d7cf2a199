"""Source and reference audio: from an id that we handed out to samples at the model's rate."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpu_worker.engine.base import Samples
from gpu_worker.slot.patient_store import PatientStore
from serinette.errors import InvalidAudio, NotFound
from serinette.job import Record
from serinette.media import decode
from serinette.names import record_key, upload_audio_key, upload_record_key
from serinette.presence import Model

Role = Literal["source", "reference"]


@dataclass(frozen=True, slots=True)
class Sources:
    """What one tenant's jobs may refer to."""

    store: PatientStore
    tenant: str
    model: Model
    spool_dir: Path | None

    def fetch(self, audio_id: str, role: Role) -> Samples:
        """Samples [channels, frames] of an upload or of an earlier song.

        Raises:
            NotFound: there is no such upload or song, or its upload was not finished.
            InvalidAudio: it is longer than the model takes.
        """
        field = f"{role}_audio"
        with tempfile.TemporaryDirectory(dir=self.spool_dir) as directory:
            file = Path(directory) / "audio"
            try:
                self.store.download(self._key(audio_id), file)
            except (NotFound, IndexError) as error:
                raise NotFound(
                    f"{field}: there is no upload or song {audio_id}; upload it with POST /v1/uploads, or name a song "
                    "as {job_id}/{index}",
                    field=field,
                ) from error
            try:
                return decode(file, self.model.sample_rate, self.model.channels, self.model.max_duration_s)
            except InvalidAudio as error:
                raise InvalidAudio(f"{field}: {error.message}", field=field) from error

    def _key(self, audio_id: str) -> str:
        job_id, _, index = audio_id.partition("/")
        if index:
            record = Record.model_validate_json(self.store.get(record_key(self.tenant, job_id)))
            return record.artifacts[int(index)].key
        self.store.require(upload_record_key(self.tenant, audio_id))  # written once the upload proved to be audio
        return upload_audio_key(self.tenant, audio_id)
