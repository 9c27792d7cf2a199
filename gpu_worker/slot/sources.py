"""Source and reference audio: from an id that we handed out to samples at the model's rate."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gpu_worker.slot.drain import RetryingStore
from gpu_worker.wire import Samples
from serinette.errors import InvalidAudio, NotFound, TooLarge
from serinette.job import Artifact, Record, Upload
from serinette.media import decode
from serinette.names import record_key, upload_audio_key, upload_record_key
from serinette.presence import Model
from serinette.spec import Planned

Role = Literal["source", "reference"]


@dataclass(slots=True)
class Sources:
    """What one tenant's jobs may refer to. `plan`: of the source that was fetched, where a planner wrote one."""

    store: RetryingStore
    tenant: str
    model: Model
    scratch_dir: Path | None
    plan: Planned | None = None

    def fetch(self, audio_id: str, role: Role) -> Samples:
        """Samples [channels, frames] of an upload or of an earlier song.

        Raises:
            NotFound: there is no such upload or song, or its upload was not finished.
            InvalidAudio: it is longer than the model takes, or no longer the audio that was verified.
        """
        field = f"{role}_audio"
        with tempfile.TemporaryDirectory(dir=self.scratch_dir) as directory:
            file = Path(directory) / "audio"
            try:
                self._download(audio_id, file, role)
                return decode(file, self.model.sample_rate, self.model.channels, self.model.max_duration_s)
            except (NotFound, IndexError) as error:
                raise NotFound(
                    f"{field}: there is no upload or song {audio_id}; upload it with POST /v1/uploads, or name a song "
                    "as {job_id}/{index}",
                    field=field,
                ) from error
            except InvalidAudio as error:
                raise InvalidAudio(f"{field}: {error.message}", field=field) from error

    def _download(self, audio_id: str, file: Path, role: Role) -> None:
        key, located = self._locate(audio_id)
        if role == "source" and isinstance(located, Artifact):
            self.plan = located.plan
        changed = InvalidAudio(f"{audio_id} changed since it was proved to be audio; upload it again")
        try:
            self.store.download(key, file, located.size_bytes)
        except TooLarge as error:
            raise changed from error
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != located.sha256:
                raise changed

    def _locate(self, audio_id: str) -> tuple[str, Artifact | Upload]:
        """The key of the bytes, and their digest beside: a presigned PUT may replace what a key holds."""
        job_id, _, index = audio_id.partition("/")
        if index:
            record = Record.model_validate_json(self.store.get(record_key(self.tenant, job_id)))
            artifact = record.artifacts[int(index)]
            return artifact.key, artifact
        # Written once the upload was verified to be audio; a presigned URL may still replace the audio, but not this.
        upload = Upload.model_validate_json(self.store.get(upload_record_key(self.tenant, audio_id)))
        return upload_audio_key(self.tenant, audio_id), upload
