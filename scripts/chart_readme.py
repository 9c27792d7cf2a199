"""Write the chart's README, or check that it is current: what an install asks of a cluster, and every value.

python -m scripts.chart_readme            writes charts/serinette/README.md
python -m scripts.chart_readme --check    compares with it

The first part is counted in what helm renders, the second read from values.yaml and its schema.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import yaml

from scripts.chart_tools import CHART, CommandFailed, run, template_command

PAGE = CHART / "README.md"
_VALUES = CHART / "ci" / "default-values.yaml"
_KEY = re.compile(r"^( *)([A-Za-z]+):(.*)$")
_UNITS = {"m": Decimal("0.001"), **{f"{name}i": Decimal(1024**power) for power, name in enumerate("KMG", 1)}}
_CLUSTERED = {
    *("ClusterRole", "ClusterRoleBinding", "PriorityClass"),
    *("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"),
}

_HEAD = """# The chart serinette

Serverless music generation on Kubernetes. How to install and operate it: [docs/operator.md](../../docs/operator.md).
This page is written by `make manifests`, from the chart itself: change values.yaml and its schema, not this.

"""


@dataclass(frozen=True, slots=True)
class Value:
    """One value, or a section of values, as values.yaml explains it."""

    path: tuple[str, ...]
    words: str
    section: bool


def explained(text: str, values: Mapping[str, Any]) -> Iterator[Value]:
    """All values of values.yaml in their order."""
    path: list[str] = []
    words: list[str] = []
    for line in text.splitlines():
        key = _KEY.match(line)
        if line.lstrip().startswith("# "):
            words.append(line.strip().removeprefix("# "))
        elif key is None:
            words.clear()
        else:
            del path[len(key[1]) // 2 :]
            path.append(key[2])
            found: Any = values
            for name in path:
                found = found[name]
            section = isinstance(found, dict) and not key[3].strip() and path[-1] != "resources"
            if words or section:
                yield Value(tuple(path), " ".join(words), section)
            words.clear()


def schema_of(path: tuple[str, ...], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the schema says of a value."""
    found: Any = schema
    for name in (*path, ""):
        if "$ref" in found:
            found = schema["$defs"][found["$ref"].rpartition("/")[2]]
        found = found["properties"][name] if name else found
    return dict(found)


def type_of(found: Mapping[str, Any]) -> str:
    """A value's type in a few words."""
    if "enum" in found:
        return ", ".join(f"`{each}`" if each else "empty" for each in found["enum"])
    kinds = found.get("type", "any")
    words = " or ".join(kinds if isinstance(kinds, list) else [kinds])
    least, most = (found.get(name) for name in ("minimum", "maximum"))
    return words + (f", {least} to {most}" if None not in (least, most) else f", at least {least}" if least else "")


def table(values: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """Every value: its default, its type, what it is."""
    lines: list[str] = []
    for value in explained((CHART / "values.yaml").read_text(), values):
        name = ".".join(value.path)
        if len(value.path) == 1:
            lines += ["", f"### {name}", "", *([value.words, ""] if value.section and value.words else [])]
            lines += ["| value | default | type | meaning |", "|---|---|---|---|"]
        if not value.section:
            default: Any = values
            for part in value.path:
                default = default[part]
            meaning = value.words.replace("|", "\\|")
            kind = type_of(schema_of(value.path, schema))
            lines.append(f"| `{name}` | `{json.dumps(default)}` | {kind} | {meaning} |")
        elif len(value.path) > 1 and value.words:
            lines.append(f"| **`{name}`** | | | {value.words} |")
    return "\n".join(lines).strip() + "\n"


def number(quantity: object) -> Decimal:
    """A quantity of Kubernetes."""
    found = re.fullmatch(r"([\d.]+)(m|Ki|Mi|Gi|)", str(quantity))
    if found is None:
        raise ValueError(f"{quantity!r}: a unit that is not read here")
    return Decimal(found[1]) * _UNITS.get(found[2], Decimal(1))


def _asked(objects: list[dict[str, Any]], resource: str) -> Decimal:
    total = Decimal(0)
    for each in objects:
        (container,) = each["spec"]["template"]["spec"]["containers"]
        total += int(each["spec"].get("replicas", 1)) * number(container["resources"]["requests"][resource])
    return total


def asks() -> str:
    """What an install with the default values asks of a cluster."""
    objects = [each for each in yaml.safe_load_all(run(template_command([_VALUES]))) if each]
    installed = [each for each in objects if "helm.sh/hook" not in each["metadata"].get("annotations", {})]
    kinds = Counter(each["kind"] for each in installed)
    workloads = [each for each in installed if each["kind"] in {"Deployment", "StatefulSet"}]
    workers = [each for each in workloads if "serinette.dev/pool" in each["metadata"]["labels"]]
    always = [each for each in workloads if each not in workers]
    claims = [claim for each in workloads for claim in each["spec"].get("volumeClaimTemplates", [])]
    volumes = sum(number(claim["spec"]["resources"]["requests"]["storage"]) for claim in claims)
    clustered = sorted(_CLUSTERED & kinds.keys())
    at_rest = sum(int(each["spec"].get("replicas", 1)) for each in always)
    needed = yaml.safe_load((CHART / "Chart.yaml").read_text())["kubeVersion"]
    gib = Decimal(1024**3)
    rows = [
        ("objects", f"{len(installed)}: " + ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))),
        (
            "cluster-wide objects",
            ", ".join(clustered) or "none (`cluster.readNodes`, `cluster.protect` and `containers` add some)",
        ),
        ("pods at rest", f"{at_rest}, and `min` of each pool"),
        ("requests at rest", f"{_asked(always, 'cpu') * 1000:.0f}m CPU, {_asked(always, 'memory') / gib:.2f} GiB"),
        ("requests of each worker", f"{_asked(workers, 'cpu'):f} CPU, {_asked(workers, 'memory') / gib:.0f} GiB"),
        ("volumes", f"{len(claims)} claims, {volumes / gib:.0f} GiB (`valkey.persistence`, `seaweedfs.persistence`)"),
        ("images", "3, all from `global.imageRegistry`"),
        ("needs", f"Kubernetes {needed}, KEDA 2.20 or later"),
    ]
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {text} |\n" for name, text in rows)


def rendered() -> str:
    """The page."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    parts = ["## What an install asks for", "", "With the default values, counted in what helm renders:", "", asks()]
    return _HEAD + "\n".join([*parts, "## Values", "", table(values, schema)])


def check() -> str:
    """Raises CommandFailed when the page differs from what would be written."""
    text = rendered()
    if not PAGE.exists() or PAGE.read_text() != text:
        raise CommandFailed(f"{PAGE.name} of the chart differs from the chart; run `make manifests`")
    return f"{text.count('| `')} values"


def main(arguments: list[str]) -> int:
    """Write the page, or compare it."""
    if arguments == ["--check"]:
        print(check())
    else:
        PAGE.write_text(rendered())
        print(f"wrote {PAGE.name} of the chart")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
