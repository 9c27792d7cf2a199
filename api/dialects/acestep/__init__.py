"""The dialect of ACE-Step 1.5's own HTTP API."""

from api.dialects.acestep import routes, server

ROUTES = [*routes.router.routes, *server.router.routes]

# Where a body may hold the key, as `ai_token`.
TOKEN_PATHS = frozenset(
    {"/release_task", "/query_result", "/create_random_sample", "/format_input", "/v1/create_sample"}
)

__all__ = ["ROUTES", "TOKEN_PATHS"]
