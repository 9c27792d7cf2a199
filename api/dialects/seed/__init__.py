"""The dialect of existing ACE-Step v1 clients, on the port that they expect."""

from api.dialects.dialect import Dialect, SharedAnswers
from api.dialects.seed import answers, routes

DIALECT = Dialect(
    name="seed",
    tag=routes.TAG,
    about="Clients of the ACE-Step v1 Gradio-compatible API, on the port that they expect.",
    routes=routes.router.routes,
    file_paths=("/generate_music_with_audio",),
    base64_paths=routes.BASE64_PATHS,
    answers_422=True,
    shared=SharedAnswers(health=answers.health, unhealthy=answers.unhealthy),
)
