"""Our own API."""

from api.v1 import audio, batches, containers, events, jobs, links, queue, uploads, usage, workers

_PARTS = (jobs, containers, audio, batches, events, links, uploads, queue, usage, workers)
ROUTES = [route for part in _PARTS for route in part.router.routes]
