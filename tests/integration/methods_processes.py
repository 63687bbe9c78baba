"""What `test_methods_processes.py` starts on every process: a run, and what this process mixed in each of its steps.

`torchrun … methods_processes.py FOLDER CONFIG key=value…`: writes FOLDER/rank-R.pt.
"""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from pipeline import train
from pipeline.training import step


def run(folder: Path, arguments: list[str]) -> int:
    """Train, and leave in the folder what each step mixed: images, labels, shares."""
    seen: list[tuple[torch.Tensor, ...]] = []
    mix = step.mix

    def watched(*given: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mixed = mix(*given)
        seen.append(tuple(tensor.clone() for tensor in mixed))
        return mixed

    step.mix = watched
    try:
        return train.main(arguments)
    finally:
        step.mix = mix
        torch.save(seen, folder / f"rank-{os.environ.get('RANK', 0)}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(run(Path(sys.argv[1]), sys.argv[2:]))
