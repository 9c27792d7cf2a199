"""Our own API."""

from fastapi import APIRouter

from api.routes.v1 import audio, batch_files, batches, containers, events, jobs, links, queue, uploads, usage, workers

router = APIRouter(prefix="/v1")
for part in (jobs, containers, audio, batches, batch_files, events, links, uploads, queue, usage, workers):
    router.include_router(part.router)
