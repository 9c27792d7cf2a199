"""`serinette mcp` as a client of the protocol sees it, before a real server with a fast engine."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp.client import Client as McpClient
from mcp.client.stdio import StdioServerParameters

from serinette.client import Client
from tests.stack import Stack, running
from tests.up import CLI, ENVIRONMENT

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A whole Serinette whose engine generates sines."""
    with running(tmp_path_factory.mktemp("mcp"), worker={"SERINETTE_ENGINE_MODULE": "tests.engines"}) as stack:
        yield stack


@pytest.fixture
def client(fast: Stack) -> Iterator[Client]:
    with Client(fast.url) as client:
        yield client


class Tools:
    """What a program gets of `serinette mcp`."""

    def __init__(self, client: McpClient) -> None:
        self._client = client
        self.progress: list[float] = []

    async def __call__(self, tool: str, **arguments: object) -> dict[str, Any]:
        """The answer of a tool that did what it was asked."""
        answer = await self._client.call_tool(tool, arguments, progress_callback=self._on_progress)
        assert not answer.is_error, answer.content
        return dict(answer.structured_content)

    async def refused(self, tool: str, **arguments: object) -> str:
        """Why a tool did not."""
        answer = await self._client.call_tool(tool, arguments)
        assert answer.is_error, answer.structured_content
        return str(answer.content)

    async def _on_progress(self, progress: float, total: float | None, message: str | None) -> None:
        assert total == 100
        self.progress.append(progress)


@asynccontextmanager
async def tools(fast: Stack, directory: Path, max_songs: int = 3) -> AsyncIterator[Tools]:
    """As the page's configuration starts them, with a URL, directory and bound of our own."""
    (block,) = re.findall(r"^```json\n(.*?)^```", (DOCS / "mcp.md").read_text(), re.MULTILINE | re.DOTALL)
    given = json.loads(block)["mcpServers"]["serinette"]
    assert given["command"] == "serinette"
    settings = dict(zip(("/home/you/songs", "10"), (str(directory), str(max_songs)), strict=True))
    arguments = [settings.get(word, word) for word in given["args"]]
    assert set(settings.values()) < set(arguments)
    environment = {**ENVIRONMENT, **given["env"], "SERINETTE_URL": fast.url, "PYTHONPATH": str(DOCS.parent)}
    server = StdioServerParameters(command=CLI[0], args=[*CLI[1:], *arguments], env=environment, cwd=directory)
    async with McpClient(server) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == {
            "order_song",
            "follow_song",
            "fetch_song",
            "cancel_song",
        }
        yield Tools(client)


def files(directory: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(directory)): path for path in directory.rglob("*")}
    return {name: path.read_bytes() for name, path in found.items() if path.is_file()}


async def test_an_mcp_client_gets_a_song(fast: Stack, tmp_path: Path) -> None:
    async with tools(fast, tmp_path) as tool:
        job = await tool("order_song", prompt="a slow waltz", duration_s=3, variations=2, format="flac", seed=7)
        ended = await tool("follow_song", job_id=job["job_id"], wait_s=60)
        assert (ended["status"], ended["percent"], tool.progress[-1]) == ("succeeded", 100, 100)
        assert ended["songs"] == ["0: 3.0 s of flac, seed 7", "1: 3.0 s of flac, seed 8"]
        file = await tool("fetch_song", job_id=job["job_id"], file_name="ein Walzer, 2", index=1)
        assert file["path"] == str(tmp_path / "ein Walzer, 2.flac")
        assert {name: content[:4] for name, content in files(tmp_path).items()} == {"ein Walzer, 2.flac": b"fLaC"}


async def test_an_mcp_client_writes_new_files_into_one_directory(fast: Stack, tmp_path: Path) -> None:
    directory, other = tmp_path / "songs", tmp_path / "elsewhere.mp3"
    directory.mkdir()
    (directory / "mine.mp3").write_text("mine")
    (directory / "link.mp3").symlink_to(other)
    async with tools(fast, directory) as tool:
        job = await tool("order_song", prompt="a waltz", duration_s=3)
        await tool("follow_song", job_id=job["job_id"], wait_s=60)
        outside = [
            "../out.mp3",
            str(other),
            "sub/out.mp3",
            "..\\out.mp3",
            ".hidden.mp3",
            "-rf.mp3",
            "..",
            "",
            "a\0.mp3",
            "a\nb.mp3",
        ]
        for name in outside:
            assert "plain name" in await tool.refused("fetch_song", job_id=job["job_id"], file_name=name), name
        for name in ("song.sh", "x" * 300 + ".mp3"):
            assert "file_name must" in await tool.refused("fetch_song", job_id=job["job_id"], file_name=name)
        for name in ("mine.mp3", "link.mp3", "mine"):
            assert "never replaced" in await tool.refused("fetch_song", job_id=job["job_id"], file_name=name)
        assert "has 1 song, index 0" in await tool.refused(
            "fetch_song", job_id=job["job_id"], file_name="new.mp3", index=5
        )
    assert files(tmp_path) == {"songs/mine.mp3": b"mine"}
    assert (directory / "link.mp3").is_symlink()


async def test_an_mcp_client_has_its_own_jobs_and_a_bound(fast: Stack, client: Client, tmp_path: Path) -> None:
    others = client.submit("until never", duration_s=3)
    async with tools(fast, tmp_path) as tool:
        for name, more in {"cancel_song": {}, "follow_song": {}, "fetch_song": {"file_name": "a.mp3"}}.items():
            assert "was not ordered in this session" in await tool.refused(name, job_id=others.id, **more)
        assert "prompt: " in await tool.refused("order_song", prompt="x" * 10_000, variations=3)
        misspelled = await tool.refused("order_song", prompt="a waltz", duration=3)
        assert ("Extra inputs are not permitted" in misspelled, "duration" in misspelled) == (True, True)
        job = await tool("order_song", prompt="until never", duration_s=3, variations=2)
        assert "1 are left" in await tool.refused("order_song", prompt="a waltz", variations=2)
        assert (await tool("follow_song", job_id=job["job_id"], wait_s=0))["status"] in {"queued", "running"}
        assert "call follow_song until it has succeeded" in await tool.refused(
            "fetch_song", job_id=job["job_id"], file_name="a.mp3"
        )
        await tool("cancel_song", job_id=job["job_id"])
        assert (await tool("follow_song", job_id=job["job_id"], wait_s=60))["status"] == "canceled"
        await tool("order_song", prompt="a waltz", duration_s=3)
        assert "0 are left" in await tool.refused("order_song", prompt="a waltz")
    assert not client.get(others.id).cancel_requested
    client.cancel(others.id)
