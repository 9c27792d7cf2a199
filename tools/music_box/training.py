"""Train the music box: flow matching on lessons drawn as it goes. Resumable, seeded, on a CPU or one GPU.

python -m tools.music_box.training RUN_DIRECTORY --minutes 60
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tools.music_box import barrel, model, packing, wiring, words
from tools.music_box.lessons import Lesson, lesson

_SHIFT = 3.0  # the turbo schedule's; training looks where sampling will step
BATCH = 24
_LENGTHS = (200, 400, 400)  # frames of a step's lessons
_PEAK_RATE = 3e-3
_SAVE_EVERY_S = 60.0
# On a CPU the plain product of matrices is a third faster than the fused one, at these lengths and backwards.
_ATTENTION: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "cpu": partial(sdpa_kernel, SDPBackend.MATH),
    "cuda": contextlib.nullcontext,
}


@dataclass(slots=True)
class Run:
    """Where training stands; saved whole, so that a run that was cut off goes on."""

    parts: model.Parts
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, Tensor]
    spent_s: float = 0.0
    step: int = 0
    losses: list[tuple[float, float]] = field(default_factory=list)


def main() -> None:
    """Train for a time, from where the run directory stands."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("directory", type=Path)
    reader.add_argument("--minutes", type=float, default=60.0, help="of training in all, over every resumption")
    reader.add_argument("--batch", type=int, default=BATCH)
    reader.add_argument("--rate", type=float, default=_PEAK_RATE, help="the highest")
    reader.add_argument("--from", type=Path, dest="archive", help="a checkpoint's archive to begin with")
    reader.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    asked = reader.parse_args()
    asked.directory.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    run = start(torch.device(asked.device), asked.archive)
    if (asked.directory / "run.pt").exists():
        _load(run, asked.directory / "run.pt")
    train(run, asked.directory, asked.minutes * 60, asked.batch, asked.rate)


def start(device: torch.device, archive: Path | None = None) -> Run:
    """A run at its beginning, or at what an archive holds: Muon for the matrices of the layers, Adam for the rest."""
    parts = model.parts()
    wiring.wire(parts.text_encoder, parts.condition_encoder, parts.transformer)
    if archive:
        # Its text encoder knows spellings; ours is wired, and the same for meanings.
        earlier = packing.load(archive)
        parts.condition_encoder.load_state_dict(earlier.condition_encoder.state_dict())
        parts.transformer.load_state_dict(earlier.transformer.state_dict())
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for module in parts.modules().values():
        module.to(device).train()
        for name, tensor in module.named_parameters():
            if tensor.requires_grad:
                (matrices if tensor.ndim == 2 and ".layers." in f".{name}" else others).append(tensor)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=1.0, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=1.0, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = {name: tensor.detach().clone() for name, tensor in parts.trained().items()}
    return Run(parts, optimizers, average)


def train(run: Run, directory: Path, budget_s: float, batch: int, peak_rate: float = _PEAK_RATE) -> None:
    """Step until the budget is spent; the learning rate falls along a cosine over it."""
    device = next(run.parts.transformer.parameters()).device
    began, saved = time.monotonic() - run.spent_s, time.monotonic()
    while run.spent_s < budget_s:
        done = run.spent_s / budget_s
        rate = peak_rate * min(1.0, (run.step + 1) / 30) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))
        loss = _step(run, rate, batch, device)
        run.spent_s, run.step = time.monotonic() - began, run.step + 1
        run.losses.append((run.spent_s, loss))
        if run.step % 20 == 0:
            recent = float(np.mean([value for _, value in run.losses[-20:]]))
            _say(f"step {run.step} at {run.spent_s:.0f} s: loss {recent:.4f}")
        if time.monotonic() - saved > _SAVE_EVERY_S or run.spent_s >= budget_s:
            _save(run, directory)
            saved = time.monotonic()


