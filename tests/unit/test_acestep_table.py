"""docs/compatibility.md says of every field of ACE-Step 1.5's request what becomes of it."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from api.dialects.acestep.request import ReleaseTask

PAGE = Path(__file__).parents[2] / "docs/compatibility.md"

# As the official request names them (API.md and the request's model), and the files of a form.
THEIRS = re.findall(
    r"\w+",
    """
ai_token allow_lm_batch analysis_only audio_code_string audio_cover_strength audio_duration audio_format batch_size bpm
cfg_interval_end cfg_interval_start chunk_mask_mode constrained_decoding constrained_decoding_debug cover_noise_strength
ctx_audio extract_codes_only full_analysis_only global_caption guidance_scale inference_steps infer_method instruction
is_format_caption key_scale latent_rescale latent_shift lm_backend lm_cfg_scale lm_model_path lm_negative_prompt
lm_repetition_penalty lm_temperature lm_top_k lm_top_p lyrics model prompt ref_audio reference_audio
reference_audio_path repaint_latent_crossfade_frames repaint_mode repaint_strength repaint_wav_crossfade_sec
repainting_end repainting_start sample_mode sample_query sampler_mode seed shift src_audio src_audio_path task_type
thinking time_signature timesteps track_classes track_name use_adg use_cot_caption use_cot_language use_format
use_random_seed use_tiled_decode velocity_ema_factor velocity_norm_threshold vocal_language
""",
)


def named() -> set[str]:
    """Names and patterns in the first column of the table."""
    _, _, section = PAGE.read_text().partition("### Fields of `POST /release_task`")
    rows = [line for line in section.partition("\n### ")[0].splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([a-z_*]+)`", row.split(" | ")[0])}


def test_every_field_is_in_the_table() -> None:
    names = named()
    fields = {*THEIRS, *ReleaseTask.model_fields}
    assert len(fields) > 65
    assert [field for field in sorted(fields) if not any(fnmatch(field, name) for name in names)] == []
