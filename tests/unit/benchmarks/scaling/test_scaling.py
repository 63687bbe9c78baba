"""Tests the speed-up of several processes, its table, its verdicts, and the choice of processes."""

import pytest

from benchmarks.publish.records import Spread
from benchmarks.publish.tables import MAKERS
from benchmarks.scaling.groups import last_words
from benchmarks.scaling.scaling import merged, speed_up, world_sizes
from benchmarks.scaling.scaling_worker import Measurement
from benchmarks.scaling.variants import WEAK
from pipeline.errors import UserError
from tests.unit.benchmarks.results import EXAMPLES

SCALING = [example for example in EXAMPLES if example.benchmark == "scaling"]


def measurement(batch_size: int, *step_s: float) -> Measurement:
    return Measurement(
        variant=WEAK,
        loader="dali",
        batch_size=batch_size,
        step_s=step_s,
        data_wait_fraction=0.0,
        compile_s=1.0,
        peak_memory_bytes=2**30,
    )


def test_speed_up_is_of_the_medians_of_a_round():
    one = [
        measurement(8, 1.0, 1.0, 9.0),
        measurement(8, 2.0, 2.0, 2.0),
    ]  # the second round meets a machine of half the speed
    two = [measurement(16, 1.25, 1.25, 1.25), measurement(16, 2.5, 2.5, 0.1)]
    compared = speed_up(two, one)
    assert compared.variant == "one process"
    assert compared.images_per_sec == Spread.of([8, 8, 8 / 9, 4, 4, 4]).median
    assert compared.ratio == Spread(median=1.6, p10=1.6, p90=1.6, n=2)
    assert merged(WEAK, two).images_per_sec.n == 6
    assert (
        speed_up([measurement(8, 0.5)], [measurement(8, 1.0)]).ratio.median == 2
    )  # strong: the batch is the same


@pytest.mark.parametrize(
    ("asked", "num_gpus", "message"),
    [
        (None, 1, "1 GPU is"),
        ([1], 2, "got 1, and 2 GPUs are"),
        ([0, 2], 2, "0,2"),
        ([4], 2, "got 4, and 2 GPUs"),
        ([1], 0, "process, got 1$"),
    ],
)
def test_what_cannot_be_compared_is_refused(asked: list[int] | None, num_gpus: int, message: str):
    with pytest.raises(UserError, match=message):
        world_sizes(asked, num_gpus)


def test_more_processes_than_gpus_are_left_out():
    assert world_sizes([1, 2, 4, 8], 4) == ([1, 2, 4], [8])
    assert world_sizes([8, 2], 2) == ([1, 2], [8])
    assert world_sizes([1, 2, 4], 0) == ([1, 2, 4], [])  # on the CPU they share the cores


def test_of_a_failed_group_its_own_last_words_are_shown():
    report = "E1122 lib/torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: 1)"
    torchrun = f"\n{report}\nTraceback (most recent call last):"
    assert last_words("error: no such folder\nerror: no such folder" + torchrun) == "error: no such folder"
    crash = "\n".join(f"line {number}" for number in range(20))
    assert last_words(crash + torchrun).splitlines() == [f"line {number}" for number in range(12, 20)]
    assert "exitcode: 1" in last_words(torchrun)  # better than nothing


def test_the_table_divides_the_speed_up_by_the_gpus():
    one, two, eight = MAKERS["scaling"](SCALING).rows
    assert one[4:7] == ("512", "512", "1") and one[-2:] == ("", "")
    assert two[4:7] == ("512", "1024", "2") and two[-2:] == ("1.96 (1.94–1.96)", "98.0 %")
    assert eight[4:7] == ("512", "4096", "8") and eight[-1] == "95.0 %"
