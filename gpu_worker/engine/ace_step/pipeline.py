"""diffusers' AceStepPipeline, changed so that songs of several jobs, with different options, share one call.

Each has its own text, metadata, task, source, reference and length. Alone, a song of text is the stock pipeline's, but
for the order of sums (1e-5 in float32).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AceStepPipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor
from torch.nn.functional import pad

from gpu_worker.engine.ace_step.conditions import StepConditions
from gpu_worker.engine.ace_step.sampling import of_the_vocabulary

# The stock 256 cut long captions from the right, where bpm and key stand. The text encoder takes 32,768.
MAX_TEXT_TOKENS = 1024
# What ACE-Step 1.5 was trained with.
MAX_LYRIC_TOKENS = 2048
# A caption's tokens can differ by a few inside the template.
_SPARE_TOKENS = 8
# What the model gets of a reference: ten seconds each from its front, middle and back (the stock pipeline's numbers).
_EXCERPT_S, _EXCERPTS = 10, 3


@dataclass(frozen=True, slots=True)
class SongInput:
    """One song in the pipeline's words. Audio is [channels, samples] at its rate; a source is whole latent frames."""

    prompt: str
    lyrics: str
    language: str
    metadata: dict[str, object]  # bpm, keyscale, timesignature, audio_duration
    instruction: str
    frames: int  # latent
    seed: int
    source: Tensor | None = None
    semantic: bool = False  # the model follows the source's codes, not its sound
    codes: str | None = None
    reference: Tensor | None = None
    window: tuple[int, int] | None = None  # latent frames that are generated; None: all
    silent_window: bool = False  # the source is silence there
    # After so many steps the source is replaced by silence, and the instruction by the other one; None: never.
    source_steps: int | None = None
    later_instruction: str = ""


