"""Texts that were encoded before: variations, sweeps over seeds and retries have theirs once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

# Of the full-size encoder the longest text takes 2 MB in bf16.
_MOST_TEXTS = 32


class Texts:
    """A text encoder's answers, by token. `encoded` counts what it was asked for all the same.

    Only what was encoded by itself is kept and given: beside longer texts the same one comes out a few bits different,
    and a song sung alone is to have the same bits each time.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.encoded = 0

    @classmethod
    def remembered_by(cls, encoder: nn.Module) -> Texts:
        """Have an encoder, wherever it was placed, remember."""
        texts = cls(encoder.forward)
        encoder.forward = texts.encode
        return texts

    def encode(self, input_ids: Tensor, **arguments: Any) -> Any:  # noqa: ANN401  # as transformers'
        """Hidden states [texts, tokens, dims] of token ids [texts, tokens]."""
        rows = {tuple(row) for row in input_ids.tolist()}
        if len(rows) > 1 or arguments:
            self.encoded += len(input_ids)
            return self._forward(input_ids=input_ids, **arguments)
        (row,) = rows
        if row not in self._known:
            self.encoded += 1
            self._known[row] = self._forward(input_ids=input_ids[:1]).last_hidden_state
            if len(self._known) > _MOST_TEXTS:
                self._known.popitem(last=False)
        self._known.move_to_end(row)
        return BaseModelOutput(last_hidden_state=self._known[row].expand(len(input_ids), -1, -1))
