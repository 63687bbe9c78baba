"""The one owner of mixed precision."""

import ast

import pytest
import torch
from pydantic import TypeAdapter

from pipeline.config import PrecisionConfig
from pipeline.training.precision import Precision
from tests.python import ROOT

CPU = torch.device("cpu")


def build(mode: str, **keys: object) -> Precision:
    return Precision(TypeAdapter(PrecisionConfig).validate_python({"mode": mode, **keys}), CPU)


@pytest.mark.parametrize(
    ("mode", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_runs_products_in_the_type_of_the_mode(mode: str, dtype: torch.dtype):
    with build(mode).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.parametrize(("mode", "enabled"), [("fp32", False), ("bf16", False), ("fp16", True)])
def test_only_fp16_scales_the_loss(mode: str, enabled: bool):
    precision = build(mode, **({"init_scale": 512.0, "growth_interval": 7} if enabled else {}))
    assert precision.scaler.is_enabled() is enabled
    assert precision.loss_scale() == (512 if enabled else 1)
    assert precision.scaler.scale(torch.tensor(2.0)).item() == (1024 if enabled else 2)
    if enabled:
        assert precision.scaler.get_growth_interval() == 7


def calls(name: str) -> list[tuple[str, str]]:
    """File and text of every call of a function of this name in the program."""
    trees = {path.name: ast.parse(path.read_text()) for path in (ROOT / "pipeline").rglob("*.py")}
    nodes = [
        (file, node) for file, tree in trees.items() for node in ast.walk(tree) if isinstance(node, ast.Call)
    ]
    return [
        (file, ast.unparse(node)) for file, node in nodes if ast.unparse(node.func).rpartition(".")[2] == name
    ]


def test_there_is_one_scaler_in_the_program():
    assert [file for file, _ in calls("GradScaler")] == ["precision.py"]


def test_autocast_is_switched_on_in_one_place():
    elsewhere = [
        (file, text) for file, text in calls("autocast") if not text.endswith("precision.autocast()")
    ]
    assert {file for file, text in elsewhere if "enabled=False" not in text} == {"precision.py"}
