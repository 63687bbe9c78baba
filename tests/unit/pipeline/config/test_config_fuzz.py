"""Valid recipes, spoilt in many ways: each gives one message that names the key and a remedy."""

import os
import re
import subprocess
import sys
from collections import Counter
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from pipeline.config import leaf_fields, load_config
from pipeline.config.yaml_reader import dump, read_recipe
from pipeline.errors import UserError
from tests.patience import PATIENCE_S
from tests.python import ROOT
from tests.tiny import RECIPE

RECIPES = [read_recipe(path).values for path in (*sorted((ROOT / "configs").glob("*.yaml")), RECIPE)]
FIELDS = dict(leaf_fields())
SECTIONS = sorted({key.partition(".")[0] for key in FIELDS if "." in key})
WORDS = {part for key in FIELDS for part in key.split(".")}
EXAMPLES = 500
# every message tells what would be right: a key, a choice, a range, a form, what the key means, or what to do
REMEDY = re.compile(
    r"did you mean \S+\?|config-reference|the default is |stands as "
    r"| (give|use|write|set|remove|must be|keep|such as|needs|expected) "
)


@dataclass
class Spoilt:
    """A recipe that is not valid.

    Attributes:
        kind: how it was spoilt.
        key: what the message must name.
        values: the recipe as nested values.
        overrides: given beside it.
        extra: text below the recipe.
    """

    kind: str
    key: str
    values: dict[str, Any]
    overrides: list[str] = field(default_factory=list)
    extra: str = ""

    def write(self, folder: Path) -> list[str]:
        """The arguments of the command, the recipe being written."""
        path = folder / "spoilt.yaml"
        path.write_text(dump(self.values) + self.extra)
        return [str(path), *self.overrides]


def put(values: dict[str, Any], key: str, value: object) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[last] = value


def limits(of: FieldInfo) -> dict[str, float]:
    return {
        name: getattr(rule, name)
        for rule in of.metadata
        for name in ("ge", "gt", "le", "lt", "max_length")
        if hasattr(rule, name)
    }


def wrong_types(of: FieldInfo) -> list[object]:
    """Values of every kind that a recipe can hold, but for those that the key takes."""
    kinds = get_args(of.annotation) or (of.annotation,)
    text = str(of.annotation)
    found: list[object] = [{"a": 1}, [[]]]
    if str not in kinds and "Literal" not in text:
        found += ["many", "", "0x10", "1,5", "\u0661", "12 apples"]
    if "Literal" in text:
        found += ["no-such-choice", 3]
    if bool not in kinds:
        found += [True]
    if float not in kinds and int not in kinds:
        found += [7, -0.5]
    if float not in kinds:
        found += [0.5]
    if type(None) not in kinds:
        found += [None]
    return [
        value for value in found if not any(value is choice for choice in kinds)
    ]  # `augment.flip` takes true


def out_of_range(of: FieldInfo) -> list[object]:
    found: list[object] = []
    whole = of.annotation is int
    for name, limit in limits(of).items():
        if name == "max_length":
            continue
        outside = {"ge": limit - 1, "gt": limit, "le": limit + 1, "lt": limit}[name]
        # past 2**53 a float knows no neighbours
        found += [
            int(limit) + (-1 if name == "ge" else 1 if name == "le" else 0) if whole else float(outside)
        ]
        found += [
            (-(10**30) if name[0] == "g" else 10**30) if whole else (-1e300 if name[0] == "g" else 1e300)
        ]
    if of.annotation in (float, int) or "float" in str(of.annotation):
        found += [float("nan"), float("inf"), -float("inf")]
    if "AfterValidator" in str(of.metadata) or "_check" in str(of.metadata):
        found += ["-1ep", "20", "3 epochs", "1e3st", "101%", "5GB", "²ep"]
    return found


def empty(of: FieldInfo) -> list[object]:
    return [
        *([] if "None" in str(of.annotation) or "Optional" in str(of.annotation) else [None]),
        *([""] if of.annotation is not bool else []),
        {},
    ]


def huge(of: FieldInfo) -> list[object]:
    found: list[object] = [list(range(200))]
    if str(of.annotation) != "<class 'float'>" and "str" in str(of.annotation):
        found += ["x" * 5000, "a\0b"]
    if of.annotation is int and ("le" in limits(of) or "lt" in limits(of)):
        found += [10**400]
    return found


