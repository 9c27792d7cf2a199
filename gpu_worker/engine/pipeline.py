"""diffusers' AceStepPipeline, bent in two places so that songs of several jobs can share one call.

Alone, both bends do nothing: a song is bit for bit the stock pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence
from diffusers import AceStepPipeline
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from torch import Tensor, nn


class CrossAttention(AceStepAttnProcessor2_0):  # type: ignore[misc]  # diffusers ships no types
    """Keeps each song of a batch to its own text: the stock transformer attends to the padding of shorter ones."""

    def __init__(self) -> None:
        super().__init__()
        self.mask: Tensor | None = None

    def __call__(
        self,
        attn: nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend; guidance doubles the batch, and so the mask."""
        if self.mask is not None:
            attention_mask = self.mask.repeat(hidden_states.shape[0] // self.mask.shape[0], 1, 1, 1)
        attended: Tensor = super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )
        return attended


class SongPipeline(AceStepPipeline):  # type: ignore[misc]  # diffusers ships no types
    """The pipeline with metadata of its own for each song of a batch: the stock one has one bpm, key, ... for all."""

    _metadata: Sequence[dict[str, object]] = ()
    _place = 0

    def mask_padding(self) -> None:
        """Hand the transformer's cross-attention the mask that the stock pipeline drops."""
        cross_attention = CrossAttention()
        for layer in self.transformer.layers:
            layer.cross_attn.set_processor(cross_attention)

        def keep_mask(_module: nn.Module, _inputs: object, conditions: tuple[Tensor, Tensor]) -> None:
            mask = conditions[1]
            cross_attention.mask = None if bool(mask.all()) else mask.bool()[:, None, None, :]

        self.condition_encoder.register_forward_hook(keep_mask)

    def sing(self, metadata: Sequence[dict[str, object]], **arguments: object) -> Tensor:
        """Latents [songs, frames, dims]. `metadata`: bpm, keyscale, timesignature, audio_duration of each song."""
        self._metadata = metadata
        latents: Tensor = self(output_type="latent", return_dict=False, **arguments)[0]
        return latents

    def encode_prompt(self, *args: object, **arguments: object) -> tuple[Tensor, ...]:
        """Encode the texts of a batch, from its first song on."""
        self._place = 0
        encoded: tuple[Tensor, ...] = super().encode_prompt(*args, **arguments)
        return encoded

    def _format_prompt(self, **fields: object) -> tuple[str, str]:
        metadata = self._metadata[self._place] if self._metadata else {}
        self._place += 1
        formatted: tuple[str, str] = super()._format_prompt(**{**fields, **metadata})
        return formatted
