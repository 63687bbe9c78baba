"""Tests the records of finished runs, and the prices in the headers of recipes."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.publish import prices, readme
from benchmarks.publish.columns import to_markdown
from benchmarks.publish.records import RESULTS, Record, read
from benchmarks.publish.tables import MAKERS, tables_of
from pipeline.config import load_config
from pipeline.errors import UserError
from tests.unit.benchmarks.recorded import DATA, NAME, ON_A_FOLDER, RECIPE, make_run, recorded


def test_runs_of_three_seeds_are_one_record(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    runs = [make_run(tmp_path / "runs", seed) for seed in (2, 0, 1)]
    record = recorded(results, *runs)
    assert "91.20 ± 0.20 % (3)" in capsys.readouterr().out
    assert (record.benchmark, record.variant, record.model, record.dataset) == (
        "recipe",
        NAME,
        "resnet20, fused norm, fused stem",
        "folder",
    )
    assert (record.data, record.seeds, record.accuracy_n) == (DATA[1], (0, 1, 2), 3)
    assert record.accuracy == pytest.approx(0.912) and record.accuracy_std == pytest.approx(0.002)
    assert (
        record.flip_tta_accuracy == pytest.approx(0.92)
        and record.parameters == 269_722
        and record.epochs == 160
    )
    assert record.images_per_sec is not None and (record.images_per_sec.median, record.images_per_sec.n) == (
        41_000,
        3,
    )
    assert record.train_s == 201.0
    # what the runs wrote down, not this machine's
    assert (record.gpu, record.torch, record.dali, record.cpu_cores, record.commit) == (
        "NVIDIA H200",
        "2.11.0",
        "2.4.0",
        16,
        "a" * 40,
    )
    assert record.compile_mode == "reduce-overhead" and record.utc.endswith("00:02+00:00")
    assert (
        record.config["data"]["root"] == "data/jpeg" and load_config().model_validate(record.config).seed == 0
    )
    assert str(tmp_path) not in record.model_dump_json()
    assert record.command == f"python -m pipeline.train configs/{NAME}.yaml {' '.join(ON_A_FOLDER)} seed=0"


def test_nothing_is_kept_unless_asked_for(results: Path, tmp_path: Path):
    assert main(["recipes", str(make_run(tmp_path)), *DATA]) == 0
    assert not results.exists()


def test_a_data_set_with_a_name_needs_no_other(results: Path, tmp_path: Path):
    run = str(make_run(tmp_path, 0, "data.dataset=cifar10", "data.root=data"))
    assert main(["recipes", run, "--record"]) == 0
    assert read(results)[0].data == "CIFAR-10" and read(results)[0].accuracy_std is None


def test_speed_is_that_of_runs_that_had_the_machine_to_themselves(results: Path, tmp_path: Path):
    shared = {"median": 20_000.0, "p10": 19_000.0, "p90": 21_000.0, "n": 9}
    runs = [make_run(tmp_path, 0, images_per_sec=shared), make_run(tmp_path, 1), make_run(tmp_path, 2)]
    assert main(["recipes", *map(str, runs), *DATA]) == 2
    record = recorded(results, *runs, "--alone", runs[2])
    assert record.images_per_sec is not None and (record.images_per_sec.median, record.images_per_sec.n) == (
        42_000,
        1,
    )
    assert record.train_s == 202.0 and record.accuracy_n == 3
    record = recorded(results, *runs, "--shared")
    assert record.images_per_sec is record.train_s is record.step_ms is None and record.accuracy_n == 3


def test_a_continued_run_counts_for_accuracy_alone(results: Path, tmp_path: Path):
    first = make_run(tmp_path, 0)
    environment = json.loads((first / "env.json").read_text())
    second = make_run(tmp_path, 1, continued=[environment])
    record = recorded(results, first, second)
    assert record.images_per_sec is not None and (record.images_per_sec.n, record.accuracy_n) == (1, 2)


def test_cpu_cores_may_differ_only_where_no_speed_is_recorded(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    first = make_run(tmp_path, 0)
    environment = json.loads((first / "env.json").read_text())
    second = make_run(tmp_path, 1, continued=[environment | {"cpu_cores": 32}])
    assert main(["recipes", str(first), str(second), *DATA]) == 2
    assert f"{second}: cpu_cores 32 and not 16 as in {first}" in capsys.readouterr().err
    assert recorded(results, first, second, "--shared").accuracy_n == 2
    third = make_run(tmp_path, 2, cpu_cores=32, python="3.11.7")
    assert main(["recipes", str(first), str(third), *DATA, "--shared"]) == 2
    assert f"{third}: python 3.11.7 and not 3.12.3 as in {first}" in capsys.readouterr().err


def test_accuracy_with_the_mirror_image_is_of_all_runs_or_of_none(results: Path, tmp_path: Path):
    runs = [make_run(tmp_path, seed) for seed in (0, 1)]
    result = json.loads((runs[1] / "result.json").read_text())
    del result["test_accuracy_flip_tta"]
    (runs[1] / "result.json").write_text(json.dumps(result))
    assert recorded(results, *runs).flip_tta_accuracy is None


def test_accuracy_with_other_views_is_named_after_them(results: Path, tmp_path: Path):
    def make(folder: Path, views: str) -> list[Path]:
        keys = (f"evaluation.views={views}", "evaluation.views_share=0.25")
        figure: dict[str, Any] = {f"test_accuracy_{views}_25pct": 0.93}
        return [make_run(tmp_path / folder, seed, *keys, **figure) for seed in (0, 1)]

    record = recorded(results, *make(Path("same"), "mirror_shift"))
    assert (record.views, record.views_accuracy) == ("mirror_shift_25pct", pytest.approx(0.93))
    (row,) = tables_of([record])[0].rows
    assert "93.00 % (2) with mirror and shift (least sure 25%)" in row
    mixed = (make(Path("one"), "mirror_shift")[0], make(Path("other"), "mirror")[1])
    assert recorded(results, *mixed).views is None


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"commit": "b" * 40}, f"commit {'b' * 40} and not {'a' * 40}"),
        ({"dirty": True}, "dirty True and not False"),
        ({"world_size": 2}, "world_size 2 and not 1"),
        ({"continued": [{}]}, "commit "),
        ({"keys": ["seed=0"]}, "has seed 0, as "),
        (
            {"keys": ["optimizer.lr=0.2", "model.shortcut=B"]},
            "model.shortcut=B (recipe: A), optimizer.lr=0.2 (recipe: 0.1)",
        ),
        ({"command": ["python", "configs/mine.yaml"]}, "mine, which is not in configs/"),
    ],
)
def test_runs_that_are_not_measurements_of_one_thing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], second: dict[str, Any], message: str
):
    keys = second.pop("keys", [])
    first = make_run(tmp_path, 0)
    if "continued" in second:
        second = {"continued": [json.loads((first / "env.json").read_text()) | {"commit": "c" * 40}]}
    other = make_run(tmp_path, 1, *keys, **second)
    assert main(["recipes", str(first), str(other), *DATA]) == 2
    error = capsys.readouterr().err
    assert message in error and str(other) in error


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run, unfinished, damaged, streamed = (make_run(tmp_path, seed) for seed in range(4))
    (unfinished / "result.json").unlink()
    (damaged / "result.json").write_text("{}")
    (streamed / "input.json").write_text('{"crop": 1.0}')
    for arguments, messages in (
        (
            [run, tmp_path / "missing", unfinished, damaged],
            ["missing: ", f"{unfinished}: ", f"resume={unfinished}", f"{damaged / 'result.json'}: "],
        ),
        ([streamed], [f"{streamed}: its images were streamed"]),
        ([run, "--alone", unfinished], [f"--alone {unfinished}: "]),
    ):
        assert main(["recipes", *map(str, arguments), *DATA]) == 2
        error = capsys.readouterr().err
        assert [message for message in messages if message not in error] == []
    assert main(["recipes", str(run)]) == 2
    assert "as in --data CIFAR-10" in capsys.readouterr().err
    on_cifar = make_run(tmp_path / "cifar", 0, "data.dataset=cifar10")
    assert main(["recipes", str(on_cifar), *DATA]) == 2
    assert "--data: " in capsys.readouterr().err


def test_other_images_of_the_same_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = [make_run(tmp_path, seed) for seed in (0, 1)]
    (runs[1] / "input.json").write_text('{"mean": [0.4], "image_size": 32, "crop": null}')
    assert main(["recipes", *map(str, runs), *DATA]) == 2
    assert f"{runs[1]}: " in (error := capsys.readouterr().err) and "input.json" in error


def test_the_price_is_the_newest_records(record: Record):
    older = record.model_copy(update={"utc": "2025-01-01T00:00:00+00:00", "accuracy": 0.5})
    text = prices.price(NAME, [record, older])
    assert text.replace("\n# ", " ") == (
        "# Price: 91.20 ± 0.20 % (n = 3, last step, one view, CIFAR-10 in grey), 41,000 "
        "images/sec and 201.0 s of training on one NVIDIA H200; commit aaaaaaaaaa.\n"
    )
    assert all(len(line) <= 140 and line.startswith("# ") for line in text.splitlines())
    alone = record.model_copy(
        update={
            "accuracy_std": None,
            "accuracy_n": 1,
            "images_per_sec": None,
            "train_s": None,
            "world_size": 2,
        }
    )
    assert "91.20 % (n = 1, last" in prices.price(NAME, [alone])
    assert "grey) on 2 × NVIDIA H200; commit" in prices.price(NAME, [alone]).replace("\n# ", " ")
    assert prices.price("cifar10_resnet32", [record]) == "# Price: not measured.\n"


def test_the_header_is_rendered_and_nothing_else(record: Record, tmp_path: Path):
    path = tmp_path / RECIPE.name
    text = RECIPE.read_text()
    path.write_text(text)
    measured = readme.render(text, [record], path)
    before, _, after = measured.partition("# Price: 91.20")
    assert text.startswith(before) and text.endswith(after[after.index("\nduration") :])
    assert readme.render(measured, [record], path) == measured
    assert "# Price: not measured.\nduration" in readme.render(measured, [], path)
    for bad in (text.replace("# Price:", "# price:"), text + "# Price: much\n"):
        with pytest.raises(UserError, match="lines that begin with"):
            readme.render(bad, [record], path)


def test_a_recipe_that_has_changed_has_no_price(record: Record, tmp_path: Path):
    path = tmp_path / RECIPE.name
    path.write_text(RECIPE.read_text().replace("lr: 0.1", "lr: 0.2"))
    assert prices.price(NAME, [record], tmp_path) == "# Price: not measured.\n"
    path.write_text(RECIPE.read_text().replace("log_every: 390st", "log_every: 1ep"))
    assert "91.20" in prices.price(NAME, [record], tmp_path)
    changed = record.model_copy(update={"config": record.config | {"duration": "80ep"}})
    assert f"| {NAME} |" in to_markdown(MAKERS["recipe"]([record]))
    assert f"| {NAME}, since changed |" in to_markdown(MAKERS["recipe"]([changed]))


def test_of_keys_without_effect_a_recipe_may_lose_its_default(record: Record):
    config = json.loads(json.dumps(record.config))
    config["data"]["hw_decoder_load"], config["augment"]["removed"] = 0.123, True
    del config["data"]["eval_crop"]
    assert prices.differences(RECIPE, config) == {}
    config["loss"]["label_smoothing"] = 0.3
    assert prices.differences(RECIPE, config) == {"loss.label_smoothing": (0.0, 0.3)}


def test_larger_images_of_a_folder_are_another_recipe(record: Record):
    config = json.loads(json.dumps(record.config))
    config["data"] |= {"dataset": "folder", "image_size": 48}
    assert prices.differences(RECIPE, config) == {"data.image_size": (32, 48)}


def test_every_recipe_has_a_price_or_says_that_it_has_none():
    for path in prices.recipe_paths():
        assert prices.render(path.read_text(), read(RESULTS), path) == path.read_text(), (
            "run `python -m benchmarks readme`"
        )
