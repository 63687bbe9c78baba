"""Long runs: nothing grows. `python -m tests.soak` is the long version of this."""

import pytest

from pipeline.errors import TrainingError
from tests import soak
from tests.tiny import RECIPE


def samples(**per_epoch: float) -> list[dict[str, float]]:
    """A run of 1,000 epochs in which these grow by so much an epoch, after a quick start."""
    base = {"memory_mib": 500.0, "open_files": 30.0, "threads": 12.0}
    found = []
    for epoch in range(0, 1000, 4):
        warm = min(epoch / 150, 1.0)
        grown = {name: value * warm + epoch * per_epoch.get(name, 0.0) for name, value in base.items()}
        found.append({"epoch": float(epoch), "seconds": epoch / 5, **grown})
    return found


def test_growth_is_told_from_warming_up():
    found = soak.measure_growth(samples())
    assert [one.name for one in found] == ["memory_mib", "open_files", "threads"]
    assert all(one.flat and abs(one.per_1000_epochs) < 1e-6 for one in found)


@pytest.mark.parametrize(
    ("name", "per_epoch"), [("memory_mib", 0.05), ("open_files", 0.01), ("threads", 0.001)]
)
def test_a_leak_is_found(name: str, per_epoch: float, capsys: pytest.CaptureFixture[str]):
    leaking = samples(**{name: per_epoch})
    found = soak.measure_growth(leaking)
    assert [one.name for one in found if not one.flat] == [name]
    soak.print_growth(found, leaking)
    assert capsys.readouterr().out.count("GROWS") == 1


def test_a_short_run_tells_nothing():
    with pytest.raises(TrainingError, match="too few"):
        soak.measure_growth(samples()[:20])


@pytest.mark.slow
def test_thirty_epochs_of_the_real_command(monkeypatch: pytest.MonkeyPatch):
    """Too few for a slope of memory: files and threads alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    watched = soak.soak(str(RECIPE), ["duration=30ep", "log.tensorboard=false"])
    assert watched[-1]["epoch"] > 15
    late = watched[len(watched) // 3 :]
    for name in ("open_files", "threads"):
        values = [sample[name] for sample in late]
        assert max(values) - min(values) <= 2, (name, values)  # a checkpoint is being written, or not


def test_a_run_that_fails_is_told():
    with pytest.raises(
        TrainingError, match=r"(?s)the run failed with exit code 2:.*unknown key sed; did you mean seed"
    ):
        soak.soak(str(RECIPE), ["sed=1"])
