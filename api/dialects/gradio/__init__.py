"""The dialect of existing ACE-Step v1 clients, on the port that they expect."""

from api.dialects.gradio.routes import router

__all__ = ["router"]
