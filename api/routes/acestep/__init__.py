"""The dialect of ACE-Step 1.5's own HTTP API."""

from fastapi import APIRouter

from api.routes.acestep import routes, server

router = APIRouter()
for part in (routes, server):
    router.include_router(part.router)

__all__ = ["router"]
