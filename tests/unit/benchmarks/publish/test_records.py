"""Tests records, the tables made from them, and the README files that show these."""

import re
from pathlib import Path

import pytest

from benchmarks.charts import figures
from benchmarks.publish import readme
from benchmarks.publish.columns import to_markdown
from benchmarks.publish.records import RESULTS, append, newest, read
from benchmarks.publish.tables import MAKERS
from pipeline.errors import UserError
from tests.unit.benchmarks.results import (
    EXAMPLES,
    make_whole_runs,
    peer_records,
    record,
)


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
