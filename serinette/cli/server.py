"""`serinette up`, `demo` and `convert`: what needs the server's own packages, which the wheel does not hold."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from serinette import __version__
from serinette.cli.following import follow
from serinette.cli.options import check_output
from serinette.cli.terminal import ProcessView, errors, output, program, seconds
from serinette.client import DEFAULT_URL, Client
from serinette.errors import ConfigurationError, GenerationError
from serinette.spec import AudioFormat, GenerationSpec
from serinette.webhook import is_loopback

if TYPE_CHECKING:
    from serinette.job import Result
    from serinette.local import Local, LocalOptions

_TICK_S = 0.1
# What the bundled model can do.
_PROMPT = "dance music box with drums"
_DEMO = GenerationSpec(prompt=_PROMPT, duration_s=15, format=AudioFormat.MP3)

DataDir = Annotated[
    Path, typer.Option("--data-dir", envvar="SERINETTE_DATA_DIR", help="For the queue, songs, checkpoints and logs.")
]
Host = Annotated[str, typer.Option(envvar="SERINETTE_HOST", help="Address to listen on; 0.0.0.0 for all.")]
Port = Annotated[int, typer.Option(envvar="SERINETTE_PORT", min=0, max=65_535, help="Port to listen on; 0: any.")]
Model = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_MODEL", help="Directory, hub id or URL of a checkpoint; else the bundled one."),
]
Device = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_DEVICE", help="auto: every GPU, or the CPU; or cpu, cuda:0 or cuda:0,cuda:1."),
]
Workers = Annotated[
    int | None, typer.Option("--workers", min=1, max=64, help="How many workers; else one for each device.")
]
RedisUrl = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_REDIS_URL", help="A running Valkey or Redis >= 7.2, instead of our own."),
]
DrainTimeout = Annotated[
    float,
    typer.Option(
        "--drain-timeout",
        envvar="SERINETTE_DRAIN_TIMEOUT_S",
        min=0,
        help="Seconds that running songs may still take after Ctrl-C.",
    ),
]
Auth = Annotated[
    bool, typer.Option(envvar="SERINETTE_AUTH", help="Ask for API keys; make one with `serinette keys create`.")
]
AllowAnyone = Annotated[
    bool,
    typer.Option(
        "--allow-anyone", envvar="SERINETTE_ALLOW_ANYONE", help="Listen beyond this machine without asking for keys."
    ),
]


def require_server(what: str, *packages: str) -> None:
    """Raises ConfigurationError where only the wheel is installed, which holds no server: all of it, or `packages`."""
    if any(find_spec(name) is None for name in packages or ("api", "controller", "gpu_worker")):
        raise ConfigurationError(
            f"{what} needs the server, and this installation holds the client and the command line alone. The server "
            "is in Serinette's repository: in a checkout of it `make up` starts one, `make demo` generates a song, and "
            "`pip install --editable '.[local]'` installs it; on a cluster its Helm chart does (docs/operator.md). "
            "With a server that runs elsewhere, name it: --server URL"
        )


def up(
    data_dir: DataDir = Path("serinette-data"),
    host: Host = "127.0.0.1",
    port: Port = 8019,
    model: Model = None,
    device: Device = None,
    workers: Workers = None,
    redis_url: RedisUrl = None,
    drain_timeout_s: DrainTimeout = 10.0,
    auth: Auth = False,
    allow_anyone: AllowAnyone = False,
) -> None:
    """Run everything on this machine: queue, gateway and workers. Ctrl-C ends it all."""
    require_server("`serinette up`")
    if not (auth or allow_anyone or is_loopback(host)):
        raise ConfigurationError(
            f"--host {host} would let anyone in who reaches this machine: add --auth, and make keys with "
            f"`{program()} keys create`; or --allow-anyone, where the network keeps strangers out"
        )
    gateway = {"SERINETTE_AUTH": str(auth), "SERINETTE_ALLOW_ANYONE": str(allow_anyone)}
    options = _options(data_dir, model, device, workers, redis_url, drain_timeout_s)
    options = replace(options, host=host, port=port, gateway=gateway)
    try:
        with _running(options) as local:
            errors.print(f"[bold]Listening on {local.url}[/]", soft_wrap=True)
            server = "" if local.url == DEFAULT_URL else f" --server {local.url}"
            errors.print(f"  a song:  {program()} submit '{_PROMPT}' -d 15 -o song.mp3{server}", soft_wrap=True)
            errors.print(f"  data in {escape(str(data_dir))}, logs in {escape(str(data_dir / 'logs'))}", soft_wrap=True)
            errors.print("  Ctrl-C ends everything, a second one at once")
            _keep(local)
    except KeyboardInterrupt:
        errors.print("Ended.")


def worker(
    redis_url: Annotated[
        str, typer.Option(envvar="SERINETTE_REDIS_URL", help="The queue's Valkey or Redis.", show_default=False)
    ],
    data_dir: DataDir = Path("serinette-worker"),
    model: Model = None,
    device: Device = None,
    workers: Workers = None,
    drain_timeout_s: DrainTimeout = 600.0,
) -> None:
    """Run workers for the queue of another machine. Ctrl-C finishes the songs they generate, and ends them.

    SERINETTE_STORE_URL names the store of that queue's gateway.
    """
    require_server("`serinette worker`", "gpu_worker")
    options = _options(data_dir, model, device, workers, redis_url, drain_timeout_s)
    try:
        with _running(replace(options, workers_only=True)) as local:
            count = len(options.devices)
            errors.print(f"[bold]{count} {'worker waits' if count == 1 else 'workers wait'} for jobs[/]")
            _keep(local)
    except KeyboardInterrupt:
        errors.print("Ended.")


def _options(
    data_dir: Path,
    model: str | None,
    device: str | None,
    workers: int | None,
    redis_url: str | None,
    drain_timeout_s: float,
) -> LocalOptions:
    from serinette.local import LocalOptions, count_gpus, worker_devices  # noqa: PLC0415  # as heavy as a server

    errors.print(f"Serinette {__version__}")
    return LocalOptions(
        data_dir,
        drain_timeout_s=drain_timeout_s,
        redis_url=redis_url,
        worker={} if model is None else {"SERINETTE_MODEL": model},
        devices=worker_devices(device, workers, count_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))),
    )


def _keep(local: Local) -> None:
    while True:
        local.tick()
        time.sleep(_TICK_S)


def demo(
    output_path: Annotated[Path, typer.Option("--output", "-o", help="Where to write the song.")] = Path("demo.mp3"),
    data_dir: DataDir = Path("serinette-data"),
    port: Port = 8019,
) -> None:
    """Start everything, generate one song of 15 s on the bundled checkpoint, and end everything."""
    require_server("`serinette demo`")
    check_output(output_path)
    from serinette.local import LocalOptions  # noqa: PLC0415  # as in `up`

    options = LocalOptions(
        data_dir,
        port=port,
        drain_timeout_s=0,
        worker={"SERINETTE_MODEL": "bundled"},
        gateway={"SERINETTE_AUTH": "false"},
        needs_worker=True,
    )
    started_s = time.monotonic()
    with _running(options) as local:
        start_s = time.monotonic() - started_s
        with Client(local.url) as client:
            job = follow(client, client.submit(_DEMO), local.tick)
            if job.result is None:
                reason = job.error.message if job.error else "no reason given"
                raise GenerationError(f"the song {job.status}: {reason}. Logs: {local.log_dir}")
            client.download(job.id, output_path)
    _print_demo(job.result, output_path, start_s, time.monotonic() - started_s)


def _print_demo(result: Result, path: Path, start_s: float, total_s: float) -> None:
    song, timings = result.artifacts[0], result.timings
    output.print(f"[bold]{escape(str(path.absolute()))}[/]", soft_wrap=True)
    errors.print(
        f"  {song.duration_s:.1f} s of {song.format}, {song.size_bytes / 1024:.0f} KiB, seed {song.seed}, "
        f"generated by {result.model} on this machine"
    )
    errors.print(f"  {result.model} is a small model of tunes by rule, and not ACE-Step's music:")
    errors.print("  docs/models.md says how to get that")
    errors.print(
        f"  {seconds(total_s)} in all: {seconds(start_s)} to start, {seconds(timings.queue_s)} in the queue, "
        f"{seconds(timings.generate_s)} to generate, {seconds(timings.encode_s)} to encode"
    )
    errors.print("Everything it started has ended. To start the server for good:")
    errors.print(f"  {program()} up", soft_wrap=True)


@contextmanager
def _running(options: LocalOptions) -> Iterator[Local]:
    """Everything up and ready, and ended in order afterwards."""
    from serinette.local import Local  # noqa: PLC0415  # as heavy as a server, which the other commands are not

    view = ProcessView()
    try:
        with Local(options, view.show) as local:
            local.wait_ready()
            view.close()
            yield local
    finally:
        view.close()


_MODULE = "gpu_worker.engine.ace_step.conversion"


def convert(
    source: Annotated[
        Path, typer.Argument(help="Directory of the checkpoint, or of ACE-Step's main repository.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(help="New directory for what is made of it.", show_default=False)],
    variant: Annotated[
        str | None, typer.Option(help="Which checkpoint of a repository that holds several, e.g. acestep-v15-turbo.")
    ] = None,
    parts: Annotated[
        Path | None,
        typer.Option(help="ACE-Step's main repository, for a checkpoint that comes without `vae` and text encoder."),
    ] = None,
) -> None:
    """Convert a checkpoint from ACE-Step's own layout to the layout that workers load.

    Download first: `hf download ACE-Step/Ace-Step1.5 --local-dir DIR`.
    """
    require_server("converting a checkpoint")
    options = [*(("--variant", variant) if variant else ()), *(("--parts", str(parts)) if parts else ())]
    command = [sys.executable, "-m", _MODULE, str(source), str(out), *options]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
