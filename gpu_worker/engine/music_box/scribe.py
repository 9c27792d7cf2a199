"""Covers: the pipeline writes a source down in a few codes a second and reads them back. Trained by itself, shortly."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.ace_step import AceStepAudioTokenDetokenizer, AceStepAudioTokenizer
from torch import Tensor
from torch.nn import functional

from gpu_worker.engine.music_box import barrel, ear, lessons
from gpu_worker.engine.music_box.codec import Network
from gpu_worker.engine.music_box.composer import compose

WINDOW = 5  # latent frames to a code: 8 codes of 16 bits a second
_FRAMES = 400


def scribe() -> tuple[Network, Network]:
    """The pipeline's audio tokenizer and detokenizer, fresh."""
    shape: dict[str, Any] = {
        "hidden_size": 96,
        "intermediate_size": 192,
        "audio_acoustic_hidden_dim": barrel.CHANNELS,
        "pool_window_size": WINDOW,
        "num_attention_pooler_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 48,
    }
    return AceStepAudioTokenizer(fsq_dim=96, **shape), AceStepAudioTokenDetokenizer(**shape)


def train(steps: int, batch: int = 12) -> tuple[Network, Network]:
    """Train a scribe to write down what was played; the rounding passes gradients straight through."""
    torch.manual_seed(0)
    writer, reader = scribe()
    tensors = [*writer.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(tensors, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.0)
    for step in range(steps):
        dice = random.Random(f"scribe {step}")  # noqa: S311 - music, not secrets
        sheets = [compose(lessons.draw_tune(dice, _FRAMES)[0], dice.getrandbits(32), 0, _FRAMES) for _ in range(batch)]
        heard = torch.from_numpy(np.stack([lessons.overhear(sheet, dice) for sheet in sheets]))
        meant = torch.from_numpy(np.stack([ear.audible(sheet) for sheet in sheets]))
        loss = (reader(_write(writer, heard)) - meant).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tensors, 1.0)
        optimizer.step()
        if step % 100 == 0:
            print(f"scribe {step}: {loss.item():.4f} of {meant.square().mean().item():.4f}", flush=True)  # noqa: T201
    return writer, reader


def _write(writer: Network, heard: Tensor) -> Tensor:
    """`AceStepAudioTokenizer.tokenize` without its floor's dead gradient."""
    windows = heard.reshape(len(heard), -1, WINDOW, barrel.CHANNELS)
    pooled = writer.attention_pooler(writer.audio_acoustic_proj(windows))
    fsq = writer.quantizer
    soft = fsq.project_in(pooled)
    room = 1.0 + 1.0 / (fsq._levels - 1.0)
    soft = (soft / room).tanh() * room
    rounded = soft + (fsq._quantize(soft) - soft).detach()
    return functional.linear(rounded, fsq.project_out.weight, fsq.project_out.bias)
