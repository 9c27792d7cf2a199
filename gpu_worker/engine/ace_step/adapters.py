"""LoRA adapters: downloaded and loaded at the first song that asks for one, and as many kept as there is room for."""

from __future__ import annotations

import json
import logging
import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusers import AceStepPipeline
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open
from torch import nn

from serinette.errors import ConfigurationError, Unsupported

if TYPE_CHECKING:
    from peft.tuners.tuners_utils import BaseTunerLayer

log = logging.getLogger(__name__)

_UNKNOWN = ("", 0.0)
Locate = Callable[[str, Callable[[], object]], Path]


class Adapters:
    """The adapters of one pipeline, by the names that jobs ask for. `locate` downloads one's directory."""

    def __init__(self, pipe: AceStepPipeline, published: Mapping[str, str], locate: Locate, most: int) -> None:
        self._pipe = pipe
        self._published = published
        self._locate = locate
        self._most = most
        self._loaded: OrderedDict[str, float] = OrderedDict()  # own strength, by name; the oldest use first
        self._active: tuple[str, float] | None = None
        self._away: list[tuple[nn.Module, str, BaseTunerLayer]] = []  # PEFT's layers, with their parents and names

    def check(self, name: str) -> None:
        """Raise Unsupported unless the operator published an adapter under this name."""
        if name not in self._published:
            published = ", ".join(sorted(self._published))
            known = f"published here are {published}" if published else "none is published here"
            raise Unsupported(f"lora: {name} is not known; {known}; leave it out", field="lora")

    def use(self, name: str | None, scale: float, alive: Callable[[], object] = lambda: None) -> None:
        """Have the next songs generated with this adapter at this strength; without any for None or a strength of 0.

        `alive` is called now and then while one is downloaded, which may take longer than an engine may be silent.

        Raises:
            Unsupported: it is not published, or does not fit this checkpoint.
            StoreUnavailable: the store that holds it does not answer.
        """
        wanted = None if name is None or scale == 0 else (name, scale)
        if wanted == self._active:
            return
        self._active = _UNKNOWN  # loading makes the new one active, and a failure any
        self._put_back()
        if wanted is None:
            self._take_away()
        else:
            self._load(wanted[0], alive)
            self._pipe.set_adapters([wanted[0]], [scale * self._loaded[wanted[0]]])
        self._active = wanted

    def _take_away(self) -> None:
        """Put the checkpoint's own layers where PEFT put its: graphs that were compiled of them are good again."""
        from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415  # without a LoRA no PEFT is needed

        self._away = [
            (parent, name, layer)
            for parent in self._pipe.transformer.modules()
            for name, layer in parent.named_children()
            if isinstance(layer, BaseTunerLayer)
        ]
        for parent, name, layer in self._away:
            setattr(parent, name, layer.get_base_layer())

    def _put_back(self) -> None:
        """PEFT finds its layers in the model, to change and to delete them."""
        for parent, name, layer in self._away:
            setattr(parent, name, layer)
        self._away = []

    def _load(self, name: str, alive: Callable[[], object]) -> None:
        self.check(name)
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return
        try:
            directory = self._locate(self._published[name], alive)
            weights = weights_in(directory)
            self._pipe.load_lora_weights(directory, weight_name=weights.name, adapter_name=name, use_safetensors=True)
        except (ConfigurationError, OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            self._drop(name)
            reason = str(error).strip().partition("\n")[0][:300]
            log.exception("the LoRA %s cannot be loaded from %s", name, self._published[name])
            raise Unsupported(
                f"lora: {name} cannot be loaded beside this checkpoint ({reason}); leave it out, and report "
                "it to the operator",
                field="lora",
            ) from error
        self._loaded[name] = own_strength(directory, weights)
        log.info("loaded the LoRA %s: %s", name, weights)
        while len(self._loaded) > self._most:
            self._drop(next(iter(self._loaded)))

    def _drop(self, name: str) -> None:
        self._loaded.pop(name, None)
        if any(name in names for names in self._pipe.get_list_adapters().values()):
            self._pipe.delete_adapters(name)


def weights_in(directory: Path) -> Path:
    """The one safetensors file of an adapter. Raises ConfigurationError when there is none, or a choice."""
    found = sorted(directory.glob("*.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConfigurationError(f"{directory.name}: must hold exactly one .safetensors file; found {names}")
    return found[0]


def own_strength(directory: Path, weights: Path) -> float:
    """`alpha / r` of an adapter that PEFT saved, or alpha / sqrt(r) of a rank-stabilised one.

    diffusers does not read PEFT's `adapter_config.json` and takes alpha = r, so that such an adapter would be used at
    another strength than it was trained at. What it reads itself, inside the weights' file, it heeds: 1 for those.
    Formula: PEFT, `LoraLayer.set_scale`.
    """
    with safe_open(weights, framework="pt") as file:
        if LORA_ADAPTER_METADATA_KEY in (file.metadata() or {}):
            return 1.0
    try:
        config: dict[str, Any] = json.loads((directory / "adapter_config.json").read_text())
        rank, alpha = float(config["r"]), float(config["lora_alpha"])
    except (OSError, ValueError, KeyError, TypeError):
        return 1.0
    if rank <= 0:
        return 1.0
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
