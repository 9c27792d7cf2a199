"""The dialect of ACE-Step 1.5's own HTTP API."""

from api.dialects.acestep import answers, inventory, routes
from api.dialects.acestep.documented import TAG, TIMESTAMP
from api.dialects.dialect import Dialect, SharedAnswers

DIALECT = Dialect(
    name="acestep",
    tag=TAG,
    about="Clients of ACE-Step 1.5's own HTTP API.",
    routes=[*routes.tasks.routes, *routes.server.routes],
    file_paths=("/release_task",),
    key_paths=frozenset(
        {"/release_task", "/query_result", "/create_random_sample", "/format_input", "/v1/create_sample"}
    ),
    shared=SharedAnswers(
        health=lambda pools, default: answers.wrapped(inventory.health(inventory.inventory(pools, default))),
        unhealthy=lambda error: answers.wrapped({"status": "unhealthy"}, code=503, error=error.message),
        fixed=TIMESTAMP,
    ),
)
