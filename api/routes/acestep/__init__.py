"""The dialect of ACE-Step 1.5's own HTTP API."""

from fastapi import APIRouter

from api.routes.acestep import routes, server

router = APIRouter()
for part in (routes, server):
    router.include_router(part.router)

# Where a body may hold the key, as `ai_token`.
TOKEN_PATHS = frozenset(
    {"/release_task", "/query_result", "/create_random_sample", "/format_input", "/v1/create_sample"}
)

__all__ = ["TOKEN_PATHS", "router"]
