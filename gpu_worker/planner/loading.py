"""From a directory to a planner's parts: finding it, checking it, and how much memory it will need."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from gpu_worker.planner.decoding import READ_TOKENS
from serinette.errors import ConfigurationError

# In config.json of a planner that writes metadata alone. Without it a planner has audio codes: any other chat model
# would answer, and nothing of it would be true of music.
METADATA_ALONE = "serinette_metadata_alone"
# In the same file: the temperature of a planner that has one of its own.
TEMPERATURE = "serinette_temperature"
# And how many tokens a caption, read or written, and lyrics had in its training; without it, any number.
TRAINED = "serinette_trained_tokens"
_CODE = b"<|audio_code_0|>"


def planner_in(checkpoint: Path) -> Path | None:
    """The planner that a checkpoint brings in a directory of its own, if it does.

    Raises:
        ConfigurationError: it brings several.
    """
    index = _json(checkpoint / "model_index.json")
    found = [
        directory
        for directory in sorted(path for path in checkpoint.iterdir() if path.is_dir())
        if directory.name not in index and _is_planner(directory)
    ]
    if len(found) > 1:
        raise ConfigurationError(
            f"{checkpoint} brings {len(found)} planners ({', '.join(path.name for path in found)}); "
            "set SERINETTE_PLANNER_MODEL to the directory of one"
        )
    return found[0] if found else None


def check(directory: Path) -> None:
    """Check that a planner is in a directory, by its files; nothing is loaded.

    Raises:
        ConfigurationError: what is there is no planner, or not whole.
    """
    config = _json(directory / "config.json")
    if not directory.is_dir() or not config:
        hint = "; this is a diffusers pipeline" if (directory / "model_index.json").is_file() else ""
        raise _no_planner(directory, f"it has no config.json that can be read{hint}")
    if not _is_causal(config):
        raise _no_planner(directory, f"its config.json says {config.get('model_type')}, no causal language model")
    if not _is_planner(directory):
        raise _no_planner(directory, f"its tokenizer has no {_CODE.decode()}, which an ACE-Step planner has")
    weights_bytes(directory, torch.float32)  # compares each file's header with its length


def load_parts(directory: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer in a directory, on the CPU. Raises as `check`."""
    check(directory)
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        loading: Any = AutoModelForCausalLM.from_pretrained  # typed as if it never gave `loaded` beside the model
        model, loaded = loading(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise _no_planner(directory, str(error).strip().partition("\n")[0]) from error
    if lacking := sorted([*loaded["missing_keys"], *(str(key) for key in loaded["mismatched_keys"])]):
        raise _no_planner(directory, f"{len(lacking)} of its weights are missing or misshapen, among them {lacking[0]}")
    planner: PreTrainedModel = model.requires_grad_(False)
    return planner, tokenizer


@dataclass(frozen=True, slots=True)
class Need:
    """What a planner needs on its device, in bytes."""

    weights_bytes: int
    cache_bytes_per_token: int  # of one row; a song with guidance has two
    logits_bytes_per_row: int
    reading_bytes_per_token: int  # while a prompt is read
    itemsize: int

    def working_bytes(self, songs: int, prompt_tokens: int, written_tokens: int) -> int:
        """Beside the weights, for so many songs together under guidance, each with so many tokens at most."""
        rows, tokens = 2 * songs, prompt_tokens + written_tokens
        read = min(prompt_tokens, READ_TOKENS)
        # What a token may attend to: as a number, and as two truths while that is made.
        reading = rows * read * (self.reading_bytes_per_token + tokens * (self.itemsize + 2))
        return rows * tokens * self.cache_bytes_per_token + max(reading, rows * self.logits_bytes_per_row)


def need_of(directory: Path, dtype: torch.dtype) -> Need:
    """What the planner in `directory` needs when it is loaded as `dtype`; nothing is loaded.

    Raises:
        ConfigurationError: what is there is no planner, or not whole.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _no_planner(directory, str(error).strip().partition("\n")[0]) from error
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    attended = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * head_dim
    return Need(
        weights_bytes=weights_bytes(directory, dtype),
        cache_bytes_per_token=2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * dtype.itemsize,
        # Logits in dtype and float, and of the draw: guided, scaled, probable, sorted, their places and sums.
        logits_bytes_per_row=config.vocab_size * (dtype.itemsize + 12 * torch.float32.itemsize),
        # Of one layer at a time: the residual twice (once as float), attention's four, the feed-forward's three.
        reading_bytes_per_token=(4 * config.hidden_size + 2 * attended + 3 * config.intermediate_size) * dtype.itemsize
        + 2 * config.hidden_size * torch.float32.itemsize,
        itemsize=dtype.itemsize,
    )


def weights_bytes(directory: Path, dtype: torch.dtype) -> int:
    """Bytes of the weights in a directory, loaded as `dtype`. Raises ConfigurationError where a file is damaged."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_planner(directory, "it has no .safetensors")
    numbers = 0
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                numbers += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ConfigurationError(f"{path}: is damaged or cut off ({error}); fetch it again") from error
    return numbers * dtype.itemsize


def _is_causal(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def _is_planner(directory: Path) -> bool:
    config = _json(directory / "config.json")
    named = (directory / name for name in ("tokenizer.json", "added_tokens.json", "tokenizer_config.json"))
    coded = config.get(METADATA_ALONE) or any(_CODE in path.read_bytes() for path in named if path.is_file())
    return _is_causal(config) and bool(coded)


def _json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _no_planner(directory: Path, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"planner {directory}: {why}; give the directory of an ACE-Step 1.5 language model (5Hz-lm)"
    )
