"""Looking things up in what helm renders."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import yaml


class Manifest(dict[str, Any]):
    """One object."""

    @property
    def kind(self) -> str:
        return str(self["kind"])

    @property
    def name(self) -> str:
        return str(self["metadata"]["name"])

    @property
    def pod(self) -> dict[str, Any] | None:
        """The pod that it is or makes."""
        spec = self.get("spec") or {}
        if self.kind == "Pod":
            return dict(spec)
        return spec["template"]["spec"] if "template" in spec else None

    @property
    def container(self) -> dict[str, Any]:
        assert self.pod is not None, f"{self.kind} {self.name} has no pod"
        (container,) = self.pod["containers"]
        return dict(container)

    @property
    def env(self) -> dict[str, Any]:
        """Environment by name: a value, or where it comes from."""
        return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in self.container["env"]}


def manifests(text: str) -> tuple[Manifest, ...]:
    """The objects of a rendering. libyaml's loader: the one in Python takes longer than helm."""
    return tuple(Manifest(found) for found in yaml.load_all(text, yaml.CSafeLoader) if found)


class Render(Protocol):
    """Renders a ci/ values file with --set-json settings."""

    def __call__(self, values: str = "default", *settings: str, keda: bool = True) -> tuple[Manifest, ...]: ...


def find(objects: Iterable[Manifest], kind: str, name: str) -> Manifest:
    """The object of this kind whose name ends so."""
    (found,) = (item for item in objects if item.kind == kind and item.name.endswith(name))
    return found


def of_kind(objects: Iterable[Manifest], kind: str) -> list[Manifest]:
    return [item for item in objects if item.kind == kind]
