"""Mixed precision reaches the accuracy of float32: the quickstart's recipe, shortened, over seeds."""

import statistics

import pytest
import torch

from pipeline.config import load_config
from tests.python import ROOT
from tests.tiny import tiny_trainer

# a GPU does not repeat itself, so five seeds were not enough there: one test in twelve failed by chance
SEEDS = {"cpu": range(5), "gpu": range(12)}
SMALL = (
    "data.image_size=8",
    "augment.crop_padding=0",
    "augment.cutout=2",
    "duration=3ep",
    "log.eval_every=3ep",
    "data.num_threads=1",
)


def accuracies(mode: str, device: str) -> list[float]:
    """Return the test accuracy at the last step of each seed."""
    found = []
    for seed in SEEDS[device]:
        overrides = (*SMALL, f"precision.mode={mode}", f"runtime.device={device}", f"seed={seed}")
        trainer = tiny_trainer(load_config(ROOT / "configs/quickstart.yaml", overrides))
        with torch.cuda.stream(torch.cuda.Stream() if device == "gpu" else None):
            found.append(trainer.fit().accuracy)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "modes"),
    [("cpu", ["bf16"]), pytest.param("gpu", ["fp16", "bf16"], marks=[pytest.mark.gpu])],
)
def test_mixed_precision_reaches_the_accuracy_of_float32(device: str, modes: list[str]) -> None:
    """The means differ by at most two standard errors of their difference for n = 5 each."""
    if device == "gpu" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    full = accuracies("fp32", device)
    assert statistics.mean(full) > 0.85  # something was learnt
    for mode in modes:
        mixed = accuracies(mode, device)
        error = ((statistics.variance(mixed) + statistics.variance(full)) / 5) ** 0.5
        difference = abs(statistics.mean(mixed) - statistics.mean(full))
        means = f"{mode}: {statistics.mean(mixed):.4f}, fp32: {statistics.mean(full):.4f}"
        print(f"{means}, standard error {error:.4f}")
        assert difference <= 2 * error, (mode, mixed, full)
