"""Computes the least work of a network, layer by layer and pass by pass, and the time that it takes at best.

The model: a layer reads each of its inputs from memory once, and writes its output once, in each pass. A pass
takes as long as its operations or its bytes, whichever take longer at the device's best rates; passes follow
one another.

Layers are the convolutions, the linear layers and the norms. All between two of them, such as an activation,
a residual or a pool, is taken for a part of the norm or the convolution before it, and costs only the tensors
that it adds: a residual is read, a norm after a pool reads the activation before the pool and keeps the
pooled one, and a norm before the pool of a 7x7 stem writes the pooled activation alone. Batch statistics come
from the convolution before. The first layer of a network for small images (a stem, a whitening) is one layer
with its norm and its activation, since it can be computed again from the images at no cost in bytes. A norm
on the shortcut of a block is a part of the norm that adds it.

This bounds a program that runs these layers one by one from below. Two things can beat it: a program that
keeps a tensor in the cache from one layer to the next, and one that computes in fewer operations (Winograd).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from kernels.arguments import SMOOTH_ACTIVATIONS
from pipeline.config import MuonConfig, OptimizerConfig, PrecisionConfig
from pipeline.models.flops import on_meta
from pipeline.models.layers import NormAct, NormReluPool, PoolNormAct, Projection, Stem
from pipeline.optim.parts import Part

CONVOLUTION = "convolution: "
FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = (
    CONVOLUTION + way for way in ("forward", "input gradient", "weight gradient")
)
NORM_FORWARD, NORM_BACKWARD = (f"batch norm (+ ReLU, add): {way}" for way in ("forward", "backward"))
PRODUCT = "matrix product"
OPTIMIZER = "optimizer and scaler"

_IMAGES = 2  # batch norm in training needs more than one value per channel
_Norm = nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm


@dataclass(frozen=True)
class Work:
    """The work of one kind of kernel in one step; None if it is not known.

    Attributes:
        flops: floating-point operations; a multiply-add counts as two.
        num_bytes: bytes read and written.
    """

    flops: float | None = None
    num_bytes: float | None = None


@dataclass(frozen=True)
class LayerPass:
    """One pass over a layer.

    Attributes:
        layer: name in the network.
        kind: of the kernels that do it.
        flops: floating-point operations; a multiply-add counts as two.
        num_bytes: bytes read and written.
    """

    layer: str
    kind: str
    flops: float
    num_bytes: float

    def seconds(self, best: Work) -> float:
        """Return the least time.

        Args:
            best: operations and bytes that the device does in a second, both known.
        """
        assert best.flops and best.num_bytes
        return max(self.flops / best.flops, self.num_bytes / best.num_bytes)


def element_bytes(precision: PrecisionConfig) -> int:
    """Return the bytes of an activation, and of a weight as a layer reads it; PRECISION is the section."""
    return 4 if precision.mode == "fp32" else 2


def layer_passes(
    model: nn.Module,
    input_shape: tuple[int, int, int],
    batch_size: int,
    element_bytes: int,
    *,
    training: bool = True,
) -> list[LayerPass]:
    """Return the passes of one training step, without the optimizer; or those of one evaluation.

    A gradient that nobody needs is no pass: those of the images, of frozen weights, and of the inputs of a
    layer before which all is frozen.

    Args:
        model: on any device; it is not changed.
        input_shape: (C, H, W) of an image.
        batch_size: number of images.
        element_bytes: of an activation, and of a weight as a layer reads it: 2 in half precision, else 4.
        training: True counts forward and backward; False the forward pass in evaluation mode.
    """
    network = on_meta(model).train(training)
    passes: list[LayerPass] = []
    scale = batch_size / _IMAGES, element_bytes
    inside = {id(child) for stem in network.modules() if isinstance(stem, Stem) for child in stem.children()}
    joined = {
        id(norm)
        for shortcut in network.modules()
        if isinstance(shortcut, Projection)
        for norm in shortcut.children()
        if isinstance(norm, NormAct)
    }
    for name, module in network.named_modules():
        counter = _Counter(name, passes, scale, is_joined=id(module) in joined)
        if isinstance(module, Stem):
            module.register_forward_hook(counter.count_stem)
        elif id(module) in inside:
            continue
        elif isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(counter.count_product)
        elif isinstance(module, _Norm):
            module.register_forward_hook(counter.count_norm, with_kwargs=True)
    with torch.set_grad_enabled(training):
        network(torch.empty(_IMAGES, *input_shape, device="meta"))
    return passes


def _flops(layer: nn.Module, output: torch.Tensor) -> int:
    """Return the operations of the forward pass of a convolution or a linear layer."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    return 2 * output.numel() * (weight.numel() // weight.shape[0])


