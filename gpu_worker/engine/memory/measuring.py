"""Bytes that a model's parts take while they work, measured without memory: on torch's `meta` device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpu_worker.engine.memory.plan import Curve

# Two sizes make a line. Long enough that what does not grow with the song's length is small.
_SHORT_FRAMES, _LONG_FRAMES = 256, 512
# Three make a square. So long that what grows with it is more than all else: beyond the longest song (15,000).
_LONGEST_FRAMES = (8_192, 12_288, 16_384)


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


def _gone(storage: StorageWeakRef) -> bool:
    return bool(storage.expired())  # type: ignore[no-untyped-call]  # likewise


def _tensors(tree: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@contextmanager
def without_memory(dtype: torch.dtype) -> Iterator[None]:
    """What is made within is on torch's `meta` device, and of this dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), torch.no_grad():
            yield
    finally:
        torch.set_default_dtype(before)


def line_of(work: Callable[[int], object]) -> Curve:
    """Bytes over latent frames of `work`, which is called with a number of them, within `without_memory`."""
    short, long = (_peak(work, frames) for frames in (_SHORT_FRAMES, _LONG_FRAMES))
    per_frame = (long - short) / (_LONG_FRAMES - _SHORT_FRAMES)
    return Curve(max(0.0, short - per_frame * _SHORT_FRAMES), per_frame)


def square_of(work: Callable[[int], object]) -> Curve:
    """The same of work that takes most for what grows with the square of the frames, in songs that are long."""
    first, second, third = _LONGEST_FRAMES
    one, two, three = (_peak(work, frames) for frames in _LONGEST_FRAMES)
    slope, later_slope = (two - one) / (second - first), (three - two) / (third - second)
    per_square = max(0.0, (later_slope - slope) / (third - first))
    per_frame = max(0.0, slope - per_square * (first + second))
    return Curve(max(0.0, one - (per_frame + per_square * first) * first), per_frame, per_square)


def _peak(work: Callable[[int], object], frames: int) -> int:
    with Live() as live:
        work(frames)
    peak: int = live.peak
    return peak
