"""What the rendered chart says of a pool's scaling: its ScaledObject, with what HPA and KEDA fill in themselves."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from serinette.errors import ConfigurationError
from tools.scaling.formula import Formula

Manifest = Mapping[str, Any]

# HPA's own, where the ScaledObject says nothing (kubernetes: autoscaling/v2 defaults.go).
HPA_SYNC_S = 15.0
HPA_TOLERANCE = 0.1
_UP = {
    "stabilizationWindowSeconds": 0,
    "policies": [
        {"type": "Percent", "value": 100, "periodSeconds": 15},
        {"type": "Pods", "value": 4, "periodSeconds": 15},
    ],
}
_DOWN = {"stabilizationWindowSeconds": 300, "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
_PER_WORKER = re.compile(r"ceil\(\(high \+ normal \+ low\) / (\d+)\)")


@dataclass(frozen=True, slots=True)
class Policy:
    """One scaling policy of an HPA: `value` pods or percent in `period_s`."""

    type: Literal["Pods", "Percent"]
    value: int
    period_s: int


@dataclass(frozen=True, slots=True)
class Direction:
    """`scaleUp` or `scaleDown`."""

    stabilization_s: int
    policies: tuple[Policy, ...]
    select: Literal["Max", "Min", "Disabled"] = "Max"
    tolerance: float = HPA_TOLERANCE

    @classmethod
    def read(cls, given: Mapping[str, Any] | None, default: Mapping[str, Any]) -> Direction:
        """From the behaviour of an HPA, with Kubernetes' defaults for what is left out."""
        said = {**default, **{name: value for name, value in (given or {}).items() if value is not None}}
        policies = tuple(
            Policy(each["type"], int(each["value"]), int(each["periodSeconds"])) for each in said["policies"]
        )
        tolerance = float(said.get("tolerance", HPA_TOLERANCE))
        return cls(int(said["stabilizationWindowSeconds"]), policies, said.get("selectPolicy", "Max"), tolerance)


@dataclass(frozen=True, slots=True)
class Rule:
    """How one pool is scaled."""

    pool: str
    formula: Formula
    triggers: Mapping[str, str]  # name in the formula: key in Redis
    min_workers: int
    max_workers: int
    target: float
    polling_s: float
    cooldown_s: float
    up: Direction
    down: Direction
    address: str = ""  # of Redis, as the triggers give it
    database: int = 0

    @property
    def jobs_per_worker(self) -> int | None:
        """J, where the formula is the chart's own."""
        found = _PER_WORKER.search(self.formula.text)
        return int(found[1]) if found else None

    def with_jobs_per_worker(self, jobs: int) -> Rule:
        """The same with another J. Raises ConfigurationError for a formula that has none."""
        if self.jobs_per_worker is None:
            raise ConfigurationError(
                f"the formula of pool {self.pool} is not the chart's own ({self.formula.text!r}): there is no J to vary"
            )
        text = _PER_WORKER.sub(f"ceil((high + normal + low) / {jobs})", self.formula.text)
        return replace(self, formula=Formula.parse(text))


def read_rule(scaled_object: Manifest) -> Rule:
    """What a ScaledObject says. Raises ConfigurationError where it is none of this chart's kind."""
    name = scaled_object["metadata"]["name"]
    try:
        spec = scaled_object["spec"]
        modifiers = spec["advanced"]["scalingModifiers"]
        triggers = {each["name"]: each["metadata"]["listName"] for each in spec["triggers"]}
        first = spec["triggers"][0]["metadata"]
        behavior = spec["advanced"].get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
        return Rule(
            pool=scaled_object["metadata"].get("labels", {}).get("serinette.dev/pool", name),
            formula=Formula.parse(modifiers["formula"]),
            triggers=triggers,
            min_workers=int(spec.get("minReplicaCount", 0)),
            max_workers=int(spec.get("maxReplicaCount", 100)),
            target=float(modifiers["target"]),
            polling_s=float(spec.get("pollingInterval", 30)),
            cooldown_s=float(spec.get("cooldownPeriod", 300)),
            up=Direction.read(behavior.get("scaleUp"), _UP),
            down=Direction.read(behavior.get("scaleDown"), _DOWN),
            address=str(first.get("address", "")),
            database=int(first.get("databaseIndex", 0)),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"ScaledObject {name} has no formula over Redis triggers as this chart writes them ({error!r})"
        ) from error


def read_rules(manifests: Iterable[Manifest]) -> dict[str, Rule]:
    """The rule of each pool among rendered manifests."""
    rules = [read_rule(each) for each in manifests if each.get("kind") == "ScaledObject"]
    return {rule.pool: rule for rule in rules}
