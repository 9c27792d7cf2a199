"""The floor that a card's share is measured against, against a count of the operations themselves."""

from __future__ import annotations

import pytest
import torch
from diffusers import AceStepTransformer1DModel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine.floor import CARDS, Batch, card, decode_floor_s, denoise_floor_s, step_flop
from benchmarks.engine.full_size import TRANSFORMERS


@pytest.mark.parametrize("size", TRANSFORMERS)
def test_operations_of_a_step_are_those_that_torch_counts(size: str) -> None:
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        module = AceStepTransformer1DModel(**TRANSFORMERS[size]).eval()
        width = module.condition_embedder.in_features
        time = torch.empty(1)
        module(torch.empty(1, 750, 64), time, time, torch.empty(1, 300, width), torch.empty(1, 750, 128))
    assert step_flop(module.config, 30.0, 300) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_minute_on_an_h100_takes_26_ms_at_the_least() -> None:
    with torch.device("meta"):
        module = AceStepTransformer1DModel()  # its defaults are the 2B model's
    weights = sum(weight.numel() for weight in module.parameters())
    peaks, batch = CARDS["H100"], Batch(1, 60.0, 8)
    floor_s = denoise_floor_s(module.config, weights, peaks, batch) + decode_floor_s(peaks, batch)
    assert floor_s == pytest.approx(0.026, abs=0.001)


@pytest.mark.parametrize(("name", "known"), [("NVIDIA H100 80GB HBM3", True), ("NVIDIA T4", False)])
def test_a_card_is_known_by_its_name(name: str, known: bool) -> None:
    assert (card(name) is not None) is known
