"""From a training run to the weights file: the averaged parts, a scribe and an ear, in 16 bits.

python -m gpu_worker.engine.music_box.packing RUN_DIRECTORY
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpu_worker.engine.music_box import building, ear, scribe


def main() -> None:
    """Pack, training the scribe for a few minutes on the way; it and the ear are kept in the run directory."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("directory", type=Path)
    reader.add_argument("--scribe-steps", type=int, default=800)
    reader.add_argument("--out", type=Path, default=building.WEIGHTS)
    told = reader.parse_args()
    run = torch.load(told.directory / "run.pt", weights_only=True, map_location="cpu")
    kept = told.directory / f"scribe-{told.scribe_steps}.pt"
    if not kept.exists():
        written = scribe.train(told.scribe_steps)
        torch.save({"scribe": [module.state_dict() for module in written], "ear": ear.listen()}, kept)
    state = torch.load(kept, weights_only=True)
    scribes = scribe.scribe()
    for module, saved in zip(scribes, state["scribe"], strict=True):
        module.load_state_dict(saved)
    save_file(building.pack(run["average"], state["ear"], scribes), told.out)
    size_mb = told.out.stat().st_size / 1e6
    print(f"{told.out}: {size_mb:.1f} MB, after {run['step']} steps in {run['spent_s'] / 60:.0f} min")  # noqa: T201


if __name__ == "__main__":
    main()
