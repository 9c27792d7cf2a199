"""Our own API."""

from api.v1 import audio, batches, containers, events, jobs, operator, queue, uploads, usage

_PARTS = (jobs, containers, audio, batches, events, uploads, queue, usage, operator)
ROUTES = [route for part in _PARTS for route in part.router.routes]
