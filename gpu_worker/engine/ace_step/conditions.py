"""What the transformer is given at each step: for each song its own text, its own frames and its own source.

Hooks around diffusers' transformer: the stock one attends to all padding, projects the same text anew at every step,
and has one source for all songs and steps.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.modeling_outputs import BaseModelOutput

# Of the full-size encoder the longest text takes 2 MB in bf16.
_MOST_TEXTS = 32


class CrossAttention(AceStepAttnProcessor2_0):  # type: ignore[misc]  # diffusers ships no types
    """Attends to keys and values that were projected before: `encoder_hidden_states` is both, stacked."""

    def __call__(
        self,
        attn: Any,  # noqa: ANN401  # diffusers ships no types
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: object = None,
    ) -> Tensor:
        """Attend; `encoder_hidden_states` as `keys_and_values` gives them, `attention_mask` [songs, 1, 1, tokens]."""
        queries = attn.norm_q(attn.to_q(hidden_states).unflatten(-1, (attn.heads, attn.head_dim)))
        attended = scaled_dot_product_attention(
            queries.transpose(1, 2),
            encoder_hidden_states[0],
            encoder_hidden_states[1],
            attn_mask=attention_mask,
            scale=attn.scaling,
            enable_gqa=attn.heads != attn.kv_heads,
        )
        output: Tensor = attn.to_out[0](attended.transpose(1, 2).flatten(2))
        return output


def keys_and_values(attn: Any, texts: Tensor) -> Tensor:  # noqa: ANN401  # diffusers ships no types
    """[2, songs, heads, tokens, dims] of texts [songs, tokens, dims]."""
    keys, values = (project(texts).unflatten(-1, (attn.kv_heads, attn.head_dim)) for project in (attn.to_k, attn.to_v))
    return torch.stack([attn.norm_k(keys), values]).transpose(2, 3)


class StepConditions:
    """The state of one batch between its first step and its last. `begin` before each.

    Rows of the texts may be more than songs: a song that leaves its source midway has a second text, for the steps
    from then on.
    """

    def __init__(self, transformer: Any) -> None:  # noqa: ANN401  # diffusers ships no types
        self._patch = int(transformer.config.patch_size)
        self._step = 0
        self._whole = 0
        self._frames: tuple[int, ...] = ()
        self._source_steps: tuple[int | None, ...] = ()
        self._behind: Tensor | None = None  # [songs, frames, 1]: True behind a song's end
        self._own: Tensor | None = None  # [songs, 1, 1, tokens]: True for a song's own
        self._texts_mask: Tensor | None = None  # [rows, tokens]: True for a text's own
        self._phase: tuple[tuple[int, ...], bool] | None = None
        self._text_mask: Tensor | None = None
        self._self_masks: dict[bool, Tensor] = {}
        self._keys: dict[int, Tensor] = {}
        self.sourceless: Tensor | None = None  # context [songs, frames, dims] of songs that left their source
        transformer.register_forward_pre_hook(self._before_step, with_kwargs=True)
        transformer.register_forward_hook(self._after_step)
        for number, layer in enumerate(transformer.layers):
            layer.cross_attn.set_processor(CrossAttention())
            layer.register_forward_pre_hook(partial(self._before_layer, number), with_kwargs=True)

    def begin(self, frames: Sequence[int], source_steps: Sequence[int | None], device: torch.device) -> None:
        """The next songs have so many latent frames each, and follow their source for so many steps; None: for all."""
        self._step, self._phase, self.sourceless, self._texts_mask = 0, None, None, None
        self._frames, self._source_steps = tuple(frames), tuple(source_steps)
        self._behind = ~_own(frames, device)[:, :, None] if len(set(frames)) > 1 else None
        tokens = [math.ceil(one / self._patch) for one in frames]
        self._own = _own(tokens, device)[:, None, None, :] if len(set(tokens)) > 1 else None

    def keep_mask(self, mask: Tensor) -> None:
        """The texts' rows, which of their tokens [rows, tokens] are theirs."""
        self._texts_mask = mask.bool()

    def end(self) -> None:
        """Let go of the device's memory."""
        self.sourceless = self._behind = self._own = self._texts_mask = self._text_mask = self._phase = None
        self._keys, self._self_masks = {}, {}

    def _before_step(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        noisy, context, texts = (kwargs[name] for name in ("hidden_states", "context_latents", "encoder_hidden_states"))
        left = [steps is not None and self._step >= steps for steps in self._source_steps]
        self._enter(left, guided=noisy.shape[0] > len(self._frames))
        self._step += 1
        texts = torch.cat([half[self._rows] for half in texts.chunk(noisy.shape[0] // len(self._frames))])
        if self.sourceless is not None and any(left):
            gone = torch.tensor(left, device=context.device)[:, None, None]
            context = torch.where(_repeated(gone, context), _repeated(self.sourceless, context), context)
        if self._behind is not None:
            context = self._cut(context)
        # As the transformer would itself, but compiled it would be another graph for lengths that it has to fill up.
        self._whole = noisy.shape[1]
        odd = -self._whole % self._patch
        if odd:
            noisy, context = (pad(latents, (0, 0, 0, odd)) for latents in (noisy, context))
        return args, {
            **kwargs,
            "hidden_states": noisy,
            "context_latents": context,
            "encoder_hidden_states": texts,
        }

    def _enter(self, left: Sequence[bool], *, guided: bool) -> None:
        """The same texts for the same rows until a song leaves its source, or guidance begins or ends."""
        second = len(self._frames)
        rows = []
        for song, steps in enumerate(self._source_steps):
            rows.append(second if left[song] else song)
            second += steps is not None
        if self._phase == (tuple(rows), guided):
            return
        self._phase, self._rows = (tuple(rows), guided), rows
        self._keys, self._self_masks = {}, {}
        mask = None if self._texts_mask is None else self._texts_mask[rows]
        self._text_mask = (
            None if mask is None or bool(mask.all()) else mask[:, None, None, :].repeat(1 + guided, 1, 1, 1)
        )

    def _before_layer(
        self, number: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if number not in self._keys:
            self._keys[number] = keys_and_values(layer.cross_attn, kwargs["encoder_hidden_states"])
        return args, {
            **kwargs,
            "attention_mask": self._self_mask(kwargs["attention_mask"], kwargs["hidden_states"]),
            "encoder_hidden_states": self._keys[number],
            "encoder_attention_mask": self._text_mask,
        }

    def _self_mask(self, sliding: Tensor | None, hidden: Tensor) -> Tensor | None:
        """A song's own frames, within the window of the layers that have one.

        The window's mask, to be added, says the least number and not minus infinity, so that a frame far behind a
        song's end, which sees nothing, gives nonsense but no NaN.
        """
        if self._own is None:
            return sliding
        windowed = sliding is not None
        if windowed not in self._self_masks:
            own = self._own.repeat(hidden.shape[0] // len(self._own), 1, 1, 1)
            least = torch.finfo(hidden.dtype).min
            self._self_masks[windowed] = own if sliding is None else sliding.masked_fill(~own, least)
        return self._self_masks[windowed]

    def _after_step(self, _module: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        predicted = output[0][:, : self._whole]
        if self._behind is not None:
            predicted = self._cut(predicted)
        return predicted, *output[1:]

    def _cut(self, latents: Tensor) -> Tensor:
        """Zeros behind a song's end: what the transformer fills an odd number of frames up with, and adds nothing to
        the sums over time that guidance takes.
        """
        return latents.masked_fill(_repeated(self._behind, latents), 0)


def _own(lengths: Sequence[int], device: torch.device) -> Tensor:
    return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]


def _repeated(rows: Tensor | None, like: Tensor) -> Tensor:
    """Rows of all songs, once more for the half of a batch that guidance adds."""
    if rows is None:
        raise RuntimeError("there are no rows to repeat")
    return rows.repeat(like.shape[0] // rows.shape[0], 1, 1)


class TextCache:
    """A text encoder's answers, by token. `encoded` counts what it was asked for all the same.

    Only what was encoded by itself is kept and given: beside longer texts the same one comes out a few bits different,
    and a song generated alone is to have the same bits each time.
    """

    def __init__(self, forward: Callable[..., Any]) -> None:
        self._forward = forward
        self._known: OrderedDict[tuple[int, ...], Tensor] = OrderedDict()
        self.encoded = 0

    @classmethod
    def on(cls, encoder: nn.Module) -> TextCache:
        """Have an encoder, wherever it was placed, keep its answers."""
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
