"""Time `muon_step`: one step of all matrices of a network, beside PyTorch with a stream for each shape."""

from collections.abc import Sequence
from functools import lru_cache

import torch

from benchmarks.kernels.case import Case
from kernels.muon.op import muon_step
from kernels.muon.reference import MuonSettings, muon_step_reference
from pipeline.config import ModelConfig, MuonConfig
from pipeline.models import build_model
from pipeline.optim.parts import hidden_matrices

_NETWORKS = (("speednet94", 3), ("resnet18", 3), ("resnet18", 5))  # and the number of iterations
_NUM_INPUTS = 4


def cases(device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of this op; one small case if `quick`."""
    if quick:
        return [_case(device, "resnet20", 1, 3)]
    return [_case(device, network, steps) for network, steps in _NETWORKS]


def _case(device: torch.device, network: str, steps: int, most: int | None = None) -> Case:
    matrices = hidden_matrices(build_model(ModelConfig(name=network), 10))[:most]
    generator = torch.Generator().manual_seed(0)

    def tensors() -> list[torch.Tensor]:
        values = [torch.randn(matrix.shape, generator=generator).to(device) for matrix in matrices]
        return [v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for v in values]

    settings = MuonSettings(0.95, True, steps, MuonConfig().newton_schulz_coefficients)
    lr, found_inf, renormalise = (torch.full((), value, device=device) for value in (1e-3, 0.0, 1.0))
    rest = lr, 0.0, settings, found_inf, renormalise
    return Case(
        label=f"{len(matrices)} matrices of {network}, {steps} iterations",
        kernel=muon_step,
        reference=muon_step_reference,
        reference_name="muon reference",
        inputs=[(tensors(), tensors(), tensors(), *rest) for _ in range(_NUM_INPUTS)],
        batch_size=1,
        precision="fp32",
        variant=f"{network}, {steps} iterations",
        others=(("muon, a stream for each shape", _shapes_on_streams),) if device.type == "cuda" else (),
    )


def _shapes_on_streams(
    weights: Sequence[torch.Tensor],
    momenta: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    *rest: object,
) -> None:
    """Call the reference for each shape on a stream of its own."""
    shapes = list(dict.fromkeys(weight.shape for weight in weights))
    current = torch.cuda.current_stream()
    for number, shape in enumerate(shapes):
        same = [index for index, weight in enumerate(weights) if weight.shape == shape]
        some = [[tensors[index] for index in same] for tensors in (weights, momenta, gradients)]
        stream = _stream(number)
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            muon_step_reference(*some, *rest)  # type: ignore[arg-type]
    for number in range(len(shapes)):
        current.wait_stream(_stream(number))


@lru_cache
def _stream(number: int) -> torch.cuda.Stream:
    return torch.cuda.Stream()
