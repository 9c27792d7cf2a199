"""diffusers' AceStepPipeline, bent in three places so that songs of several jobs can share one call.

Each has its own text behind a mask, its own metadata, and its own length. Alone, all bends do nothing: a song is bit
for bit the stock pipeline's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import AceStepPipeline
from diffusers.models.transformers.ace_step_transformer import AceStepAttnProcessor2_0
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn
from torch.nn.functional import pad

# The stock 256 cut long captions from the right, where bpm and key stand. The text encoder takes 32,768.
MAX_TEXT_TOKENS = 1024
# What ACE-Step 1.5 was trained with.
MAX_LYRIC_TOKENS = 2048
# A caption's tokens can differ by a few inside the template.
_SPARE_TOKENS = 8


class MaskedAttention(AceStepAttnProcessor2_0):  # type: ignore[misc]  # diffusers ships no types
    """Attention that sees only what is a song's own. `mask`: keys [songs, 1, 1, keys], True for those; None for all."""

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
        """Attend; guidance doubles the batch, and so the mask.

        Layers with a sliding window come with a mask of their own, to be added: it says the least number, not minus
        infinity, so that a query far behind a song's end, which sees nothing, gives nonsense but no NaN.
        """
        if self.mask is not None:
            mask = self.mask.repeat(hidden_states.shape[0] // self.mask.shape[0], 1, 1, 1)
            least = torch.finfo(hidden_states.dtype).min
            attention_mask = mask if attention_mask is None else attention_mask.masked_fill(~mask, least)
        attended: Tensor = super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
        )
        return attended


class Lengths:
    """Keeps what lies behind the end of a batch's shorter songs at zero, where no song's own frames look.

    Zeros are what the transformer itself fills up an odd number of frames with, and add nothing to the sums over time
    that guidance takes.
    """

    def __init__(self, transformer: Any) -> None:  # noqa: ANN401  # diffusers ships no types
        self._attention = MaskedAttention()
        self._patch = int(transformer.config.patch_size)
        self._whole = 0
        self._behind: Tensor | None = None  # [songs, frames, 1]: True behind a song's end
        for layer in transformer.layers:
            layer.self_attn.set_processor(self._attention)
        transformer.register_forward_pre_hook(self._before, with_kwargs=True)
        transformer.register_forward_hook(self._after)

    def set(self, frames: Sequence[int], device: torch.device) -> None:
        """The next songs have so many latent frames each."""
        self._behind = ~self._own(frames, device)[:, :, None] if len(set(frames)) > 1 else None
        tokens = [math.ceil(one / self._patch) for one in frames]
        self._attention.mask = self._own(tokens, device)[:, None, None, :] if len(set(tokens)) > 1 else None

    @staticmethod
    def _own(lengths: Sequence[int], device: torch.device) -> Tensor:
        return torch.arange(max(lengths), device=device) < torch.tensor(lengths, device=device)[:, None]

    def _before(
        self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        noisy, context = kwargs["hidden_states"], kwargs["context_latents"]
        if self._behind is not None:
            context = self._cut(context, self._behind)
        # As the transformer would itself, but compiled it would be another graph for lengths that it has to fill up.
        self._whole = noisy.shape[1]
        odd = -self._whole % self._patch
        if odd:
            noisy, context = (pad(latents, (0, 0, 0, odd)) for latents in (noisy, context))
        return args, {**kwargs, "hidden_states": noisy, "context_latents": context}

    def _after(self, _module: nn.Module, _inputs: object, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        predicted = output[0][:, : self._whole]
        if self._behind is not None:
            predicted = self._cut(predicted, self._behind)
        return predicted, *output[1:]

    @staticmethod
    def _cut(latents: Tensor, behind: Tensor) -> Tensor:
        return latents.masked_fill(behind.repeat(latents.shape[0] // behind.shape[0], 1, 1), 0)


class SongPipeline(AceStepPipeline):  # type: ignore[misc]  # diffusers ships no types
    """The pipeline with metadata and a length of its own for each song of a batch: the stock one has one for all."""

    _metadata: Sequence[dict[str, object]] = ()
    _frames: Sequence[int] = ()
    _lengths: Lengths
    _place = 0

    def mask_padding(self) -> None:
        """Have each song attend to its own text and its own frames: the stock transformer attends to all padding."""
        cross_attention = MaskedAttention()
        for layer in self.transformer.layers:
            layer.cross_attn.set_processor(cross_attention)

        def keep_mask(_module: nn.Module, _inputs: object, conditions: tuple[Tensor, Tensor]) -> None:
            mask = conditions[1]
            cross_attention.mask = None if bool(mask.all()) else mask.bool()[:, None, None, :]

        self.condition_encoder.register_forward_hook(keep_mask)
        self._lengths = Lengths(self.transformer)

    def frames_of(self, duration_s: float) -> int:
        """Latent frames of a song that is sung on no audio."""
        return math.ceil(duration_s * float(self.latents_per_second))

    def sing(self, metadata: Sequence[dict[str, object]], durations_s: Sequence[float], **arguments: object) -> Tensor:
        """Latents [songs, frames of the longest, dims], zeros behind the end of shorter ones.

        `metadata`: bpm, keyscale, timesignature, audio_duration of each song.
        """
        self._metadata = metadata
        self._frames = [self.frames_of(duration_s) for duration_s in durations_s]
        self._lengths.set(self._frames, self._execution_device)
        latents: Tensor = self(
            output_type="latent",
            return_dict=False,
            max_text_length=MAX_TEXT_TOKENS,
            max_lyric_length=MAX_LYRIC_TOKENS,
            audio_duration=max(durations_s),
            **arguments,
        )[0]
        return latents

    def prepare_latents(
        self,
        batch_size: int,
        audio_duration: float,
        dtype: torch.dtype,
        device: torch.device,
        generator: torch.Generator | Sequence[torch.Generator] | None,
        **_none_given: object,
    ) -> Tensor:
        """Noise [songs, frames, dims]: for each song what it starts from alone, and zeros behind it. One generator, or
        none, draws for all songs at once, as in the stock pipeline.

        The stock one rounds the frames' seconds up to frames again, which of 56 of them makes 57 and fails.
        """
        frames = round(audio_duration * self.latents_per_second)
        dims = self.transformer.config.audio_acoustic_hidden_dim
        if not isinstance(generator, Sequence):
            noise: Tensor = randn_tensor((batch_size, frames, dims), generator=generator, device=device, dtype=dtype)
            return noise
        own = self._frames if len(set(self._frames)) > 1 else [frames] * batch_size
        each = [
            randn_tensor((1, one, dims), generator=draw, device=device, dtype=dtype)
            for one, draw in zip(own, generator, strict=True)
        ]
        return torch.cat([pad(noise, (0, 0, 0, frames - noise.shape[1])) for noise in each])

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
            warnings.append(f"lyrics: only about the first {share} % are used; make them shorter")
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
