"""Receive webhooks, and save the song of each job that was submitted with this receiver's address.

    pip install fastapi uvicorn standardwebhooks
    SERINETTE_WEBHOOK_SECRET=whsec_... uvicorn examples.webhook_receiver:app --port 8020

The secret is the gateway's. SERINETTE_URL and SERINETTE_API_KEY name the gateway to fetch from, SONGS the directory.
"""

from __future__ import annotations

import os
from pathlib import Path

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from standardwebhooks import Webhook, WebhookVerificationError

from serinette import Client

LONGEST_BODY = 1 << 20  # bytes

webhook = Webhook(os.environ["SERINETTE_WEBHOOK_SECRET"])
songs = Path(os.environ.get("SONGS", "songs"))
app = FastAPI()


@app.post("/ended", status_code=202)
async def ended(request: Request, work: BackgroundTasks) -> None:
    """Answer at once, work afterwards: a delivery that takes ten seconds is tried again."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise HTTPException(413)
    try:
        event = webhook.verify(body, dict(request.headers))
    except WebhookVerificationError as error:
        raise HTTPException(401) from error
    if event["type"] == "job.succeeded":
        work.add_task(save, event["data"]["id"])


def save(job_id: str) -> None:
    """The same end may be delivered twice. The name is the job's, and a file is there whole or not at all."""
    with Client() as client:
        job = client.get(job_id)
        path = songs / f"{job.id}.{job.spec.format}"
        if not path.exists():
            songs.mkdir(parents=True, exist_ok=True)
            client.download(job, path)
