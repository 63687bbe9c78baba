"""Checks the page of a report: all sections, whatever a run folder holds; no text of a run becomes markup."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextToPath

from pipeline import __main__ as cli
from pipeline.config import load_config
from pipeline.errors import UserError
from pipeline.inference.predictions import Predictions
from pipeline.profiling.bottleneck import bottleneck_of_run
from pipeline.report.charts import WIDTH
from pipeline.report.page import write_report
from pipeline.report.run_record import read_run
from pipeline.report.tables import config_rows, figures
from pipeline.run.folder import RunFolder
from pipeline.run.records import RunResult
from tests.python import run_python
from tests.tiny import a_train_record, an_eval_record
from tests.unit.pipeline.report.pages import (
    ENVIRONMENT,
    HOSTILE,
    RESULT,
    SECTIONS,
    Page,
    make_run,
    metrics,
    page_of,
    predictions,
)


def test_calibration_and_that_of_an_older_run(tmp_path: Path):
    page = page_of(make_run(tmp_path, "a"))
    assert re.search(r"expected calibration error is \d+\.\d\d % \(15 bins\): the network is ", page.words)
    assert "with the temperature of the other half" in page.words
    older = replace(predictions(), calibration=np.empty(0))
    page = page_of(make_run(tmp_path, "b", predictions=older))
    assert re.search(r"expected calibration error is \d+\.\d\d % \(15 bins\)\.", page.words)
    assert "temperature" not in page.words


def test_one_run(tmp_path: Path):
    page = page_of(make_run(tmp_path, "quickstart-1"))
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS
    assert page.tags.count("svg") == 6  # loss, accuracy, error, learning rate, images per second, reliability
    for words in (
        *(
            "quickstart-1",
            "resnet18 on digits · 20 epochs",
            "75.00 %",
            "9 of 12",
            "902",
            "1 min 01 s",
        ),
        *("predicted as", "hardest first", "test/1.png", "true cat", "No step was skipped.", "3.11", "2.15"),
        *(
            "Bottleneck: the loader; the training process waited for its next batch 20 % of the time",
            "All 4 evaluations",
        ),
        "./launch.sh configs/quickstart.yaml 'log.name=a b'",
        "2 of",
    ):
        assert words in page.words, words
    assert re.search(r"data\.num_threads CPU threads.*? 2 4 ", page.words)  # changed, beside the default
    assert page.source.count("<mark>") == 2 * 2  # among the changed keys, and among all
    assert len(page.source) < 100_000


def texts_of(page: Page) -> list[tuple[str, float, float]]:
    """Each text beside the lines of a chart, with its left and right end in a common font, a wide one."""
    found = []
    for source in re.findall(r"<svg viewBox=.*?</svg>", page.source, re.DOTALL):
        for text in ElementTree.fromstring(source).iter("text"):
            bold = text.get("class") == "end"
            font = FontProperties(
                family="DejaVu Sans", weight="bold" if bold else "normal", size=11.5 if bold else 11
            )
            words, x = text.text or "", float(text.attrib["x"])
            width = TextToPath().get_text_width_height_descent(words, font, ismath=False)[0]
            start = x - width * {"end": 1, "middle": 0.5}.get(text.get("text-anchor", ""), 0)
            found.append((words, start, start + width))
    return found


@pytest.mark.parametrize(
    ("loss", "label"),
    [
        (2.0, "test 2"),
        (1.2e5, "test 1.2×10⁵"),
        (3.93e8, "test 3.93×10⁸"),
        (1.81e27, "test 1.81×10²⁷"),
        (2.5e-12, "test 2.5×10⁻¹²"),
    ],
)
def test_labels_stay_inside_of_their_chart(loss: float, label: str, tmp_path: Path):
    records = metrics()
    for record in records:
        record["loss"] = loss if record["kind"] == "eval" else loss / 3
        record["images_per_sec"] = 1_234_567.0
    page = page_of(make_run(tmp_path, metrics=records, result={**RESULT, "test_loss": loss}))
    texts = texts_of(page)
    assert {label, "1,230,000"} <= {words for words, *_ in texts}
    assert not [text for text in texts if text[1] < 0 or text[2] > WIDTH]
    (written,) = {row.values[0] for row in figures([read_run(tmp_path / "one")]) if row.name == "test loss"}
    assert len(written) <= 10 and page.words.count(written) >= 2


def test_the_same_folder_gives_the_same_bytes_without_torch(tmp_path: Path):
    run = make_run(tmp_path)
    code = (
        f"import sys, pipeline.__main__ as m; m.main(['report', {str(run)!r}]); print('torch' in sys.modules)"
    )
    done = run_python("-W", "error", "-c", code)
    assert done.stdout.splitlines() == [f"{run}/report.html", "False"]
    before = (run / "report.html").read_bytes()
    assert write_report([run], tmp_path / "again.html").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.html", "one"]


def test_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    first = make_run(tmp_path, "first")
    second = make_run(
        tmp_path,
        "second",
        config={"data": {"dataset": "digits"}, "optimizer": {"lr": 0.3}},
        env={**ENVIRONMENT, "python": "3.12"},
        result=RESULT,
    )
    third = make_run(tmp_path, "third", missing=("result", "predictions"))
    assert cli.main(["report", *map(str, (first, second, third))]) == 0
    assert capsys.readouterr().out.strip() == f"{tmp_path}/report.html"
    page = Page(tmp_path / "report.html")
    assert [name for name in page.ids if name in SECTIONS] == SECTIONS and "figures" in page.ids
    for words in (
        "3 runs side by side",
        "A first",
        "B second",
        "C third",
        "Keys with different values",
        "python ≠ A 3.11 B 3.12 C 3.11",
    ):
        assert words in page.words, words
    section = page.words.partition("Keys with different values")[2].partition("Curves")[0]
    assert "optimizer.lr" in section and "data.num_threads" in section and "data.dataset" not in section
    assert "C This run has not finished: its last record is of step 40, epoch 4" in page.words
    assert cli.main(["report", str(first), "--output", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").is_file()


def test_a_value_that_is_nearly_the_default_is_marked(tmp_path: Path):
    runs = [
        make_run(tmp_path, str(lr), config={"optimizer": {"lr": lr, "weight_decay": 5e-4}})
        for lr in (0.10000004, 0.1)
    ]
    (row,) = (row for row in config_rows([read_run(run) for run in runs]) if any(row.changed))
    assert (row.name, row.values, row.default, row.changed, row.differs) == (
        "optimizer.lr",
        ["0.10000004", "0.1"],
        "0.1",
        (True, False),
        True,
    )


def test_nothing_of_a_run_is_markup(tmp_path: Path):
    run = make_run(
        tmp_path,
        "<em>run",
        predictions=replace(
            predictions((HOSTILE, "b`c`", "{{ 123 * 321 }}")),
            shown_names=np.array([HOSTILE, "\x1b[31m\n", "a"]),
        ),
        env={**ENVIRONMENT, "command": ["x", HOSTILE], "platform": HOSTILE},
        config={"data": {"root": "</style><b>"}},
    )
    page = page_of(run, make_run(tmp_path, "other"))
    assert (
        "<em>" not in page.source
        and "<em>run" in page.words
        and page.source.count("</style>") == 1
        and "39483" not in page.words
    )
    assert HOSTILE in page.words and "{{ 123 * 321 }}" in page.words and "\x1b" not in page.source


@pytest.mark.parametrize("classes", [20, 21, 150])
def test_many_classes(tmp_path: Path, classes: int):
    names = tuple(f"class {i}" for i in range(classes))
    logits, labels = np.eye(classes)[np.roll(np.arange(classes), 1)], np.arange(classes)
    given = replace(
        Predictions.of(logits, labels, names),
        shown=np.array([3]),
        shown_names=np.array([""]),
        images=np.zeros((1, 300, 200, 3), np.uint8),
    )
    page = page_of(make_run(tmp_path, predictions=given))
    assert ('class="matrix"' in page.source) == (classes > 20) and ('class="confusion' in page.source) == (
        classes <= 20
    )
    assert (
        ("among the five most probable" in page.words)
        == (f"All {classes} classes" in page.words)
        == (classes > 20)
    )
    assert "pair alone" in page.source  # without a map


# Four steps, none of them after warm-up. Shares of mixed labels, added up in float32, make a little more than
# all of them right.
VERY_SHORT = [
    a_train_record(4, loss=0.1, epoch=0.0, accuracy=1.0000001, lr=1e-5).to_json(),
    an_eval_record(4, loss=0.1).model_copy(update={"epoch": 0.0}).to_json(),
]
NO_SPEED = {
    "images_per_sec": {"median": None, "p10": None, "p90": None, "n": 0},
    "step_ms": None,
    "data_wait_fraction": None,
}


@pytest.mark.parametrize(
    ("changes", "missing", "sentence"),
    [
        (
            {},
            ("result", "env", "metrics", "predictions"),
            "This run has not finished: it has logged nothing.",
        ),
        ({}, ("env",), "This run's folder holds no env.json."),
        ({}, ("predictions",), "python -m pipeline report RUN --refresh makes them from the last checkpoint"),
        ({"metrics": []}, (), "nothing recorded"),
        ({"metrics": "{\nnonsense\n{}\n"}, (), "metrics.jsonl: line 1"),
        ({"result": "{"}, (), "result.json: cannot be read"),
        ({"env": "[]"}, (), "env.json: not the file of a run"),
        ({"env": {**ENVIRONMENT, "continued": "x"}}, (), "env.json: not the file of a run"),
        ({"env": {}}, (), "The command was not recorded."),
        ({"config": "of: another version\n"}, (), "unknown key of"),
        ({"config": "]"}, (), "config.yaml"),
        ({"config": ""}, (), "config.yaml: "),
        ({"config": "\0\0"}, (), "config.yaml: not valid YAML"),
        (
            {"metrics": metrics(scale=1024.0, skipped=2)},
            (),
            "2 of 40 steps (5.00 %) were skipped because fp16 overflowed: 1 in steps 1–10",
        ),
        ({"result": {"steps": 1}}, (), "result.json: not the file of a run of this version"),
        ({"metrics": VERY_SHORT, "result": {**RESULT, "steps": 4, **NO_SPEED}}, (), "Speed: not measured"),
        (
            {"env": {**ENVIRONMENT, "continued": [{"step": 20, "command": ["b"]}]}},
            (),
            "Continued at step 20 by: b",
        ),
        (
            {"env": {**ENVIRONMENT, "continued": [{"step": 20, "command": ["b"]}]}},
            (),
            "1 min 30 s since it was continued",
        ),
        (
            {
                "env": {**ENVIRONMENT, "continued": [{"step": 20, "command": ["b"]}]},
                "result": {**RESULT, "timeline": {"imports": 4.0, "training": 6.0, "exit": None}},
            },
            (),
            "The time of the process that ended the run; those before it are not counted. "
            "From the command to the report: 10.0 s, in these parts: importing torch: 4.0 s 40 %",
        ),
        (
            {"result": {**RESULT, "timeline": {"imports": 4.0, "data": 0.04, "exit": 0.96}}},
            (),
            "From the command to the prompt: 5.0 s, in these parts: importing torch: 4.0 s 80 % reading the "
            "data set: < 0.1 s 1 % exit: 1.0 s 19 %",
        ),
        (
            {"result": {**RESULT, "timeline": {"data": 9.0, "exit": 0.01}, "data_first_time": True}},
            (),
            "reading the data set (first time): 9.0 s 100 % exit: < 0.1 s < 1 %",
        ),
        (
            {"result": {**RESULT, "timeline": {"data": 9.0}, "data_s": 9.5, "data_first_time": False}},
            (),
            "reading the data set (from the cache): 9.0 s 100 %",
        ),
        ({"result": {**RESULT, "data_s": 9.5, "data_first_time": False}}, (), "9.5 s (from the cache)"),
        (
            {"predictions": replace(predictions(), labels=np.full(12, 7, np.int32))},
            (),
            "predictions.npz: cannot be read (its arrays do not belong together)",
        ),
        ({"predictions": predictions(maps=False)}, (), "with the highest confidence. true cat"),
        (
            {"metrics": [{"kind": "train"}, *metrics()]},
            (),
            "metrics.jsonl: line 1: not a record of a run",
        ),
    ],
)
def test_what_is_missing_is_a_sentence(
    tmp_path: Path, changes: dict[str, Any], missing: tuple[str, ...], sentence: str
):
    page = page_of(make_run(tmp_path, missing=missing, **changes))
    assert sentence in page.words
    shown = "Confusion matrix" in page.words
    assert [name for name in page.ids if name in SECTIONS] == [
        name for name in SECTIONS if shown or name != "calibration"
    ]
    page_of(tmp_path / "one", make_run(tmp_path, "two"))


def test_a_run_that_has_logged_nothing_is_told_nothing_of(tmp_path: Path):
    page = page_of(
        make_run(
            tmp_path,
            missing=("result", "metrics", "predictions"),
            config={"precision": {"mode": "fp16"}},
        )
    )
    assert "No step was recorded." in page.words
    assert "No step was skipped" not in page.words and "1 throughout" not in page.words


def test_a_single_skipped_step_is_no_stretch(tmp_path: Path):
    windows = ((10, 0), (11, 1), (14, 3))
    records = [a_train_record(step, skipped_steps=skipped).to_json() for step, skipped in windows]
    assert (
        "were skipped because fp16 overflowed: 1 in step 11, 2 in steps 12–14."
        in page_of(make_run(tmp_path, metrics=records)).words
    )


def test_grad_cam_is_told_of_where_there_is_one(tmp_path: Path):
    assert (
        "its Grad-CAM map: the predicted class depends most on the red regions"
        in page_of(make_run(tmp_path)).words
    )


def test_predictions_that_are_damaged(tmp_path: Path):
    run = make_run(tmp_path)
    file = RunFolder(run).predictions
    file.write_bytes(file.read_bytes()[:200])
    assert "predictions.npz: cannot be read" in page_of(run).words


def test_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "not a run folder (no config.yaml in it)" in capsys.readouterr().err
    with pytest.raises(UserError, match="not a run folder"):
        write_report([tmp_path], tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["one/env.json/page.html", "one"])
def test_a_place_that_cannot_be_written(place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = make_run(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(["report", str(run), "--output", str(tmp_path / place)]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("error: ") and "--output" in message and f"{tmp_path}/" in message
    assert sorted(tmp_path.rglob("*")) == before


def test_the_folder_of_the_page_is_made(tmp_path: Path):
    run = make_run(tmp_path)
    assert cli.main(["report", str(run), "--output", str(tmp_path / "new/folder/page.html")]) == 0
    assert (tmp_path / "new/folder/page.html").is_file()


def test_predictions_come_back_as_they_were(tmp_path: Path):
    given = predictions()
    given.save(tmp_path)
    found = Predictions.load(tmp_path)
    assert found is not None and Predictions.load(tmp_path / "none") is None
    for name in ("class_names", "labels", "rank", "confidence", "shown_names", "images", "maps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    assert found.confusion.sum() == 12 and np.trace(found.confusion) == (found.rank == 0).sum()
    assert ((found.confidence > 0) & (found.confidence <= 1)).all()


@pytest.mark.parametrize(
    ("size", "remedy"),
    [(32, "set data.loader=fused, or raise data.num_threads"), (224, "bench decoders")],
)
def test_the_remedy_of_a_run_suits_its_images(size: int, remedy: str):
    """`fused` keeps images in memory: it is refused for those that are streamed."""
    config = load_config(overrides=["data.dataset=folder", "data.root=images", f"data.image_size={size}"])
    sentence = bottleneck_of_run(RunResult(**RESULT | {"data_wait_fraction": 0.3, "device": "cuda"}), config)
    assert remedy in sentence and ("fused" in sentence) == (size == 32)
