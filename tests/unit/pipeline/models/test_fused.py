"""Evaluation on our kernels computes what PyTorch's own functions compute, in every network that has them.

On a CPU the operators run their references.
"""

from typing import Any

import pytest
import torch
from torch import nn

from kernels.norm_act_inference import op as inference_op
from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.models.fused import FusedLayer, kernels_in_evaluation

NETWORKS: dict[str, tuple[dict[str, Any], int]] = {  # keys, and norms on the kernels
    "resnet20": ({"name": "resnet20"}, 19),
    "projections": ({"name": "resnet20", "shortcut": "B"}, 19),
    "plain20": ({"name": "plain20"}, 19),
    "pre-activation": ({"name": "resnet20", "preactivation": True}, 19),
    "bottlenecks": ({"name": "resnet50", "stem": "imagenet"}, 49),
    "gates": ({"name": "resnet20", "squeeze_excitation": 4}, 21),
    "davidnet": ({"name": "davidnet"}, 8),
    "speednet94": ({"name": "speednet94", "activation": "silu"}, 6),
    "speednet96": ({"name": "speednet96"}, 9),
}


def build(keys: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({**keys, "fused_norm": True, "fused_stem": True})
    model = build_model(config, 10, image_size=32).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the operators on the CPU too, and return the calls."""
    made: list[str] = []
    operator = inference_op._op
    monkeypatch.setattr(inference_op, "_op", lambda *given: made.append("norm") or operator(*given))
    monkeypatch.setattr(
        FusedLayer,
        "_infers_on_kernels",
        lambda self, _: self.fused and not self.training and self.evaluates_on_kernels,
    )
    return made


@pytest.mark.parametrize(("keys", "norms"), NETWORKS.values(), ids=NETWORKS)
@torch.no_grad()
def test_the_logits_are_those_of_pytorch(keys: dict[str, Any], norms: int, calls: list[str]) -> None:
    model, images = build(keys), torch.randn(4, 3, 32, 32)
    expected = model(images)
    assert not calls
    with kernels_in_evaluation(model):
        logits = model(images)
    assert len(calls) == norms
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(model(images), expected) and len(calls) == norms


def test_training_and_an_error_leave_no_trace(calls: list[str]) -> None:
    model = build({"name": "resnet20"})
    with pytest.raises(RuntimeError, match="channels"), kernels_in_evaluation(model):
        model.train()(torch.randn(2, 4, 16, 16))
    with kernels_in_evaluation(model):
        model.train()(torch.randn(2, 3, 16, 16))
    model.eval()(torch.randn(2, 3, 16, 16))
    assert not calls
