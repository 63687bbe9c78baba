"""Tests the figures that are drawn from records."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.charts import beside_peers, figures, streamed, throughput, time_to_accuracy, waterfall
from benchmarks.publish.peer_tables import describe_task
from benchmarks.publish.records import Record
from benchmarks.publish.tables import MAKERS
from tests.unit.benchmarks.results import EXAMPLES, make_whole_runs, peer_records, record


def test_one_waterfall_has_all_switches():
    """Switches that change the network's description, too: those that replace its parts."""
    described = [
        record("ablation", name, 1e4, model=f"resnet18{parts}")
        for name, parts in (("plain", ""), ("+ fused norm", ", fused norm"))
    ]
    other = record("ablation", "plain", 1e3, model="resnet50")
    assert waterfall.cumulative_steps("nvidia-h200", [other, *described]) == described


def test_records_of_other_settings_do_not_hide_or_cross_one_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    others = [
        record(rate=1e3, precision="fp32"),
        record(rate=2e3, world_size=2),
        record(rate=3e3, dataset="folder"),
        record(rate=4e3),
    ]
    rows = MAKERS["loader"](others).rows
    assert [row[1] for row in rows] == [
        "cifar10 32×32, float32",
        "cifar10 32×32",
        "folder 32×32",
        "cifar10 32×32",
    ]
    drawn: list[list[int]] = []
    draw_line = throughput._draw_line
    monkeypatch.setattr(
        throughput,
        "_draw_line",
        lambda axes, name, line: (drawn.append([r.batch_size for r in line]), draw_line(axes, name, line)),
    )
    throughput.draw_throughput("nvidia-h200", others, tmp_path / "picture.png")
    assert drawn == [[512]]


def test_figures_are_drawn_for_each_machine(tmp_path: Path):
    drawn = figures.draw_all(EXAMPLES, tmp_path)
    assert [path.name for path in drawn] == [
        "nvidia-h200-beside_peers.png",
        "nvidia-h200-streamed.png",
        "nvidia-h200-throughput.png",
        "cpu-throughput.png",
        "nvidia-h200-seconds_to_accuracy.png",
        "nvidia-h200-waterfall.png",
    ]
    for path in drawn:
        with Image.open(path) as picture:
            assert picture.width == 1100
    assert figures.draw_all([], tmp_path) == []


def test_programs_are_drawn_by_task_and_speed(tmp_path: Path):
    """The bars of a task share a scale; runs that were stopped early are not drawn."""
    small = peer_records("cifar", 50_000.0, image_size=32)
    records = [*small, *peer_records(), *peer_records("others", planned=3)]
    rows = beside_peers._rows([item for item in records if beside_peers.is_complete_comparison(item)])
    assert [row.name for row in rows] == [
        *("ResNet-50 at 224×224, photos, batch 512", "quickres", "timm", "torchvision"),
        *("ResNet-50 at 32×32, cifar, batch 512", "quickres", "timm", "torchvision"),
    ]
    assert rows[2].length == pytest.approx(rows[1].length / 3) and rows[5].length == rows[1].length
    labels = [beside_peers._label(row.record) for row in rows[1:3] if row.record]
    assert labels == ["8,000   80.0 % of the step without a loader", "2,667   quickres is 3.0 × as fast"]
    (path,) = figures.draw_all(records, tmp_path)
    assert path.name.endswith("-beside_peers.png") and path.stat().st_size > 10_000
    assert figures.draw_all(peer_records(planned=3), tmp_path) == []


def test_a_bar_of_another_network_says_so():
    timm = peer_records()[-1]
    assert timm.peer_runs is not None
    other = timm.peer_runs.model_copy(update={"has_same_network": False})
    assert "(another network)" in beside_peers._label(timm.model_copy(update={"peer_runs": other}))


@pytest.mark.parametrize(
    ("stem", "size", "name"),
    [
        ("imagenet", 32, "resnet50 with ImageNet's stem at 32×32, cifar, batch 512"),
        ("auto", 32, "resnet50 at 32×32, cifar, batch 512"),
        ("imagenet", 224, "resnet50 at 224×224, cifar, batch 512"),
    ],
)
def test_a_stem_that_small_images_do_not_usually_have_is_named(stem: str, size: int, name: str):
    ours = peer_records("cifar", image_size=size, config={"model": {"stem": stem}})[0]
    assert describe_task(ours) == name


def test_bars_of_image_files_are_of_the_same_images():
    """Images that were made are not drawn beside photographs, not even if they are loaded faster."""
    made = [record("end_to_end", name, 9e3, image_size=224) for name in ("synthetic", "dali", "reference")]
    photos = [
        record("end_to_end", name, 8e3, image_size=224, data="photos") for name in ("synthetic", "dali")
    ]
    assert streamed._fastest_by_loader("nvidia-h200", [*made, *photos]) == photos


def test_seconds_to_accuracy_are_drawn_by_target(tmp_path: Path):
    """A benchmark that was stopped, or that has no target, is not drawn."""

    def timed(name: str, target: float | None, planned: int = 2) -> Record:
        runs = make_whole_runs(planned).model_copy(update={"target": target})
        return record("time_to_accuracy", name, images_per_sec=None, step_ms=None, whole_runs=runs)

    drawn = [timed("cifar10_speed94", 0.94), timed("airbench94_muon", 0.94), timed("airbench96", 0.96)]
    others = [timed("cifar10_davidnet", None), timed("cifar10_resnet18", 0.94, planned=5)]
    rows = time_to_accuracy._rows([item for item in (*drawn, *others) if time_to_accuracy.has_target(item)])
    assert [row if isinstance(row, str) else row.variant for row in rows] == [
        *("94 %", "cifar10_speed94", "airbench94_muon", "96 %", "airbench96")
    ]
    (path,) = figures.draw_all([*drawn, *others], tmp_path)
    assert path.name.endswith("-seconds_to_accuracy.png") and path.stat().st_size > 10_000
    assert figures.draw_all(others, tmp_path) == []


@pytest.mark.parametrize(
    ("keys", "name"),
    [({}, "GPU"), ({"decoder": "cpu"}, "CPU"), ({"decoder": "both"}, "CPU and GPU")],
    ids=str,
)
def test_the_figure_of_image_files_names_the_decoder(keys: dict[str, str], name: str):
    """Old records have no such key."""
    made = record("end_to_end", "dali", config={"data": {"num_threads": 4, **keys}})
    assert streamed.name_of_bar(made) == f"DALI, files decoded by the {name}, batch 512"