class SongPipeline(AceStepPipeline):  # type: ignore[misc]  # diffusers ships no types
    """The pipeline for songs that share a call, which is `generate`'s alone."""

    _songs: Sequence[SongInput] = ()
    _conditions: StepConditions
    _spoken: Sequence[dict[str, object]] = ()
    _timbres: Sequence[Tensor | None] = ()
    _silent_timbre: Tensor | None = None
    _place = 0

    def prepare_to_share(self) -> None:
        """Hook into the parts. Once, before `generate`."""
        self._conditions = StepConditions(self.transformer)

        def keep_mask(_module: object, _inputs: object, conditions: tuple[Tensor, Tensor]) -> None:
            self._conditions.keep_mask(conditions[1])

        self.condition_encoder.register_forward_hook(keep_mask)
        timbre_encoder = self.condition_encoder.timbre_encoder
        self._encode_timbre = timbre_encoder.forward
        timbre_encoder.forward = self._timbres_of_songs

    def generate(self, songs: Sequence[SongInput], **shared: object) -> Tensor:
        """Latents [songs, frames of the longest, dims], zeros behind the end of shorter ones.

        `shared`: what is the same for all songs, in the stock pipeline's words.
        """
        self._songs = songs
        frames = [song.frames for song in songs]
        self._conditions.begin(frames, [song.source_steps for song in songs], self._execution_device)
        try:
            latents: Tensor = self(
                prompt=[song.prompt for song in songs],
                lyrics=[song.lyrics for song in songs],
                vocal_language=[song.language for song in songs],
                # On the CPU, so that every device starts from the same noise.
                generator=[torch.Generator().manual_seed(song.seed) for song in songs],
                reference_audio=(),  # so that timbres are asked for below, and not made of silence for each song
                output_type="latent",
                return_dict=False,
                max_text_length=MAX_TEXT_TOKENS,
                max_lyric_length=MAX_LYRIC_TOKENS,
                audio_duration=max(frames) / self.latents_per_second,
                **shared,
            )[0]
        finally:
            self._songs = self._spoken = self._timbres = ()
            self._conditions.end()
        return latents

    def prepare_latents(
        self,
        batch_size: int,
        audio_duration: float,
        dtype: torch.dtype,
        device: torch.device,
        generator: Sequence[torch.Generator],
        **_none_given: object,
    ) -> Tensor:
        """Noise [songs, frames, dims]: for each song what it starts from alone, and zeros behind it.

        The stock one rounds the frames' seconds up to frames again, which of 56 of them makes 57 and fails.
        """
        dims = self.transformer.config.audio_acoustic_hidden_dim
        return _stacked(
            [
                randn_tensor((1, song.frames, dims), generator=draw, device=device, dtype=dtype)
                for song, draw in zip(self._songs, generator, strict=True)
            ]
        )

    def prepare_src_latents(
        self, device: torch.device, dtype: torch.dtype, batch_size: int = 1, **_stock: object
    ) -> tuple[Tensor, int]:
        """Each song's source [songs, frames, dims], and the frames of the longest."""
        songs = self._songs
        # As long as texts are encoded, what a song draws is its own: first its source, then its reference.
        draws = [torch.Generator().manual_seed(song.seed) for song in songs]
        silences = [self._silence(song.frames, device, dtype) for song in songs]
        sources = [
            self._source_of(song, silence, draw) for song, silence, draw in zip(songs, silences, draws, strict=True)
        ]
        self._timbres = [
            None if song.reference is None else self._encode_audio(self._excerpts(song.reference), draw, device, dtype)
            for song, draw in zip(songs, draws, strict=True)
        ]
        if any(song.source_steps is not None for song in songs):
            silence = _stacked(silences)
            self._conditions.sourceless = torch.cat([silence, torch.ones_like(silence)], dim=-1)
        latents = _stacked(sources)
        return latents, latents.shape[1]

    def prepare_reference_audio_latents(
        self, reference_audio: object, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Nothing yet: `_timbres_of_songs` is asked within the condition encoder, wherever that was placed."""
        nothing = torch.empty(0, device=device, dtype=dtype)
        return nothing, nothing

    def _build_chunk_mask(self, **stock: Any) -> Tensor:  # noqa: ANN401  # diffusers ships no types
        """[songs, frames, dims]: 1 for frames that are generated, 0 for those that are the source's."""
        shape = stock["batch_size"], stock["latent_length"], stock["acoustic_dim"]
        mask = torch.ones(shape, device=stock["device"], dtype=stock["dtype"])
        for row, song in zip(mask, self._songs, strict=True):
            if song.window is not None:
                start, end = song.window
                row[:start] = row[end:] = 0
        return mask

    def _silence(self, frames: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        silence: Tensor = super().prepare_src_latents(device, dtype, 1, latent_length=frames)[0]
        return silence

    def _source_of(self, song: SongInput, silence: Tensor, draw: torch.Generator) -> Tensor:
        """[1, frames, dims]; silence for a song of text alone."""
        device, dtype = silence.device, silence.dtype
        if song.codes is not None:
            decoded: Tensor = super().prepare_src_latents(device, dtype, 1, audio_codes=song.codes)[0]
            return decoded
        if song.source is None:
            return silence
        latents = self._encode_audio(song.source, draw, device, dtype)
        if song.semantic:
            latents = self.audio_token_detokenizer(self._tokenized(latents)[0].to(device, dtype))[:, : song.frames]
        if song.silent_window and song.window is not None:
            start, end = song.window
            latents = torch.cat([latents[:, :start], silence[:, start:end], latents[:, end:]], dim=1)
        return latents

    def codes_of(self, audio: Tensor, seed: int) -> tuple[int, ...]:
        """The audio codes of audio [channels, samples] of whole latent frames, the last of them filled with silence."""
        draw = torch.Generator().manual_seed(seed)
        latents = self._encode_audio(audio, draw, self._execution_device, self.transformer.dtype)
        return tuple(self._tokenized(latents)[1].flatten().tolist())

    def _tokenized(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Quantized latents and codes of latents [1, frames, dims]."""
        silence = self.condition_encoder.silence_latent.to(latents.device, latents.dtype)
        tokenized: tuple[Tensor, Tensor] = self.audio_tokenizer.tokenize(latents, silence)
        return tokenized

    def _encode_audio(self, audio: Tensor, draw: torch.Generator, device: torch.device, dtype: torch.dtype) -> Tensor:
        """[1, frames, dims] of audio [channels, samples]. The stock pipeline draws from the process's one generator."""
        encoded = self.vae.encode(audio[None].to(device, self.vae.dtype)).latent_dist.sample(draw)
        latents: Tensor = encoded.transpose(1, 2).to(dtype)
        return latents

    def _excerpts(self, audio: Tensor) -> Tensor:
        """30 s of a reference [channels, samples], which is repeated if it is shorter."""
        excerpt = _EXCERPT_S * self.sample_rate
        audio = audio.repeat(1, math.ceil(_EXCERPTS * excerpt / audio.shape[1]))
        starts = (0, audio.shape[1] // _EXCERPTS, audio.shape[1] - excerpt)
        return torch.cat([audio[:, start : start + excerpt] for start in starts], dim=1)

    def _timbres_of_songs(self, packed: Tensor, _order: Tensor) -> tuple[Tensor, Tensor]:
        """[texts, 1, dims], and that each is there. Silence, which most songs have for a reference, is encoded once."""
        alone = torch.zeros(1, dtype=torch.long, device=packed.device)
        if self._silent_timbre is None and None in self._timbres:
            frames = math.ceil(_EXCERPTS * _EXCERPT_S * self.latents_per_second)
            silence = self.condition_encoder.silence_latent[:, :frames].to(packed.device, packed.dtype)
            self._silent_timbre = self._encode_timbre(silence, alone)[0]
        timbres: list[Tensor] = [
            self._silent_timbre if latents is None else self._encode_timbre(latents, alone)[0]  # type: ignore[misc]
            for latents in self._timbres
        ]
        later = [timbre for timbre, song in zip(timbres, self._songs, strict=True) if song.source_steps is not None]
        together = torch.cat([*timbres, *later])
        return together, torch.ones(len(together), 1, dtype=torch.long, device=packed.device)

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
            warnings.append(f"prompt: only its first {kept} of {len(prompt)} characters are used; make it shorter")
            prompt, spans = prompt[:kept], spans[:room]
        tokens = len(self.tokenizer(words).input_ids)
        if tokens > MAX_LYRIC_TOKENS:
            share = 100 * MAX_LYRIC_TOKENS // tokens
            warnings.append(f"lyrics: only about the first {share} % are used; make them shorter")
        if closed := self.tokenizer.init_kwargs.get("closed_vocabulary"):
            warnings += of_the_vocabulary(prompt, lyrics, spans, closed)
        return prompt, tuple(warnings)

    def encode_prompt(
        self,
        prompt: Sequence[str],
        lyrics: Sequence[str],
        device: torch.device,
        vocal_language: Sequence[str] = ("en",),
        **stock: object,
    ) -> tuple[Tensor, ...]:
        """Encode the texts of all songs, then the second ones of songs that leave their source."""
        later = [song for song in self._songs if song.source_steps is not None]
        self._place = 0
        self._spoken = [
            *({**song.metadata, "instruction": song.instruction} for song in self._songs),
            *({**song.metadata, "instruction": song.later_instruction} for song in later),
        ]
        if later:
            prompt = [*prompt, *(song.prompt for song in later)]
            lyrics = [*lyrics, *(song.lyrics for song in later)]
            vocal_language = [*vocal_language, *(song.language for song in later)]
        encoded: tuple[Tensor, ...] = super().encode_prompt(prompt, lyrics, device, vocal_language, **stock)
        return encoded

    def _format_prompt(self, **fields: object) -> tuple[str, str]:
        metadata = self._spoken[self._place] if self._spoken else {}
        self._place += 1
        formatted: tuple[str, str] = super()._format_prompt(**{**fields, **metadata})
        return formatted


def _stacked(songs: Sequence[Tensor]) -> Tensor:
    """[songs, frames of the longest, dims] of [1, frames, dims] each, zeros behind the end of shorter ones."""
    longest = max(song.shape[1] for song in songs)
    return torch.cat([pad(song, (0, 0, 0, longest - song.shape[1])) for song in songs])
