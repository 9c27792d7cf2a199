"""`serinette doctor`: what is wrong, in words, and what to do."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from serinette.cli.options import AsJson
from serinette.cli.terminal import EXIT_FAILED, output

if TYPE_CHECKING:
    from serinette.doctor import Finding

RedisUrl = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_REDIS_URL", help="Of Valkey or Redis. None: only the cluster is looked at."),
]
StoreUrl = Annotated[str | None, typer.Option(envvar="SERINETTE_STORE_URL", help="Of the store. None: not checked.")]
Endpoint = Annotated[str | None, typer.Option("--store-endpoint", envvar="SERINETTE_STORE_ENDPOINT")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig; else its current one.")]
Kubeconfig = Annotated[str | None, typer.Option(envvar="KUBECONFIG", help="Else ~/.kube/config.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Where Serinette is, or will be installed.")]
KedaNamespace = Annotated[str, typer.Option(help="Where KEDA is.")]
Release = Annotated[str | None, typer.Option(help="Of Helm, where a namespace holds several.")]
Cluster = Annotated[
    bool | None, typer.Option("--cluster/--no-cluster", help="Look at the cluster; by default if one is configured.")
]
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        envvar="SERINETTE_DATA_DIR",
        help="Of a `serinette up`. Else serinette-data, where one runs or ran and no URL is given.",
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Warnings fail it, too.")]


def doctor(
    redis_url: RedisUrl = None,
    store_url: StoreUrl = None,
    store_endpoint: Endpoint = None,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    namespace: Namespace = "serinette",
    keda_namespace: KedaNamespace = "keda",
    release: Release = None,
    cluster: Cluster = None,
    data_dir: DataDir = None,
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Check a `serinette up` of this directory, or a cluster before and after an install; each line says what to do.

    Of the first: its processes, disk, GPU and checkpoint. Of both: queue, store and clocks. Of a cluster: KEDA, GPUs
    and pods. Exit status: 0 when nothing is bad, else 1. Passwords come from the environment: SERINETTE_REDIS_PASSWORD
    and what the store's cloud reads. In a pod of the release all of it is there already.
    """
    from serinette.doctor import diagnose, healthy  # noqa: PLC0415  # of the server extra
    from serinette.doctor.queue import DoctorSettings  # noqa: PLC0415  # as above
    from serinette.local import last_run  # noqa: PLC0415  # as above
    from serinette.settings import read  # noqa: PLC0415  # as above

    urls = {"redis_url": redis_url, "store_url": store_url, "store_endpoint": store_endpoint}
    given = {name: url for name, url in urls.items() if url is not None}
    here = (data_dir or Path("serinette-data")).absolute() if data_dir or not given else None
    if here and last_run(here) is None:
        if data_dir:
            raise typer.BadParameter(f"no `serinette up` has run in {data_dir}", param_hint="--data-dir")
        here = None
    place = None
    if (cluster or context or not here) and _cluster_wanted(cluster, context, kubeconfig):
        from serinette.doctor.cluster import Place  # noqa: PLC0415  # of the cluster extra

        place = Place(namespace, context, kubeconfig, keda_namespace, release)
    if not (redis_url or store_url or place or here):
        raise typer.BadParameter(
            "nothing to check: no `serinette up` has run in this directory; name its --data-dir, or give --redis-url, "
            "--store-url or a cluster's --context"
        )
    settings = read(DoctorSettings, **given)
    findings = diagnose(settings, queue=redis_url is not None, store=store_url is not None, place=place, data_dir=here)
    well = healthy(findings, strict=strict)
    if as_json:
        output.print_json(data={"healthy": well, "findings": [finding.as_json() for finding in findings]})
    else:
        _show(findings)
    if not well:
        raise typer.Exit(EXIT_FAILED)


def _cluster_wanted(asked: bool | None, context: str | None, kubeconfig: str | None) -> bool:
    """Whether there is a cluster to look at: asked for, or configured and its client installed."""
    if asked is not None or context is not None:
        return asked is not False
    if find_spec("kubernetes") is None:
        return False
    from serinette.doctor.cluster import configured  # noqa: PLC0415  # of the cluster extra

    return configured(kubeconfig)


_MARKS: dict[str, Any] = {
    "ok": "[green]✓[/]",
    "unknown": "[dim]?[/]",
    "warning": "[yellow]![/]",
    "bad": "[bold red]✗[/]",
}


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        place = f"{finding.part}: {finding.check}"
        output.print(f"{_MARKS[finding.level]} [bold]{escape(place)}[/] {escape(finding.message)}", soft_wrap=True)
        if finding.remedy:
            output.print(f"    → {finding.remedy}", markup=False, soft_wrap=True)
    counts = {level: sum(1 for finding in findings if finding.level == level) for level in _MARKS}
    output.print(", ".join(f"{count} {level}" for level, count in counts.items() if count), style="dim")
