"""How much memory a checkpoint's parts need while they work, measured without memory: on torch's `meta` device."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import AceStepTransformer1DModel, AutoencoderOobleck
from safetensors import safe_open
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_worker.engine.memory import Line, Need
from gpu_worker.engine.pipeline import MAX_LYRIC_TOKENS, MAX_TEXT_TOKENS
from serinette.errors import ConfigurationError

# Two sizes make a line. Long enough that what does not grow with the song's length is small.
_SHORT_FRAMES, _LONG_FRAMES = 256, 512
# Condition tokens of the longest text; timbre adds one.
_TOKENS = MAX_TEXT_TOKENS + MAX_LYRIC_TOKENS + 1


class Live(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Counts the bytes of all tensors that were made under it and live; `peak` is the most there were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self.peak = 0
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401  # whatever the operator gives
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        made = func(*args, **(kwargs or {}))
        for tensor in _tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:  # else a view, of a weight perhaps
                self._sizes[storage._cdata] = StorageWeakRef(storage), storage.nbytes()  # type: ignore[no-untyped-call]  # likewise
        self._sizes = {key: held for key, held in self._sizes.items() if not _gone(held[0])}
        self.peak = max(self.peak, sum(size for _, size in self._sizes.values()))
        return made


def need_of(directory: Path, dtype: torch.dtype) -> Need:
    """What the checkpoint in `directory` needs when it is loaded as `dtype`."""
    parts = [path for path in directory.iterdir() if path.is_dir() and not path.name.startswith(".")]
    sizes = [_weights_bytes(part, dtype) for part in parts]
    transformer, vae = (json.loads((directory / part / "config.json").read_text()) for part in ("transformer", "vae"))
    frames_per_s = vae["sampling_rate"] / math.prod(vae["downsampling_ratios"])
    return Need(
        weights_bytes=sum(sizes),
        largest_part_bytes=max(sizes, default=0),
        transformer=transformer_line(transformer, dtype),
        decoder=decoder_line(vae, dtype),
        text_bytes=text_bytes(transformer, dtype),
        frames_per_s=frames_per_s,
        max_duration_s=_longest_frames(directory) / frames_per_s,
        guidance=not transformer.get("is_turbo"),
    )


def _longest_frames(directory: Path) -> int:
    """As many as the silence that the pipeline starts from has."""
    for path in (directory / "condition_encoder").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if "silence_latent" in file.keys():  # noqa: SIM118  # no dict
                return int(file.get_slice("silence_latent").get_shape()[1])
    raise ConfigurationError(f"{directory}: its condition encoder has no silence_latent; fetch it again")


def _weights_bytes(part: Path, dtype: torch.dtype) -> int:
    numbers = 0
    for path in part.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            # A norm is folded into its weight at the load.
            names = [name for name in file.keys() if not name.endswith("weight_g")]  # noqa: SIM118  # no dict
            numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    return numbers * dtype.itemsize


def text_bytes(config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Keys and values of the longest text, kept for all layers from a song's first step to its last."""
    with _nowhere(dtype):
        module = AceStepTransformer1DModel.from_config(config)
    heads = sum(int(layer.cross_attn.kv_heads * layer.cross_attn.head_dim) for layer in module.layers)
    return 2 * heads * _TOKENS * dtype.itemsize


def transformer_line(config: Mapping[str, Any], dtype: torch.dtype) -> Line:
    """One song's share of a denoising step, with the keys and values that are kept, without weights and guidance."""
    with _nowhere(dtype):
        module = AceStepTransformer1DModel.from_config(config).eval()
        latents = module.config.audio_acoustic_hidden_dim
        width = module.condition_embedder.in_features

        def step(frames: int) -> object:
            time = torch.empty(1)
            return module(
                torch.empty(1, frames, latents),
                time,
                time,
                torch.empty(1, _TOKENS, width),
                torch.empty(1, frames, module.config.in_channels - latents),
                return_dict=False,
            )

        line = _line(step)
    return Line(line.fixed + text_bytes(config, dtype), line.per_frame)


def decoder_line(config: Mapping[str, Any], dtype: torch.dtype) -> Line:
    """Decoding one window of a song, without weights."""
    with _nowhere(dtype):
        vae = AutoencoderOobleck.from_config(config).eval()
        return _line(lambda frames: vae.decoder(torch.empty(1, vae.config.decoder_input_channels, frames)))


def _gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]  # likewise


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def _nowhere(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def _line(work: Callable[[int], object]) -> Line:
    short, long = (_peak(work, frames) for frames in (_SHORT_FRAMES, _LONG_FRAMES))
    per_frame = (long - short) / (_LONG_FRAMES - _SHORT_FRAMES)
    return Line(max(0.0, short - per_frame * _SHORT_FRAMES), per_frame)


def _peak(work: Callable[[int], object], frames: int) -> int:
    with Live() as live:
        work(frames)
    peak: int = live.peak
    return peak
