"""The trained parts and the whole checkpoint, in the sizes of a music box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step import AceStepConditionEncoder
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3Model

from tools.music_box import barrel, wiring, words
from tools.music_box.codec import Network

_CONDITION = 128
_LAYERS = 5
_WINDOW = 64  # tokens that one layer sees to either side: 6.4 s


@dataclass(frozen=True, slots=True)
class Parts:
    """What is trained. The text encoder knows meanings here, and spellings in the checkpoint."""

    text_encoder: Qwen3Model
    condition_encoder: Network
    transformer: Network

    def modules(self) -> dict[str, nn.Module]:
        """The parts by the pipeline's names."""
        return {
            "text_encoder": self.text_encoder,
            "condition_encoder": self.condition_encoder,
            "transformer": self.transformer,
        }

    def trained(self) -> dict[str, Tensor]:
        """The tensors that training changes and the weights file holds."""
        return {
            f"{name}.{key}": tensor
            for name, module in self.modules().items()
            for key, tensor in module.state_dict().items()
            if "lyric_encoder" not in key and "timbre_encoder" not in key and key != "silence_latent"
        }


def parts(vocabulary: int = len(words.MEANINGS)) -> Parts:
    """Fresh parts, drawn from torch's generator."""
    made = Parts(_text_encoder(vocabulary), _condition_encoder(), _transformer())
    with torch.no_grad():
        # No lyrics and no timbre: their encoders always answer zero.
        for encoder in (made.condition_encoder.lyric_encoder, made.condition_encoder.timbre_encoder):
            for tensor in encoder.parameters():
                tensor.zero_().requires_grad_(False)
        made.condition_encoder.silence_latent.copy_(torch.from_numpy(barrel.ruling())[None])
    return made


def _text_encoder(vocabulary: int) -> Qwen3Model:
    return Qwen3Model(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=wiring.FEATURES,
            intermediate_size=2 * wiring.FEATURES,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=4096,
            initializer_range=0.1,
        )
    )


def _condition_encoder() -> Network:
    return AceStepConditionEncoder(
        hidden_size=_CONDITION,
        intermediate_size=32,
        text_hidden_dim=wiring.FEATURES,
        timbre_hidden_dim=barrel.CHANNELS,
        num_lyric_encoder_hidden_layers=1,
        num_timbre_encoder_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=16,
    )


def _transformer() -> Network:
    return AceStepTransformer1DModel(
        hidden_size=wiring.HIDDEN,
        encoder_hidden_size=_CONDITION,
        intermediate_size=640,
        num_hidden_layers=_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        in_channels=3 * barrel.CHANNELS,
        audio_acoustic_hidden_dim=barrel.CHANNELS,
        patch_size=barrel.PATCH,
        sliding_window=_WINDOW,
        layer_types=["sliding_attention"] * _LAYERS,
        is_turbo=True,
        model_version="turbo",
    )
