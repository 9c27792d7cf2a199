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

from gpu_worker.engine.memory.plan import Line

# Two sizes make a line. Long enough that what does not grow with the song's length is small.
_SHORT_FRAMES, _LONG_FRAMES = 256, 512


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


def line_of(work: Callable[[int], object]) -> Line:
    """Bytes over latent frames of `work`, which is called with a number of them, within `without_memory`."""
    short, long = (_peak(work, frames) for frames in (_SHORT_FRAMES, _LONG_FRAMES))
    per_frame = (long - short) / (_LONG_FRAMES - _SHORT_FRAMES)
    return Line(max(0.0, short - per_frame * _SHORT_FRAMES), per_frame)


def _peak(work: Callable[[int], object], frames: int) -> int:
    with Live() as live:
        work(frames)
    peak: int = live.peak
    return peak
