"""`serinette mcp`: tools for a program that speaks the Model Context Protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from serinette.cli.options import ApiKey, Server, url_of
from serinette.client import DEFAULT_URL, AsyncClient, Retry

Directory = Annotated[
    Path,
    typer.Argument(
        exists=True, file_okay=False, writable=True, resolve_path=True, show_default=False, help="Where songs go."
    ),
]


def mcp(
    directory: Directory,
    server: Server = DEFAULT_URL,
    api_key: ApiKey = None,
    max_songs: Annotated[int, typer.Option(min=1, max=10_000, help="Songs that this session may generate.")] = 20,
) -> None:
    """Serve tools to an MCP client over standard input and output, until that ends.

    It can order, follow and cancel songs of its own, and write them as new files into one directory.
    """
    from serinette.cli.mcp_server import Session, server_of  # noqa: PLC0415  # of the mcp extra

    client = AsyncClient(url_of(server), api_key=api_key, retry=Retry(unanswered=False))
    server_of(Session(client, directory, max_songs)).run("stdio")
