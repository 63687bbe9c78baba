"""A run on one process and on three: the same mixed images, micro-batches, weights and averages."""

from pathlib import Path

import pytest
import torch

from tests.integration import scenes
from tests.integration.ranks import ranks
from tests.tiny import RECIPE, last_ema, last_weights, only_run, read_metrics

pytestmark = pytest.mark.slow
MICRO_BATCHES = 6
PROCESSES = 3  # two processes share nothing that three do not
KEYS = (
    "data.num_samples=72",
    "data.batch_size=24",
    "data.eval_batch_size=6",
    "duration=1ep",
    "optimizer.lr=0.02",
    "augment.mix=ricap",
    "ema.decay=0.5",
    "optimizer.clip_norm=1.0",
    "log.log_every=1st",
    "log.tensorboard=false",
)


def start(folder: Path, processes: int) -> None:
    arguments = [
        str(RECIPE),
        f"log.dir={folder}/runs",
        f"optimizer.accumulate={MICRO_BATCHES // processes}",
        *KEYS,
    ]
    if processes == 1:
        assert scenes.run_and_note_mixing(0, folder, arguments) == 0
        return
    with ranks(folder, processes, scenes.run_and_note_mixing, folder, arguments) as run:
        assert run.wait() == [0] * processes, run.errors


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> dict[int, Path]:
    """Return the folder of the run on each number of processes."""
    folders = {processes: tmp_path_factory.mktemp(f"processes-{processes}") for processes in (1, PROCESSES)}
    for processes, folder in folders.items():
        start(folder, processes)
    return folders


def test_the_same_images_are_mixed(folders: dict[int, Path]):
    """The parts of the processes, one after another, are bit for bit the batch of one process."""
    expected = torch.load(folders[1] / "rank-0.pt", weights_only=True)
    ranks = [
        torch.load(folders[PROCESSES] / f"rank-{rank}.pt", weights_only=True) for rank in range(PROCESSES)
    ]
    assert len(expected) == 3 and all(len(rank) == 3 for rank in ranks)
    for step, (images, labels, shares) in enumerate(expected):
        assert len(images) == 24 and len(ranks[0][step][0]) == 24 // PROCESSES
        assert torch.equal(torch.cat([rank[step][0] for rank in ranks]), images)
        assert torch.equal(torch.cat([rank[step][1] for rank in ranks]), labels)
        assert all(torch.equal(rank[step][2], shares) for rank in ranks)


def test_the_same_is_learnt(folders: dict[int, Path]):
    """Both runs have six micro-batches of four images: their gradients are the same sums in another order."""
    found, expected = (only_run(folders[number] / "runs") for number in (PROCESSES, 1))
    for read in (last_weights, last_ema):
        for key, value in read(expected).items():
            # each process has statistics of batch norm of its own, which are averaged
            if "running" not in key and "num_batches" not in key:
                torch.testing.assert_close(
                    read(found)[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f"{key}: {text}"
                )
    for record, other in zip(read_metrics(found), read_metrics(expected), strict=True):
        if record["kind"] == "train":
            assert record["loss"] == pytest.approx(other["loss"], rel=1e-3)
            assert (record["lr"], record["step"]) == (other["lr"], other["step"])
