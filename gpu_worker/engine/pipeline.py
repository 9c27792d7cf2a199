"""diffusers' AceStepPipeline, bent in two places so that songs of several jobs can share one call.

Alone, both bends do nothing: a song is bit for bit the stock pipeline's.
"""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import AceStepPipeline
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from torch import Tensor, nn

# The stock 256 cut long captions from the right, where bpm and key stand. The text encoder takes 32,768.
MAX_TEXT_TOKENS = 1024
# What ACE-Step 1.5 was trained with.
MAX_LYRIC_TOKENS = 2048
# A caption's tokens can differ by a few inside the template.
_SPARE_TOKENS = 8


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
        latents: Tensor = self(
            output_type="latent",
            return_dict=False,
            max_text_length=MAX_TEXT_TOKENS,
            max_lyric_length=MAX_LYRIC_TOKENS,
            **arguments,
        )[0]
        return latents

    def fit(
        self, prompt: str, lyrics: str, language: str, metadata: dict[str, object], instruction: str
    ) -> tuple[str, tuple[str, ...]]:
        """The caption, cut where bpm and key would otherwise fall off the text's end, and warnings on what is cut."""
        text, words = super()._format_prompt(
            prompt="", lyrics=lyrics, vocal_language=language, instruction=instruction, **metadata
        )
        warnings = []
        room = MAX_TEXT_TOKENS - _SPARE_TOKENS - len(self.tokenizer(text).input_ids)
        spans = self.tokenizer(prompt, return_offsets_mapping=True).offset_mapping
        if len(spans) > room:
            kept = spans[room][0]
            warnings.append(f"prompt: only its first {kept} of {len(prompt)} characters are heard; make it shorter")
            prompt = prompt[:kept]
        sung = len(self.tokenizer(words).input_ids)
        if sung > MAX_LYRIC_TOKENS:
            share = 100 * MAX_LYRIC_TOKENS // sung
            warnings.append(f"lyrics: only about the first {share} % are sung; make them shorter")
        return prompt, tuple(warnings)

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