@dataclass(frozen=True)
class _Counter:
    """Adds the passes of one layer to a list, as hooks of its forward pass.

    Attributes:
        name: of the layer.
        passes: added to.
        scale: factor of the activations, whose batch is `_IMAGES` here; bytes of an element.
        is_joined: True for the norm of a shortcut that the norm of the block takes in.
    """

    name: str
    passes: list[LayerPass]
    scale: tuple[float, int]
    is_joined: bool = False

    def _add(self, kind: str, flops: float, activations: float, weights: float = 0.0) -> None:
        factor, size = self.scale
        self.passes.append(
            LayerPass(self.name, kind, factor * flops, size * (factor * activations + weights))
        )

    def count_product(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        is_convolution = isinstance(layer, nn.Conv2d)
        kinds = (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT) if is_convolution else (PRODUCT,) * 3
        self._count(kinds, layer, inputs[0], output)

    def count_stem(self, stem: nn.Module, inputs: tuple[torch.Tensor, ...], output: object) -> None:
        first = output[0] if isinstance(output, tuple) else output
        assert isinstance(first, torch.Tensor) and isinstance(stem, Stem)
        self._count((FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT), stem[0], inputs[0], first)

    def _count(self, kinds: Sequence[str], layer: nn.Module, x: torch.Tensor, output: torch.Tensor) -> None:
        flops, activations = _flops(layer, output), x.numel() + output.numel()
        weights = sum(parameter.numel() for parameter in layer.parameters())
        self._add(kinds[0], flops, activations, weights)
        if x.requires_grad and output.requires_grad:
            self._add(kinds[1], flops, activations, weights)
        trained = [parameter for parameter in layer.parameters() if parameter.requires_grad]
        if trained and output.requires_grad:  # the gradient of a bias alone is a sum
            with_weight = any(parameter.ndim > 1 for parameter in trained)
            self._add(kinds[2], flops * with_weight, activations, sum(p.numel() for p in trained))

    def count_norm(
        self, layer: nn.Module, inputs: tuple[torch.Tensor, ...], keywords: dict[str, object], output: object
    ) -> None:
        y = output[0] if isinstance(output, tuple) else output
        assert isinstance(y, torch.Tensor)
        x, size = inputs[0], y.numel()
        residual = keywords.get("residual") is not None
        keeps_pooled = isinstance(layer, PoolNormAct) and layer.training
        if not self.is_joined:
            self._add(NORM_FORWARD, 0, x.numel() + size + size * residual + size * keeps_pooled)
        if not y.requires_grad:
            return
        reads_again = residual and isinstance(layer, NormAct) and layer.activation in SMOOTH_ACTIVATIONS
        dx = x.numel() if x.requires_grad else 0
        # before a pool x itself is read, elsewhere x or the pooled x, which have the size of y
        kept = x.numel() if isinstance(layer, NormReluPool) else size
        backward = size if self.is_joined else kept + size * (1 + residual + reads_again) + dx
        self._add(NORM_BACKWARD, 0, backward)


# Values of a weight that an update reads and writes: weight, gradient, and its state (SGD, Muon: momentum).
OPTIMIZER_VALUES = {"sgd": 5, "adamw": 7, "muon": 5}


def optimizer_passes(config: OptimizerConfig, parts: Sequence[Part]) -> list[LayerPass]:
    """Return one pass for the update of all weights that need a gradient, and one for Muon's iterations.

    Of an iteration for a matrix of m rows and n columns (m ≤ n), x ← a x + (b g + c g²) x with g = x xᵀ, half
    of the symmetric products counts: m² n + m³ + 2 m² n operations, and no bytes, because the matrices stay
    in the cache.

    Args:
        config: the section `optimizer`.
        parts: of the network; parameters without `requires_grad` do not count. Gradient and state are of the
            dtype of the weight.
    """
    trained = [(part, weight) for part in parts for weight in part.parameters if weight.requires_grad]
    num_bytes = OPTIMIZER_VALUES[config.name] * sum(w.numel() * w.element_size() for _, w in trained)
    passes = [LayerPass("", OPTIMIZER, 0.0, num_bytes)]
    if isinstance(config, MuonConfig):
        flops = 0
        for part, weight in trained:
            if part.orthogonalised:
                short, long = sorted((len(weight), weight.numel() // len(weight)))
                flops += config.newton_schulz_steps * short**2 * (3 * long + short)
        passes.append(LayerPass("", OPTIMIZER, flops, 0.0))
    return passes
