"""`serinette doctor`: what is wrong, in words, and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from serinette.cli.options import AsJson
from serinette.cli.terminal import output

if TYPE_CHECKING:
    from serinette.doctor.cluster import ClusterSeen
    from serinette.doctor.findings import Finding
    from serinette.doctor.queue import QueueSeen
    from serinette.settings import SharedSettings

EXIT_BAD = 1

RedisUrl = Annotated[
    str | None,
    typer.Option(envvar="SERINETTE_REDIS_URL", help="Of Valkey or Redis. None: only the cluster is looked at."),
]
StoreUrl = Annotated[str | None, typer.Option(envvar="SERINETTE_STORE_URL", help="Of the store. None: not looked at.")]
Endpoint = Annotated[str | None, typer.Option("--store-endpoint", envvar="SERINETTE_STORE_ENDPOINT")]
Context = Annotated[str | None, typer.Option(help="Of the kubeconfig; else its current one.")]
Kubeconfig = Annotated[str | None, typer.Option(envvar="KUBECONFIG", help="Else ~/.kube/config.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", help="Where Serinette is, or shall be.")]
KedaNamespace = Annotated[str, typer.Option(help="Where KEDA is.")]
Release = Annotated[str | None, typer.Option(help="Of Helm, where a namespace holds several.")]
Cluster = Annotated[
    bool | None, typer.Option("--cluster/--no-cluster", help="Look at the cluster; by default if one is configured.")
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
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Check queue, store, clocks, cluster, KEDA and GPUs, before and after an install; each line says what to do.

    Exit status: 0 when nothing is bad, else 1. Passwords come from the environment: SERINETTE_REDIS_PASSWORD and
    what the store's cloud reads. In a pod of the release all of it is there already.
    """
    from serinette.doctor.findings import healthy  # noqa: PLC0415  # no other command needs it

    urls = {"redis_url": redis_url, "store_url": store_url, "store_endpoint": store_endpoint}
    seen = None
    if _wanted(cluster, context, kubeconfig):
        from serinette.doctor.cluster import Place, look_at_cluster  # noqa: PLC0415  # of the cluster extra

        seen = look_at_cluster(Place(namespace, context, kubeconfig), keda_namespace, release)
    findings = _findings({name: value for name, value in urls.items() if value is not None}, seen)
    well = healthy(findings, strict=strict)
    if as_json:
        output.print_json(json.dumps({"healthy": well, "findings": [finding.as_json() for finding in findings]}))
    else:
        _show(findings)
    if not well:
        raise typer.Exit(EXIT_BAD)


def _wanted(asked: bool | None, context: str | None, kubeconfig: str | None) -> bool:
    """Whether there is a cluster to look at: asked for, or configured and its client installed."""
    from importlib.util import find_spec  # noqa: PLC0415  # as in `doctor`

    if asked is not None:
        return asked
    if find_spec("kubernetes") is None:
        return False
    from serinette.doctor.cluster import configured  # noqa: PLC0415  # of the cluster extra

    return context is not None or configured(kubeconfig)


def _findings(urls: Mapping[str, str], seen: ClusterSeen | None) -> list[Finding]:
    from serinette.doctor.machine import judge_machine, look_at_machine  # noqa: PLC0415  # as in `doctor`
    from serinette.settings import SharedSettings, read  # noqa: PLC0415  # of the server extra

    settings = read(SharedSettings, **urls)
    findings: list[Finding] = []
    queue = _queue(settings, findings) if "redis_url" in urls else None
    if "store_url" in urls:
        from serinette.doctor.store import judge_store, look_at_store  # noqa: PLC0415  # of the server extra

        findings += judge_store(look_at_store(settings))
    if seen is None:
        return [*findings, *judge_machine(look_at_machine())]
    return [*findings, *_of_cluster(settings, queue, seen)]


def _queue(settings: SharedSettings, findings: list[Finding]) -> QueueSeen:
    from serinette.doctor.queue import judge_queue, look_at_queue  # noqa: PLC0415  # of the server extra

    queue = look_at_queue(settings)
    findings += judge_queue(queue)
    return queue


def _of_cluster(settings: SharedSettings, queue: QueueSeen | None, seen: ClusterSeen) -> list[Finding]:
    from serinette.doctor import nodes, pods, scaling  # noqa: PLC0415  # of the cluster extra

    findings = [
        *nodes.judge_cluster(seen),
        *nodes.judge_keda(seen),
        *nodes.judge_gpus(seen),
        *nodes.judge_storage(seen),
    ]
    findings += pods.judge_pods(seen)
    reached = queue is not None and queue.trouble is None
    counts = scaling.count_keys(settings, scaling.rules_of(seen)) if reached else {}
    return [*findings, *scaling.judge_scaling(seen, queue, counts)]


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