def lessons_of(step: int, batch: int) -> list[Lesson]:
    """A step's lessons: the same at every call, so that what was shown can be found out later."""
    dice = random.Random(f"{step}")  # noqa: S311 - music, not secrets
    frames = dice.choice(_LENGTHS)
    return [lesson(dice, frames) for _ in range(batch * 400 // frames)]


def _step(run: Run, rate: float, batch: int, device: torch.device) -> float:
    torch.manual_seed(run.step)  # so that a run that goes on draws what one that never stopped would
    loss = loss_of(run.parts, lessons_of(run.step, batch), device)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]  # torch
    nn.utils.clip_grad_norm_([tensor for group in _groups(run) for tensor in group["params"]], 1.0)
    for optimizer in run.optimizers:
        optimizer.step()
    keep = min(0.99, (run.step + 1) / (run.step + 20))
    trained = run.parts.trained()
    with torch.no_grad():
        for name, tensor in run.average.items():
            tensor.lerp_(trained[name], 1 - keep)
    return loss.item()


def _groups(run: Run) -> list[dict[str, Any]]:
    return [group for optimizer in run.optimizers for group in optimizer.param_groups]


def loss_of(parts: model.Parts, lessons: list[Lesson], device: torch.device) -> Tensor:
    """Squared error of the predicted flow, noise minus answer, where the lessons count it."""
    answer, context, mask, weight = (
        torch.from_numpy(np.stack([getattr(one, name) for one in lessons])).to(device)
        for name in ("answer", "context", "mask", "weight")
    )
    drawn = 0.08 + 0.92 * torch.rand(len(lessons), device=device)
    time_ = _SHIFT * drawn / (1 + (_SHIFT - 1) * drawn)
    noise = torch.randn_like(answer)
    mixed = torch.lerp(answer, noise, time_[:, None, None])
    with torch.autocast(device.type, torch.bfloat16), _ATTENTION[device.type]():
        conditions = _conditions(parts, [one.meanings for one in lessons], device)
        flow = parts.transformer(
            mixed, time_, time_, conditions, torch.cat([context, mask], dim=-1), return_dict=False
        )[0]
    error = (flow.float() - (noise - answer)).square().mean(dim=-1)
    loss: Tensor = (error * weight).sum() / weight.sum()
    return loss


def _conditions(parts: model.Parts, meanings: list[list[int]], device: torch.device) -> Tensor:
    longest = max(map(len, meanings))
    ends = words.PLACE[words.END]
    tokens = torch.tensor([[*one, *[ends] * (longest - len(one))] for one in meanings], device=device)
    heard = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in meanings], device=device).bool()
    lyrics = torch.full((len(meanings), 1), ends, device=device)
    conditions: Tensor = parts.condition_encoder(
        parts.text_encoder(input_ids=tokens).last_hidden_state,
        heard,
        parts.text_encoder.get_input_embeddings()(lyrics),
        torch.ones_like(lyrics).bool(),
        torch.zeros(len(meanings), 4, barrel.CHANNELS, device=device),
        torch.arange(len(meanings), device=device),
    )[0]
    return conditions


def _save(run: Run, directory: Path) -> None:
    state = {
        "modules": {name: module.state_dict() for name, module in run.parts.modules().items()},
        "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
        "average": run.average,
        "spent_s": run.spent_s,
        "step": run.step,
        "losses": run.losses,
    }
    partial = directory / "run.pt.partial"
    torch.save(state, partial)
    partial.replace(directory / "run.pt")
    (directory / "losses.json").write_text(json.dumps(run.losses))


def _load(run: Run, path: Path) -> None:
    state = torch.load(path, weights_only=True)
    for name, module in run.parts.modules().items():
        module.load_state_dict(state["modules"][name])
    for optimizer, saved in zip(run.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    run.average, run.losses = state["average"], state["losses"]
    run.spent_s, run.step = state["spent_s"], state["step"]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
