"""Our own API."""

from fastapi import APIRouter

from api.routes.v1 import audio, events, jobs, queue, uploads

router = APIRouter(prefix="/v1")
for part in (jobs, audio, events, uploads, queue):
    router.include_router(part.router)
