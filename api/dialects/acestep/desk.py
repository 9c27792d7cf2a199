"""Behind the calls that have to do with tasks: release, look up, and hand songs over."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import Response

from api.dependencies import IntakePart, QueuePart, SettingsPart, SongsPart, TenantPart
from api.dialects.acestep.body import Body, BodyPart
from api.dialects.acestep.order import order
from api.dialects.acestep.tokens import song_named
from api.songs import Asked, song_of
from serinette.errors import InvalidAudio, InvalidSpec
from serinette.job import Job, JobOptions

# One answer names no more tasks than these.
MAX_TASKS: Final = 256
_TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,80}")
_FILES: Final = {
    "src_audio_path": ("src_audio", "ctx_audio"),
    "reference_audio_path": ("reference_audio", "ref_audio"),
}


@dataclass(frozen=True, slots=True)
class Desk:
    """One client's dealings with the queue, for the length of a request with a body."""

    queue: QueuePart
    settings: SettingsPart
    intake: IntakePart
    body: BodyPart
    tenant: TenantPart

    async def release(self, idempotency_key: str | None) -> Job:
        """Put the task's song into its lane.

        Raises:
            SerinetteError: nothing was put there.
        """
        models = await self._models()
        files = self._files()
        # Before files are taken in: what is wrong without them is wrong with them, and some are of no use.
        uploads = dict.fromkeys(files, "upload")
        spec = order(self.body.fields, uploads, models).spec
        for field, ours in (("src_audio_path", spec.source_audio), ("reference_audio_path", spec.reference_audio)):
            if field in files and ours is not None:
                uploads[field] = await self._kept(*files[field])
        wanted = order(self.body.fields, uploads, models)
        job, _ = await self.queue.submit(
            self.tenant,
            wanted.spec,
            JobOptions(),
            idempotency_key=idempotency_key,
            dialect=wanted.dialect,
        )
        return job

    async def find(self) -> list[tuple[str, Job | None]]:
        """The tasks in `task_id_list`, in its order.

        Raises:
            InvalidSpec: they are too many.
        """
        task_ids = task_ids_of(self.body)
        if len(task_ids) > MAX_TASKS:
            raise InvalidSpec(f"task_id_list: at most {MAX_TASKS} tasks an answer", field="task_id_list")
        sound = [task_id for task_id in task_ids if _TASK_ID.fullmatch(task_id)]
        jobs = dict(zip(sound, await self.queue.find(self.tenant, sound), strict=True))
        return [(task_id, jobs.get(task_id)) for task_id in task_ids]

    def _files(self) -> dict[str, tuple[str, UploadFile]]:
        sent = self.body.files
        return {
            field: (name, sent[name]) for field, names in _FILES.items() for name in reversed(names) if name in sent
        }

    async def _kept(self, name: str, file: UploadFile) -> str:
        try:
            return (await self.intake.take_file(self.tenant, file)).id
        except (InvalidAudio, InvalidSpec) as error:  # it knows of one file; here may be two
            raise InvalidAudio(f"{name}: {error.message.removeprefix('file: ')}", field=name) from error

    async def _models(self) -> frozenset[str]:
        pools = await self.queue.pools()
        held = {worker.model.name for pool in pools for worker in pool.workers if worker.model}
        return frozenset(held | {pool.published for pool in self.settings.pools})  # also of pools at zero


def task_ids_of(body: Body) -> list[str]:
    """`task_id_list`, a list or its JSON as text; what is neither names one task. Pure."""
    value: Any = next((body.fields[name] for name in ("task_id_list", "taskIdList") if name in body.fields), None)
    if isinstance(value, str):
        with suppress(ValueError, RecursionError):
            value = json.loads(value)
    if value in (None, ""):
        return []
    # One more than an answer names, so that it is refused without a look at all of them.
    return [str(task_id) for task_id in value[: MAX_TASKS + 1]] if isinstance(value, list) else [str(value)]


async def song(request: Request, path: str, queue: QueuePart, songs: SongsPart, tenant: str) -> Response:
    """The song that a token names, or the part of it that is asked for. Never a redirect: clients here follow none.

    Raises:
        NotFound, NotFinished, Gone: there is none.
    """
    job_id, index = song_named(path)
    job = await queue.get(tenant, job_id)
    artifact = song_of(job, index)
    return await songs.serve(artifact, Asked.by(request), f"{job_id}-{index}.{artifact.format}", download=False)
