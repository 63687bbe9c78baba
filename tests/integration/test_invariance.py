"""The same run on one, two and three processes: the same samples, order, draws, rates, counts and updates."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from tests.gpus import marks_of_gpus, needs_gpus
from tests.integration import scenes
from tests.integration.ranks import ranks
from tests.tiny import RECIPE, tiny_config

pytestmark = pytest.mark.slow
# In six steps the gradients are summed in another order. The rounding of float32 is enlarged by 20 layers and
# their batch norms.
TOLERANCES = {"without batch norm": (1e-5, 1e-6), "with synchronised batch norm": (1e-3, 1e-4)}


Left = dict[int, list[dict[str, Any]]]


def train_on(folders: dict[int, Path], *keys: str) -> Left:
    for number, folder in folders.items():
        if number == 1:
            scenes.train_all_networks(0, folder, *keys)
        else:
            with ranks(folder, number, scenes.train_all_networks, folder, *keys) as run:
                assert run.wait(120) == [0] * number, run.errors
    return {
        number: [torch.load(folder / f"rank-{rank}.pt") for rank in range(number)]
        for number, folder in folders.items()
    }


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory, process_state_of_module: None) -> Left:
    """Return what each process wrote, by the number of processes."""
    return train_on({number: tmp_path_factory.mktemp(f"processes-{number}") for number in (1, 2, 3)})


@pytest.mark.parametrize("network", scenes.NETWORKS)
@pytest.mark.parametrize("number", [2, 3])
def test_batches_draws_and_rates(left: Left, number: int, network: str):
    """The parts of the processes, one after another, are bit for bit the batch of one process."""
    assert_same_batches(left, number, network)


def assert_same_batches(left: Left, number: int, network: str) -> None:
    (alone,), processes = ([process[network]["steps"] for process in left[count]] for count in (1, number))
    assert len(alone) == 6 and all(len(steps) == 6 for steps in processes)
    for step, expected in enumerate(alone):
        for key in ("indices", "images", "labels"):
            assert torch.equal(torch.cat([steps[step][key] for steps in processes]), expected[key]), (
                step,
                key,
            )
        assert all(torch.equal(steps[step]["lr"], expected["lr"]) for steps in processes)


@pytest.mark.parametrize("network", scenes.NETWORKS)
@pytest.mark.parametrize("number", [2, 3])
def test_updates_and_evaluation(left: Left, number: int, network: str):
    assert_same_updates(left, number, network, *TOLERANCES[network])


def assert_same_updates(left: Left, number: int, network: str, rtol: float, atol: float) -> None:
    (alone,), processes = ([process[network] for process in left[count]] for count in (1, number))
    for found in processes:
        assert (found["seen"], found["correct"]) == (alone["seen"], alone["correct"]) and found["seen"] == 8
        for key, value in alone["weights"].items():
            torch.testing.assert_close(
                found["weights"][key], value, rtol=rtol, atol=atol, msg=lambda text, key=key: f"{key}: {text}"
            )
            assert torch.equal(found["weights"][key], processes[0]["weights"][key]), key


def test_the_least_sure_images_of_all_processes_get_more_views(tmp_path: Path, process_state: None):
    """The share is one of all images, in whose last batch there is padding on one process alone."""
    scenes.evaluate_views(0, tmp_path)
    expected = torch.load(tmp_path / "rank-0.pt")
    with ranks(tmp_path / "two", 2, scenes.evaluate_views, tmp_path / "two") as run:
        assert run.wait(120) == [0, 0], run.errors
    for rank in (0, 1):
        for found, alone in zip(torch.load(tmp_path / f"two/rank-{rank}.pt"), expected, strict=True):
            assert found == alone | {"loss": pytest.approx(alone["loss"])}
    counts = [result["correct_views"] for result in expected]
    assert expected[0]["seen"] == 27 and len({expected[0]["correct"], *counts}) == 4, (
        "or the seed is a bad one"
    )


_ON_GPUS = ("runtime.device=gpu", "compile.mode=graph")


@pytest.mark.parametrize(
    ("begun", "continued", "keys"),
    [
        (2, 3, ()),
        *(
            pytest.param(begun, continued, _ON_GPUS, marks=marks_of_gpus(max(begun, continued)))
            for begun, continued in ((2, 1), (2, 4), (4, 2))
        ),
    ],
    ids=lambda value: "gpu" if value == _ON_GPUS else "cpu" if value == () else None,
)
def test_continued_on_another_number_of_processes(
    begun: int, continued: int, keys: tuple[str, ...], tmp_path: Path
):
    """Such as a run on two that is continued on three: samples come once, in the order of one process."""
    config = tiny_config(*scenes.SHARED)
    # the parts of the processes must be of one size
    shared = [key if "eval_batch" not in key else "data.eval_batch_size=12" for key in scenes.SHARED]
    arguments = [str(RECIPE), f"log.dir={tmp_path}/runs", "log.tensorboard=false", *shared, *keys]
    with ranks(tmp_path, begun, scenes.run_and_note, arguments, tmp_path / "begun", 2) as run:
        assert run.wait() == [75] * begun, run.errors
    again = [*arguments, "resume=auto"]
    with ranks(tmp_path, continued, scenes.run_and_note, again, tmp_path / "continued") as run:
        assert run.wait() == [0] * continued, run.errors
    parts = {
        name: [torch.load(path) for path in sorted(tmp_path.glob(f"{name}-*.pt"))]
        for name in ("begun", "continued")
    }
    assert {name: (len(part), len(part[0])) for name, part in parts.items()} == {
        "begun": (begun, 4),
        "continued": (continued, 2),
    }
    found = [torch.cat(shares).tolist() for part in parts.values() for shares in zip(*part, strict=True)]
    sampler = TrainSampler(40, 12, Shard(), config.seed, (8, 8), config.augment)
    assert found == [sampler.plan(*divmod(step, 3)).indices.tolist() for step in range(6)]


@needs_gpus(2)
@pytest.mark.parametrize("mode", ["none", "default", "graph", "reduce-overhead"])
def test_on_two_gpus(mode: str, tmp_path: Path, process_state: None):
    """Also with the step captured, and in it the sums of a synchronised batch norm."""
    keys = ("runtime.device=gpu", "runtime.tf32=false", "runtime.deterministic=true", f"compile.mode={mode}")
    folders = {number: tmp_path / str(number) for number in (1, 2)}
    for folder in folders.values():
        folder.mkdir()
    left = train_on(folders, *keys)
    for network, tolerance in TOLERANCES.items():
        captured = [step["captured"] for step in left[2][0][network]["steps"]]
        assert captured == [False] * 3 + [mode in ("graph", "reduce-overhead")] * 3
        assert_same_batches(left, 2, network)
        assert_same_updates(left, 2, network, *tolerance)
