"""From a training run to the weights file: the averaged parts and an ear, in 16 bits.

python -m gpu_worker.engine.music_box.packing RUN_DIRECTORY
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

from gpu_worker.engine.music_box import building, ear


def main() -> None:
    """Pack; finding the ear takes half a minute."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("directory", type=Path)
    reader.add_argument("--out", type=Path, default=building.WEIGHTS)
    told = reader.parse_args()
    run = torch.load(told.directory / "run.pt", weights_only=True, map_location="cpu")
    save_file(building.pack(run["average"], ear.listen()), told.out)
    size_mb = told.out.stat().st_size / 1e6
    print(f"{told.out}: {size_mb:.1f} MB, after {run['step']} steps in {run['spent_s'] / 60:.0f} min")  # noqa: T201


if __name__ == "__main__":
    main()