CONTRADICTIONS: list[tuple[str, dict[str, Any]]] = [
    ("data.mean", {"data.mean": [0.5, 0.5, 0.5], "data.std": None}),
    ("data.mean", {"data.mean": [0.5, 0.5], "data.std": [0.5]}),
    ("data.std", {"data.mean": [0.5], "data.std": [0.0]}),
    ("data.holdout", {"data.holdout": 100.0}),
    ("augment.cutout", {"augment.cutout": 1000}),
    ("augment.mix_alpha", {"augment": {"mix_alpha": 0.5, "mix": "none"}}),
    ("augment.mix_probability", {"augment": {"mix_probability": 0.5}}),
    ("schedule.milestones", {"schedule": {"name": "step"}}),
    ("schedule.milestones", {"schedule": {"name": "cosine", "milestones": ["1ep"]}}),
    ("optimizer.nesterov", {"optimizer": {"momentum": 0}}),
    ("optimizer.betas", {"optimizer": {"betas": [0.8, 0.9], "name": "sgd"}}),
    ("optimizer.sgd_lr_ratio", {"optimizer": {"sgd_lr_ratio": 2.0, "name": "adamw"}}),
    ("model.groups", {"model": {"name": "resnet50", "groups": 48}}),
    ("model.sync_batchnorm", {"model": {"name": "resnet34", "sync_batchnorm": True, "fused_norm": True}}),
    ("model.fused_norm", {"model": {"name": "resnet34", "fused_norm": True}, "runtime.channels_last": False}),
    ("data.num_classes", {"data": {"dataset": "cifar10", "num_classes": 10}}),
    ("data.decoder", {"data": {"dataset": "synthetic", "decoder": "gpu"}}),
    ("precision.init_scale", {"precision": {"mode": "bf16", "init_scale": 1024.0}}),
    ("evaluation.flip_tta", {"evaluation": {"flip_tta": True, "views": "mirror"}}),
    ("compile.mode", {"runtime.device": "cpu", "compile.mode": "max-autotune"}),
    (
        "compile.mode",
        {"compile.mode": "max-autotune", "compile.backend": "aot_eager", "runtime.device": "auto"},
    ),
    (
        "data.num_samples",
        {
            "data": {"dataset": "synthetic", "num_samples": 8, "batch_size": 16, "loader": "reference"},
        },
    ),
]


def misspelt_names(key: str) -> st.SearchStrategy[tuple[str, str]]:
    """Draw the section of a key, and its name with one letter missing, doubled or added, or in capitals."""
    section, _, name = key.rpartition(".")
    edits = {name.upper()}
    for at in range(len(name)):
        edits |= {
            name[:at] + name[at + 1 :],
            name[:at] + name[at] + name[at:],
            name[: at + 1] + "x" + name[at + 1 :],
        }
    return st.tuples(st.just(section), st.sampled_from(sorted(edits)))


def unknown_names() -> st.SearchStrategy[tuple[str, str]]:
    """Draw a section, or the top level, and a name of any letters."""
    plain = st.from_regex(r"[A-Za-z_][\w-]{0,20}", fullmatch=True)
    return st.tuples(
        st.sampled_from(["", *SECTIONS]), plain | st.text(min_size=1, max_size=30).filter(str.isprintable)
    )


