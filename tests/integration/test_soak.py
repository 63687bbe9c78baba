"""Tests that long runs do not grow; `python -m tests.soak` is the long version of the last tests."""

import pytest

from pipeline.errors import TrainingError
from tests import soak
from tests.soak import Sample
from tests.tiny import RECIPE


def samples(**per_epoch: float) -> list[Sample]:
    """Return samples of 1,000 epochs; each resource grows by so much an epoch after a quick start."""
    base = {"memory_mib": 500.0, "open_files": 30.0, "threads": 12.0}
    made = []
    for epoch in range(0, 1000, 4):
        warm = min(epoch / 150, 1.0)
        grown = {name: value * warm + epoch * per_epoch.get(name, 0.0) for name, value in base.items()}
        made.append(Sample(epoch=float(epoch), seconds=epoch / 5, **grown))
    return made


def test_growth_is_told_from_warming_up():
    growths = soak.measure_growth(samples())
    assert [growth.name for growth in growths] == ["memory_mib", "open_files", "threads"]
    assert all(growth.flat and abs(growth.per_1000_epochs) < 1e-6 for growth in growths)


@pytest.mark.parametrize(
    ("name", "per_epoch"), [("memory_mib", 0.05), ("open_files", 0.01), ("threads", 0.001)]
)
def test_a_leak_is_found(name: str, per_epoch: float, capsys: pytest.CaptureFixture[str]):
    leaking = samples(**{name: per_epoch})
    growths = soak.measure_growth(leaking)
    assert [growth.name for growth in growths if not growth.flat] == [name]
    soak.print_growth(growths, leaking)
    assert capsys.readouterr().out.count("GROWS") == 1


def test_a_short_run_tells_nothing():
    with pytest.raises(TrainingError, match="--epochs"):
        soak.measure_growth(samples()[:20])


@pytest.mark.slow
def test_thirty_epochs_of_the_real_command(monkeypatch: pytest.MonkeyPatch):
    """Too few epochs for a slope of memory: files and threads alone."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    watched = soak.soak(str(RECIPE), ["duration=30ep", "log.tensorboard=false"])
    assert watched[-1].epoch > 15
    late = watched[len(watched) // 3 :]
    for values in ([sample.open_files for sample in late], [sample.threads for sample in late]):
        assert max(values) - min(values) <= 2, values  # a checkpoint is being written, or not


def test_the_error_of_a_failed_run_is_shown():
    with pytest.raises(TrainingError, match=r"(?s)exit code 2:.*unknown key sed.*did you mean seed"):
        soak.soak(str(RECIPE), ["sed=1"])
