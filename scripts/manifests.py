"""Render the chart into k8s/, as plain manifests for kubectl.

python scripts/manifests.py            # write
python scripts/manifests.py --check    # fail if k8s/ differs from what the chart renders
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from scripts.chart_tools import CHART, ROOT, run, template_command

PLAIN = ROOT / "k8s"
NAMESPACE = "serinette"
VALUES = CHART / "ci" / "k8s-values.yaml"

# A file for each component, by the objects' labels; some kinds have their own.
_FILES = {"gateway", "controller", "worker", "valkey", "seaweedfs", "settings"}
_CLUSTERED = {"ClusterRole", "ClusterRoleBinding", "ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
_HEAD = "# Rendered from charts/serinette by `make manifests`: change the chart, not this.\n"
_HELMS = ("app.kubernetes.io/managed-by", "helm.sh/chart")


def rendered() -> dict[str, str]:
    """File names and texts of k8s/, but for its README."""
    files: dict[str, list[dict[str, Any]]] = {}
    for found in yaml.safe_load_all(run(template_command([VALUES]))):
        if found and "helm.sh/hook" not in found["metadata"].get("annotations", {}):
            files.setdefault(_file(found), []).append(_plain(found))
    files["namespace.yaml"] = [_namespace()]
    texts = {name: _HEAD + yaml.safe_dump_all(objects, sort_keys=False) for name, objects in sorted(files.items())}
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(texts),
    }
    texts["kustomization.yaml"] = _HEAD + yaml.safe_dump(kustomization, sort_keys=False)
    return texts


def _file(found: dict[str, Any]) -> str:
    if found["kind"] == "NetworkPolicy":
        return "networkpolicies.yaml"
    if found["apiVersion"].startswith("keda.sh/"):
        return "keda.yaml"
    component = found["metadata"]["labels"]["app.kubernetes.io/component"]
    if component not in _FILES:
        raise SystemExit(f"{found['kind']} {found['metadata']['name']}: no file for component {component}")
    return f"{component}.yaml"


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    labels = {name: value for name, value in found["metadata"]["labels"].items() if name not in _HELMS}
    namespace = {} if found["kind"] in _CLUSTERED else {"namespace": NAMESPACE}
    metadata = {**found["metadata"], **namespace, "labels": labels}
    return {**found, "metadata": metadata}


def _namespace() -> dict[str, Any]:
    enforced = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": enforced}}


def drift(texts: dict[str, str], directory: Path) -> list[str]:
    """Differences between k8s/ and what the chart renders."""
    there = {path.name: path.read_text() for path in directory.glob("*.yaml")}
    differences = [f"{name}: is not rendered any more" for name in sorted(there.keys() - texts.keys())]
    differences += [f"{name}: is missing" for name in sorted(texts.keys() - there.keys())]
    differences += [f"{name}: differs" for name in sorted(texts.keys() & there.keys()) if texts[name] != there[name]]
    return differences


def main(arguments: list[str]) -> int:
    """Write k8s/, or compare it."""
    texts = rendered()
    if arguments == ["--check"]:
        differences = drift(texts, PLAIN)
        print(
            "\n".join([*differences, "run `make manifests`"])
            if differences
            else f"{PLAIN.name}/ is what the chart renders"
        )
        return 1 if differences else 0
    for path in PLAIN.glob("*.yaml"):
        path.unlink()
    for name, text in texts.items():
        (PLAIN / name).write_text(text)
    print(f"wrote {len(texts)} files to {PLAIN.name}/")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
