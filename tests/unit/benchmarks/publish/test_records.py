"""Tests records, the tables and figures made from them, and the README files that show these."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.charts import beside_peers, figures, streamed, throughput, time_to_accuracy, waterfall
from benchmarks.publish import readme
from benchmarks.publish.columns import to_markdown
from benchmarks.publish.kernel_kinds import KernelKind
from benchmarks.publish.peer_tables import describe_task
from benchmarks.publish.records import RESULTS, Baseline, Record, Spread, append, newest, read
from benchmarks.publish.tables import MAKERS
from benchmarks.publish.whole_runs import KernelTime
from pipeline.errors import UserError
from tests.unit.benchmarks.results import make_peer_run, make_peer_runs, make_whole_runs


def record(benchmark: str = "loader", variant: str = "dali", rate: float = 1000.0, **more: Any) -> Record:
    values: dict[str, Any] = {
        "benchmark": benchmark,
        "variant": variant,
        "model": "resnet18",
        "image_size": 32,
        "dataset": "cifar10",
        "loader": variant,
        "augment": "crop 4, flip",
        "batch_size": 512,
        "world_size": 1,
        "precision": "fp16",
        "channels_last": True,
        "compile_mode": "none",
        "images_per_sec": Spread(median=rate, p10=0.9 * rate, p90=1.1 * rate, n=5),
        "step_ms": 512e3 / rate,
        "peak_memory_bytes": 2**30,
        "config": {"seed": 0},
        "config_hash": "0" * 12,
        "commit": "f" * 40,
        "dirty": False,
        "gpu": "NVIDIA H200",
        "gpu_count": 1,
        "power_limit_w": 700.0,
        "driver": "580.1",
        "cuda": "13.0",
        "torch": "2.11.0",
        "dali": "2.4.0",
        "python": "3.12.1",
        "cpu_cores": 16,
        "utc": "2026-01-01T00:00:00+00:00",
        "command": "python -m benchmarks loaders --record",
    }
    return Record(**(values | more))


def peer_records(data: str = "photos", ours: float = 8000.0, planned: int = 2, **more: Any) -> list[Record]:
    """Two runs of each program: timm has a third of our speed, and torchvision a fourth."""
    shared = {
        "model": "resnet50",
        "dataset": "folder",
        "data": data,
        "epochs": 3.0,
        "image_size": 224,
        **more,
    }
    records = []
    for name, factor in (("torchvision", 4), ("quickres", 1), ("timm", 3)):
        is_ours, rate = name == "quickres", ours / factor
        ratio = Spread(median=1 / factor, p10=1 / factor, p90=1 / factor, n=2)
        baseline = None if is_ours else Baseline(variant="quickres", images_per_sec=ours, ratio=ratio)
        runs = make_peer_runs(
            *[make_peer_run(0.9, rate)] * 2, planned=planned, step_rate=1.25 * ours if is_ours else None
        )
        records.append(record("peers", name, rate, baseline=baseline, peer_runs=runs, **shared))
    return records


EXAMPLES = [
    *(
        record(variant=name, batch_size=size, rate=rate * size)
        for name, rate in (("dali", 300.0), ("airbench", 4000.0))
        for size in (256, 512, 1024)
    ),
    record("step", "step", 9e4, tflops=300.0, peak_share=0.38, compile_s=12.3),
    record("end_to_end", "synthetic", 9e4),
    record(
        "end_to_end",
        "dali",
        8.9e4,
        baseline=Baseline(
            variant="synthetic", images_per_sec=9e4, ratio=Spread(median=0.99, p10=0.98, p90=1.0, n=5)
        ),
    ),
    record("peer", "pytorch-cifar", 1.8e4),
    record("kernel", "augment", 4e7, model=None, loader=None),
    record("ablation", "plain", 8e3, accuracy=0.9, accuracy_std=0.01, accuracy_n=3, epochs=5.0),
    record("ablation", "+ TF32", 2e4, epochs_to_pay=None),
    record("ablation", "+ torch.compile", 1.5e4, compile_s=20.0),
    record(
        "startup",
        "cold compile cache",
        images_per_sec=None,
        step_ms=None,
        first_step_s=21.0,
        first_step_n=5,
        whole_s=33.1,
        timeline={"imports": 4.1, "exit": 0.3},
    ),
    record("neighbour", "beside a busy process", 600.0),
    record("saving", "a checkpoint an epoch", 8.9e4),
    record(
        "time_to_accuracy",
        "cifar10_davidnet",
        images_per_sec=None,
        step_ms=None,
        whole_runs=make_whole_runs(),
    ),
    record("scaling", "one process", 1e5, loader="dali"),
    *(
        record(
            "scaling",
            "weak",
            speed_up * 1e5,
            loader="dali",
            batch_size=512 * size,
            world_size=size,
            baseline=Baseline(
                variant="one process",
                images_per_sec=1e5,
                ratio=Spread(median=speed_up, p10=0.99 * speed_up, p90=speed_up, n=3),
            ),
        )
        for size, speed_up in ((2, 1.96), (8, 7.6))
    ),
    *(
        record(
            "end_to_end",
            name,
            rate,
            image_size=224,
            model="resnet50, fused norm",
            config={"data": {"decoder": "cpu", "num_threads": 14}},
        )
        for name, rate in (("synthetic", 8.7e3), ("dali", 8.6e3), ("torchvision", 1.7e3))
    ),
    record(
        "recipe",
        "cifar10_resnet18",
        8e4,
        data="CIFAR-10",
        accuracy=0.95,
        accuracy_std=0.001,
        accuracy_n=5,
        epochs=20.0,
        train_s=12.1,
    ),
    record("decoder", "cpu, 8 cores", 9e3, data="Imagenette 224", data_wait_fraction=0.1),
    record(
        "kernels_by_share",
        "dali",
        8e3,
        kernels=(
            KernelKind(
                kind="pool",
                microseconds=1234.0,
                fraction=0.1,
                launches=2,
                largest=(KernelTime(name="max_pool", microseconds=1000.0, fraction=0.08, launches=1),),
            ),
        ),
    ),
    record(variant="torchvision", gpu=None, gpu_count=0, power_limit_w=None, driver=None, cuda=None),
    *peer_records(),
]


def test_the_readme_files_agree_with_the_records():
    assert readme.outdated() == [], "run `python -m benchmarks readme`"


def test_every_table_and_figure_has_its_place():
    places = {
        name
        for path in readme.FILES
        for name in re.findall(r"<!-- benchmarks:(\w+) -->", path.read_text("utf-8"))
    }
    assert places == {*MAKERS, *figures.FIGURES, "scaling_model", "peer_settings", "published", "results"}


def test_every_figure_that_a_readme_may_show_is_there():
    for name in figures.FIGURES:
        for path in figures.paths(name, read(RESULTS)):
            assert path.is_file(), "run `python -m benchmarks readme`"


def test_every_accuracy_is_of_images_that_have_a_name():
    """`folder` alone could be any images: once it was a re-encoding that cost three points of accuracy."""
    of_files = [kept for kept in read(RESULTS) if kept.dataset in ("folder", "shards")]
    with_accuracy = [kept for kept in of_files if kept.accuracy is not None or kept.whole_runs is not None]
    assert [(kept.benchmark, kept.variant) for kept in with_accuracy if kept.data is None] == []


def test_an_ablation_without_accuracies_has_no_column_of_them():
    with_accuracy, without = MAKERS["ablation"](EXAMPLES[11:13]), MAKERS["ablation"](EXAMPLES[12:13])
    assert {"accuracy", "epochs"} == set(with_accuracy.header) - set(without.header)


def test_records_come_back_as_they_were_and_are_only_added_to(tmp_path: Path):
    first = append(EXAMPLES, tmp_path)
    before = {path: path.read_text() for path in first}
    append([record(rate=5.0)], tmp_path)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in first) == sorted(
        ["cpu/loader.jsonl", *(f"nvidia-h200/{name}.jsonl" for name in MAKERS)]
    )
    assert all(path.read_text().startswith(text) for path, text in before.items())
    again = read(tmp_path)
    assert len(again) == len(EXAMPLES) + 1
    assert all(example in again for example in EXAMPLES)


def test_of_the_same_thing_the_last_record_is_shown():
    rates = [
        r.images_per_sec.median
        for r in newest([record(rate=1.0), record(rate=2.0, batch_size=8), record(rate=3.0)])
        if r.images_per_sec
    ]
    assert rates == [2.0, 3.0]


def test_a_stopped_benchmark_does_not_supersede_a_complete_one():
    stopped, complete = record(rate=1.0, planned=9), record(rate=2.0)
    assert newest([complete, stopped]) == [complete] == newest([stopped, complete])
    assert newest([stopped, record(rate=3.0, planned=9)]) == [record(rate=3.0, planned=9)]
    part, whole = (record("time_to_accuracy", whole_runs=make_whole_runs(planned)) for planned in (5, 2))
    assert newest([part, whole]) == [whole] == newest([whole, part])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"benchmark": "loader"}', "loader.jsonl:2: not a record"),
        ("not json", "loader.jsonl:2: not a record"),
        (record("step").model_dump_json(), "loader.jsonl:2: this record belongs in nvidia-h200/step.jsonl"),
        (record(gpu=None).model_dump_json(), "belongs in cpu/loader.jsonl"),
        (record().model_dump_json()[:-1] + ', "speed": 1}', "speed"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str):
    (path,) = append([record()], tmp_path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_records_of_other_images_stand_side_by_side():
    """`about.json` names the images; a record without a name is still superseded by one without."""
    named = [record("decoder", data=name) for name in (None, "Imagenette 224", "Imagenette 224")]
    assert newest(named) == [named[0], named[2]]
    text = to_markdown(MAKERS["decoder"](newest(named)))
    assert "| Imagenette 224 32×32 |" in text and "| cifar10 32×32 |" in text


def test_every_table_is_rectangular_and_holds_its_figures():
    for name, make in MAKERS.items():
        table = make([example for example in EXAMPLES if example.benchmark == name])
        assert table.rows
        assert {len(row) for row in table.rows} == {len(table.header)}
        assert len(to_markdown(table).splitlines()) == len(table.rows) + 2
    assert "0.990 × synthetic (0.980–1.000)" in to_markdown(MAKERS["end_to_end"](EXAMPLES[8:9]))
    assert "90.00 ± 1.00 % (3)" in to_markdown(MAKERS["ablation"](EXAMPLES[11:12]))


def test_a_readme_is_rendered_between_its_markers_and_nowhere_else(tmp_path: Path):
    path = tmp_path / "README.md"
    text = "before\n<!-- benchmarks:{0} -->\nold\n<!-- /benchmarks:{0} -->\nafter\n"
    rendered = readme.render(text.format("loader"), EXAMPLES, path)
    assert rendered.startswith("before\n<!-- benchmarks:loader -->\n")
    assert rendered.endswith("<!-- /benchmarks:loader -->\nafter\n")
    assert "old" not in rendered
    assert rendered.count("NVIDIA H200, 700 W") == rendered.count("CPU, 16 cores") == 1
    assert readme.render(rendered, EXAMPLES, path) == rendered
    assert "No records yet." in readme.render(text.format("loader"), [], path)
    for name in ("unknown", "loader -->\n<!-- benchmarks:step"):
        with pytest.raises(UserError, match=r"unknown|counterpart"):
            readme.render(text.format(name), EXAMPLES, path)


def test_the_front_page_shows_the_seconds_to_an_accuracy_once_they_are_measured():
    marker = "<!-- {}benchmarks:seconds_to_accuracy -->\n"
    empty = marker.format("") + marker.format("/")
    assert readme.render(empty, [], readme.FILES[0]) == empty
    shown = readme.render(empty, EXAMPLES, readme.FILES[0])
    assert "(benchmarks/pictures/nvidia-h200-seconds_to_accuracy.png)" in shown
    assert len(shown.splitlines()) == 3
    assert "No records yet." in readme.render(empty, [], readme.FILES[1])


def test_a_machine_is_named_once_with_all_commits_of_a_day():
    measured = [
        record(),
        record(commit="a" * 40),
        record(commit="a" * 40),
        record(utc="2026-01-02T00:00:00"),
        record(power_limit_w=500.0, dirty=True),
    ]
    software = "driver 580.1, CUDA 13.0, torch 2.11.0, DALI 2.4.0, Python 3.12.1"
    assert readme.machines(measured) == (
        f"NVIDIA H200, 700 W, {software}, commits {'f' * 10}, {'a' * 10}, 2026-01-01; "
        f"commit {'f' * 10}, 2026-01-02; "
        f"NVIDIA H200, 500 W, {software}, commit {'f' * 10} with changes, 2026-01-01"
    )


def test_a_stale_readme_is_found(tmp_path: Path):
    path = tmp_path / "README.md"
    path.write_text("<!-- benchmarks:step -->\nold\n<!-- /benchmarks:step -->\n")
    append(EXAMPLES, tmp_path / "results")
    assert readme.outdated([path], tmp_path / "results") == [path]
    path.write_text(readme.render(path.read_text(), read(tmp_path / "results"), path))
    assert readme.outdated([path, tmp_path / "missing.md"], tmp_path / "results") == []


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


def test_a_figure_without_records_leaves_no_text_on_the_front_page():
    front, page = readme.FILES
    assert readme.block("beside_peers", [], front) == ""
    assert readme.block("beside_peers", [], page) == "No records yet.\n"
    shown = "(benchmarks/pictures/nvidia-h200-beside_peers.png)\n"
    assert readme.block("beside_peers", EXAMPLES, front).endswith(shown)


def test_a_later_comparison_replaces_the_one_of_the_same_task():
    stopped, first, second = peer_records(planned=3), peer_records(), peer_records()
    other = peer_records("others")
    assert newest([*first, *stopped, *other, *second]) == [*other, *second]
    assert newest([*stopped, *first]) == first == newest([*first, *stopped])
    settings = readme.block("peer_settings", peer_records(), Path("README.md"))
    assert "timm 1.0, commit cccccccccc" in settings and "| NCHW |" in settings


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
