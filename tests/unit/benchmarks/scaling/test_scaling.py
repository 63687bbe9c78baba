"""Tests the speed-up of several processes, its table, and the model that extends it."""

import pytest

from benchmarks.publish import readme
from benchmarks.publish.records import Record, Spread
from benchmarks.publish.tables import MAKERS, to_markdown
from benchmarks.scaling import scaling_model
from benchmarks.scaling.scaling import last_words, merged, speed_up, world_sizes
from benchmarks.scaling.scaling_model import Fit
from benchmarks.scaling.scaling_worker import Measurement
from benchmarks.scaling.variants import WEAK
from pipeline.config import ModelConfig
from pipeline.errors import UserError
from pipeline.models import build_model
from tests.unit.benchmarks.publish.test_records import EXAMPLES

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
    [(None, 1, "one GPU"), ([1], 2, "got 1"), ([0, 2], 2, "0,2"), ([4], 2, "2 GPUs")],
)
def test_what_cannot_be_compared_is_refused(asked: list[int] | None, num_gpus: int, message: str):
    with pytest.raises(UserError, match=message):
        world_sizes(asked, num_gpus)


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


@pytest.mark.parametrize(
    ("apart_ms", "measured_ms", "exposed_share", "fixed_ms"),
    [
        (10, 9.0, 0.0, 0.0),
        (10, 10.0, 0.0, 0.0),
        (10, 10.05, 0.25, 0.0),
        (10, 10.2, 1.0, 0.0),
        (10, 11.0, 1.0, 0.8),
        (10.3, 10.4, 0.5, 0.3),
    ],
)
def test_the_model_meets_the_point_that_it_is_fitted_to(
    apart_ms: float, measured_ms: float, exposed_share: float, fixed_ms: float
):
    fit = Fit(
        one_s=10e-3,
        apart_s=apart_ms / 1e3,
        measured_s=measured_ms / 1e3,
        num_gpus=2,
        num_bytes=45e6,
        nvlink=225e9,
    )  # all-reduce on 2: 0.2 ms
    assert fit.exposed_share == pytest.approx(exposed_share, abs=1e-6)
    assert 1e3 * fit.fixed_s == pytest.approx(fixed_ms, abs=1e-6)
    best, worst = fit.step_s(2)
    assert 1e3 * best == pytest.approx(max(measured_ms, 10.0)) and 1e3 * worst == pytest.approx(
        max(measured_ms, 10.0)
    )
    for fewer, more in ((2, 8), (8, 64)):
        assert fit.step_s(fewer)[0] <= fit.step_s(more)[0] <= fit.step_s(more)[1] + 1e-12


def test_the_model_s_table_stands_beside_what_was_measured():
    table = scaling_model.table(SCALING)
    on_8, on_64 = (dict(zip(table.header, row, strict=True)) for row in table.rows)
    assert (on_8["GPUs"], on_8["measured"], on_8["fitted on"]) == ("8", "95.0 %", "2 GPUs")
    assert (on_64["GPUs"], on_64["measured"]) == ("64", "")
    # 512 images at 100,000 a second take 5.12 ms, and 5.22 ms on two GPUs:
    # half of the 0.20 ms of the all-reduce is exposed
    assert (
        on_8["exposed share"] == "52.6 %"
        and on_8["step ms"] == "5.30–5.37"
        and on_8["efficiency"] == "95.3–96.6 %"
    )
    marker = "<!-- benchmarks:scaling_model -->\n<!-- /benchmarks:scaling_model -->\n"
    assert to_markdown(table) in readme.render(marker, EXAMPLES, readme.FILES[1])
    elsewhere: list[Record] = [record.model_copy(update={"gpu": None}) for record in SCALING]
    assert "No records yet." in readme.render(marker, elsewhere, readme.FILES[1])


def test_the_parameters_of_the_model_are_those_of_the_networks():
    for name, num_classes, image_size in (("resnet18", 10, 32), ("resnet50", 1000, 224)):
        network = build_model(ModelConfig.model_validate({"name": name}), num_classes, image_size=image_size)
        assert sum(parameter.numel() for parameter in network.parameters()) == scaling_model.PARAMETERS[name]
