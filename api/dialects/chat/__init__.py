"""The dialect of OpenAI's clients: music by POST /v1/chat/completions, as ACE-Step 1.5's server answers it."""

from api.dialects.chat import answers, routes
from api.dialects.dialect import Dialect, SharedAnswers

DIALECT = Dialect(
    name="chat",
    tag=routes.TAG,
    about="OpenAI's clients: music by chat completions, as ACE-Step 1.5's server answers it.",
    routes=routes.router.routes,
    base64_paths=("/v1/chat/completions",),
    shared=SharedAnswers(models=answers.listed, models_schema=answers.ModelList, model=answers.ListedModel),
)