@st.composite
def spoilt_recipes(draw: st.DrawFn) -> Spoilt:
    """One of the shipped recipes with one mistake."""
    values = deepcopy(draw(st.sampled_from(RECIPES)))
    kind = draw(
        st.sampled_from(
            ["unknown", "near", "type", "range", "empty", "huge", "duplicate", "contradiction", "section"]
        )
    )
    key = draw(st.sampled_from(sorted(FIELDS)))
    if kind == "contradiction":
        key, together = draw(st.sampled_from(CONTRADICTIONS))
        for name, value in together.items():
            put(values, name, value)
        return Spoilt(kind, key, values)
    if kind == "section":
        key = draw(st.sampled_from(SECTIONS))
        values[key] = draw(st.sampled_from([None, 3, "resnet18", [], [{"name": "x"}], True]))
        return Spoilt(kind, key, values)
    if kind == "duplicate":
        if draw(st.booleans()):
            return Spoilt(kind, key, values, [f"{key}=1", f"{key}=1"])
        name = draw(st.sampled_from(sorted(values)))
        return Spoilt(kind, name, values, extra=f"{name}: 1\n")
    if kind in ("unknown", "near"):
        section, name = draw(misspelt_names(key) if kind == "near" else unknown_names())
        key = f"{section}.{name}" if section else name
        if not name or key in FIELDS or key in SECTIONS:
            section, name, key = "", "no_such_key", "no_such_key"
        value: object = 1
    else:
        choices = {"type": wrong_types, "range": out_of_range, "empty": empty, "huge": huge}[kind](
            FIELDS[key]
        )
        if not choices:
            kind, choices = "type", wrong_types(FIELDS[key])
        value = draw(st.sampled_from(choices))
        section, _, name = key.rpartition(".")
    inner = values if not section else values.setdefault(section, {})
    inner[name] = value
    return Spoilt(kind, key, values)


def check(spoilt: Spoilt, message: str) -> None:
    """One line that names the key, where it stands, and a remedy."""
    key = spoilt.key if spoilt.key.isprintable() and len(spoilt.key) < 80 else spoilt.key[:20]
    assert key in message, (spoilt, message)
    assert REMEDY.search(message), message
    assert len(message.splitlines()) == 1, message
    assert len(message) < 800 and message.isprintable(), message
    assert "spoilt.yaml:" in message or message.startswith("command line: ")
    for jargon in ("pydantic", "tuple", "instance of", "Value error", "Traceback"):
        assert jargon not in message


seen: Counter[str] = Counter()


@settings(
    max_examples=EXAMPLES,
    phases=[Phase.generate],  # no shrinking: a failure shows its recipe, which is short
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(spoilt=spoilt_recipes())
def test_a_spoilt_recipe_is_one_message(spoilt: Spoilt, tmp_path: Path):
    recipe, *overrides = spoilt.write(tmp_path)
    with pytest.raises(UserError) as caught:
        load_config(recipe, overrides)
    assert caught.value.exit_code == 2
    check(spoilt, str(caught.value))
    seen[spoilt.kind] += 1


def test_every_kind_of_mistake_was_made():
    if not seen:
        pytest.skip("the test above was not run")
    assert sum(seen.values()) >= 200
    assert len(seen) == 9 and min(seen.values()) >= 10, seen


TEN = [
    (["model.nmae=resnet20"], "unknown key model.nmae; did you mean model.name?"),
    (["model.name=resnet21"], "model.name: no network is called 'resnet21'; did you mean resnet"),
    (["data.batch_size=many"], "data.batch_size: input should be a valid integer, got 'many'"),
    (["optimizer.lr=-1"], "optimizer.lr: input should be greater than 0, got -1"),
    (["duration="], "duration: input should be a valid string, got None"),
    (["data.root=" + "x" * 5000], "data.root: holds a NUL character or is longer than 4096 characters"),
    (["seed=1", "seed=2"], "duplicate key seed; keep one of the two"),
    (
        ["compile.mode=reduce-overhead"],
        "compile.mode: reduce-overhead captures CUDA graphs, but runtime.device is cpu; use ",
    ),
    (["optimizer=0.1"], "optimizer: expected a section with keys such as optimizer.name, got 0.1"),
    (["optimizer.lr"], "'optimizer.lr': expected KEY=VALUE with a dotted key"),
]


def test_ten_of_them_through_the_command(tmp_path: Path):
    """Exit code 2 and one line, before torch is imported: no GPU is taken, nothing downloaded or written."""
    for name in ("torch", "torchvision", "accelerate", "nvidia"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('{name} was imported')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path / "home")}
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "pipeline.train",
        str(Path(RECIPE).relative_to(ROOT)),
        f"log.dir={tmp_path}/runs",
    ]
    started = [
        subprocess.Popen(
            [*command, *keys],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for keys, _ in TEN
    ]
    for process, (keys, told) in zip(started, TEN, strict=True):
        out, err = process.communicate(timeout=PATIENCE_S)
        assert (process.returncode, out) == (2, ""), (keys, err)
        assert len(err.splitlines()) == 1 and err.startswith("error: ") and told in err, err
    assert not (tmp_path / "runs").exists() and not (tmp_path / "home").exists()
