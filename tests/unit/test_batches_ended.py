"""The end of a batch: reported to its webhook, and fetched as files and as a zip."""

from __future__ import annotations

import io
import json
import zipfile

import httpx
from standardwebhooks import Webhook

from api.app import create_app
from controller.settings import ControllerSettings
from controller.webhooks import Webhooks
from tests.receivers import SECRET, receiver
from tests.unit.batch_bench import TENANT, BatchBench


def test_the_end_is_reported_once_for_each_round(redis_url: str, file_store_url: str) -> None:
    settings = {"webhook_secret": SECRET, "webhook_networks": ("127.0.0.0/8",)}
    bench = BatchBench(redis_url, file_store_url, settings=settings)
    deliver = Webhooks(
        bench.redis,
        ControllerSettings.model_validate({**settings, "redis_url": redis_url, "store_url": file_store_url}),
    )
    with receiver() as target:
        batch = bench.create(2, webhook=f"http://127.0.0.1:{target.port}/ended")
        assert deliver() == 0
        bench.run(batch, failing=["song 2"])
        assert (deliver(), deliver()) == (1, 0)
        bench.batches.retry(TENANT, batch.id)
        bench.run(batch)
        assert (deliver(), deliver()) == (1, 0)
    assert target.ids == [f"msg_{batch.id}_completed_{round}" for round in (0, 1)]
    for came, completed in zip(target.came, (1, 2), strict=True):
        event = Webhook(SECRET).verify(came.body, came.headers)
        assert event["type"] == "batch.completed"
        assert (event["data"]["id"], event["data"]["request_counts"]["completed"]) == (batch.id, completed)
    assert [delivery.delivered for delivery in bench.look(batch).deliveries] == [True]


async def test_files(redis_url: str, file_store_url: str) -> None:
    bench = BatchBench(redis_url, file_store_url)
    batch = bench.create(6)
    bench.run(batch, failing=["song 2"])
    erased = bench.output(batch)[3]
    transport = httpx.ASGITransport(create_app(bench.gateway), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://test/v1/batches/{batch.id}") as client:
        assert (await client.delete(f"http://test/v1/jobs/{erased.job_id}")).status_code == 204
        output, errors = (await client.get("/output.jsonl")).text, (await client.get("/errors.jsonl")).text
        zipped = await client.get("/songs.zip")
    assert [json.loads(line)["line"] for line in output.splitlines()] == [1, 3, 4, 5, 6]
    assert [json.loads(line)["custom_id"] for line in errors.splitlines()] == ["id 2"]
    assert zipped.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(zipped.content)) as archive:
        assert archive.testzip() is None
        songs = {name: archive.read(name) for name in archive.namelist()}
    assert songs == {
        **{f"00000{n}-id_{n}.mp3": f"song {n}".encode() for n in (1, 3, 4, 6)},
        "missing.txt": b"000005-id_5.mp3\n",
    }
