"""Everything about the chart that can be checked without a cluster: `make chart`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts import alerts, chart_readme, manifests
from scripts.chart_tools import (
    CHART,
    ROOT,
    CommandFailed,
    ToolMissing,
    helm,
    kubectl,
    python_tool,
    resource_schemas,
    run,
    template_command,
)

VALUES = sorted((CHART / "ci").glob("*-values.yaml"))
DOCKERFILES = ("api/Dockerfile", "gpu_worker/Dockerfile")
# What a person may mistype; each must be refused by the schema, not be without effect.
WRONG = (
    'nonsense="x"',
    "gateway.replica=2",
    'pools=[{"name": "a", "gpus": 1}]',
    'pools=[{"name": "a", "gpu": {"resource": "nvidia.com/gpu", "count": 2}}]',
    'pools=[{"name": "Not A Name"}]',
    'store.url="file:///tmp"',
    'redis.prefix="a:b"',
    'settings.retentionS="a week"',
    'images.gateway.digest="sha256:abc"',
    "auth.enable=true",
    'auth.tenants={"acme": {"jobs": 1}}',
    'auth.keys=[{"id": "3f9c2a7be014", "tenant": "acme", "key": "srn_secret"}]',
    'redis.topology="ring"',
    'redis.sentinel.addresses=["sentinel"]',
    "metrics.podMonitor.interval=30",
    'webhooks.networks=["inside"]',
    'poolDefaults.spoolMaxBytes="2Gi"',
    "valkey.extra={}",
    'loras={"of mine": "s3://models/lora"}',
    'containers.images=["https://registry.example.com/a"]',
    """containers.images=["registry.example.com/a' || true || '"]""",
    'containers.labels={"a": "b\\nc"}',
    'containers.machines={"big": {"gpu": 1}}',
    'containers.priorityClasses.names={"urgent": "a"}',
    "containers.ceilings.gpu=1",
    "gateway.autoscaling.minReplicas=2",
    'gateway.ingress.path="/a/../b c"',
    "gateway.service.nodePort=70000",
    'gateway.service.loadBalancerSourceRanges=["inside"]',
    'valkey.persistence.claim="x"',
)


def lint() -> str:
    """`helm lint --strict`, with every ci/ values file."""
    for path in VALUES:
        run([helm(), "lint", "--strict", "--quiet", CHART, "--values", path])
    return f"{len(VALUES)} values files"


def refusals() -> str:
    """The schema refuses what it should."""
    for setting in WRONG:
        done = subprocess.run(template_command([VALUES[0]], [setting]), check=False, capture_output=True, text=True)
        if done.returncode == 0 or "values don't meet the specifications" not in done.stderr:
            raise CommandFailed(f"{setting} was not refused by the schema:\n{done.stderr}")
    return f"{len(WRONG)} wrong values"


def schemas(files: list[Path]) -> str:
    """Kubernetes' own schemas, unknown fields refused."""
    run([python_tool("kubernetes-validate"), "--strict", *files])
    return f"{len(files)} renderings"


def resources(files: list[Path]) -> str:
    """The schemas of KEDA and of the Prometheus operator."""
    return run(["node", ROOT / "scripts" / "resource_validate.mjs", *files], cwd=resource_schemas()).strip()


def scan(files: list[Path]) -> str:
    """checkov; what it may leave out stands in charts/serinette/.checkov.yaml."""
    arguments = [part for path in files for part in ("--file", path)]
    run([python_tool("checkov"), "--config-file", CHART / ".checkov.yaml", *arguments])
    return f"{len(files)} renderings"


def dockerfiles() -> str:
    """Both Dockerfiles, by hadolint."""
    run([python_tool("hadolint"), "--no-color", *(ROOT / name for name in DOCKERFILES)])
    return f"{len(DOCKERFILES)} files"


def plain() -> str:
    """k8s/ is what the chart renders, and kustomize takes it."""
    differences = manifests.drift(manifests.rendered(), manifests.PLAIN)
    if differences:
        raise CommandFailed("\n".join([*differences, "run `make manifests`"]))
    return f"{run([kubectl(), 'kustomize', manifests.PLAIN]).count('kind: ')} kinds named"


def main() -> int:
    """Run every check; those whose tools need what this machine lacks are skipped by name, but never by CI."""
    failed = False
    lenient = "CI" not in os.environ
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory) / path.name for path in VALUES]
        for path, file in zip(VALUES, files, strict=True):
            file.write_text(run(template_command([path])))
        steps: list[tuple[str, Callable[[], str]]] = [
            ("helm lint --strict", lint),
            ("schema refusals", refusals),
            ("kubernetes-validate --strict", lambda: schemas(files)),
            ("KEDA's and the Prometheus operator's schemas", lambda: resources(files)),
            ("checkov", lambda: scan(files)),
            ("promtool", alerts.check),
            ("hadolint", dockerfiles),
            ("k8s/", plain),
            ("README.md of the chart", chart_readme.check),
        ]
        for name, step in steps:
            try:
                print(f"ok       {name}: {step()}")
            except ToolMissing as error:
                failed = failed or not lenient
                print(f"{'skipped' if lenient else 'MISSING'}  {name}: {error}")
            except CommandFailed as error:
                failed = True
                print(f"FAILED   {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
