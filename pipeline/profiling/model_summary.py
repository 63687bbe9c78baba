"""Describes a network: its layers with shapes, parameters, memory and arithmetic.

Nothing is computed: the network runs on the meta device, which holds shapes only, so that any batch fits on
any machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.data.datasets.counts import num_classes_of
from pipeline.models import build_model
from pipeline.models.flops import count_flops, on_meta

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
_MIB = 2**20


@dataclass(frozen=True)
class Layer:
    """One row of the table: a module of the network, after the modules that contain it.

    Attributes:
        name: dotted path, "" for the whole network.
        kind: its class.
        output: shape for one image, of the first output if there are several; None if that is not a tensor.
        parameters: trainable ones, inner modules included.
        output_bytes: of the output for the batch of the config, in the precision of the config.
        flops: forward for one image, a multiply-add being two.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    output_bytes: int
    flops: float

    @property
    def depth(self) -> int:
        return self.name.count(".") + 1 if self.name else 0


@dataclass(frozen=True)
class Summary:
    """The description of a network.

    Attributes:
        layers: every module that ran, in the order of their definition; the whole network first.
        input_shape: (C, H, W).
        batch_size: images in a step, over all processes.
        precision: of the activations.
        saved_bytes: activations that autograd keeps for the backward pass, for the batch, if nothing is
            compiled or fused.
        training_flops: forward and backward for one image.
        trained: how many parameters are trained, if `model.freeze` excludes some.
    """

    layers: tuple[Layer, ...]
    input_shape: tuple[int, int, int]
    batch_size: int
    precision: str
    saved_bytes: int
    training_flops: float
    trained: str = ""


def build_for_summary(config: Config) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return the network of a config on the meta device, and the shape of its images.

    No data set and no weights are read.

    Raises:
        UserError: as for `num_classes_of`.
    """
    shape = (3, config.image_size, config.image_size)
    sizes = config.image_size, config.other_image_sizes
    return on_meta(build_model(config.model, num_classes_of(config), shape[0], *sizes)), shape


def summarise(
    model: nn.Module, input_shape: tuple[int, int, int], batch_size: int, precision: str
) -> Summary:
    """Describe a network.

    Args:
        model: as `build_for_summary` returns it.
        input_shape: (C, H, W).
        batch_size: images in a step.
        precision: `fp16`, `bf16` or `fp32`.
    """
    flops = count_flops(model, input_shape)
    outputs = _outputs(model, input_shape)
    dtype = _DTYPES[precision]
    layers = []
    for name, module in model.named_modules():
        if name in outputs:
            shape = outputs[name]
            size = dtype.itemsize * batch_size * (torch.Size(shape).numel() if shape is not None else 0)
            parameters = sum(
                parameter.numel() for parameter in module.parameters() if parameter.requires_grad
            )
            layers.append(Layer(name, type(module).__name__, shape, parameters, size, flops.get(name, 0.0)))
    saved = saved_bytes(model, input_shape, precision) * batch_size
    return Summary(
        tuple(layers),
        input_shape,
        batch_size,
        precision,
        saved,
        count_flops(model, input_shape, backward=True)[""],
    )


def _outputs(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...] | None]:
    """Return the shape of the first output of every module that runs, without the batch."""
    shapes: dict[str, tuple[int, ...] | None] = {}
    handles = []
    for name, module in model.named_modules():

        def record(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            shapes[name] = tuple(first.shape[1:]) if isinstance(first, Tensor) else None

        handles.append(module.register_forward_hook(record))
    try:
        with torch.no_grad():
            model.eval()(torch.empty(1, *input_shape, device="meta"))
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def saved_bytes(model: nn.Module, input_shape: Sequence[int], precision: str) -> int:
    """Return the bytes per image that autograd keeps from forward to backward.

    Parameters and buffers do not count. All tensors have one precision.

    Args:
        model, input_shape, precision: as for `summarise`.
    """
    dtype = _DTYPES[precision]
    network = on_meta(model).to(dtype).train()
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()  # a view and its base count once
        if storage._cdata not in weights:
            saved[storage._cdata] = storage.nbytes()
        return tensor

    batch = 2  # the statistics of a norm do not grow with the batch, and are negligible
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        images = torch.empty(batch, *input_shape, dtype=dtype, device="meta")
        logits = network(images)  # its graph holds the saved tensors: it must live until all are counted
    del logits
    return sum(saved.values()) // batch


def print_summary(summary: Summary, title: str, depth: int) -> None:
    """Print the layers down to DEPTH, and the totals."""
    from rich.console import Console
    from rich.table import Table

    batch = f"a batch of {summary.batch_size:,} in {summary.precision}"
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("layer")
    table.add_column("kind", style="dim")
    for heading in ("output", "parameters", f"output, MiB\n({batch})", "forward, MFLOP\n(an image)"):
        table.add_column(heading, justify="right")
    for layer in summary.layers[1:]:
        if layer.depth <= depth:
            table.add_row(
                "  " * (layer.depth - 1) + layer.name,
                layer.kind,
                "–" if layer.output is None else "×".join(str(size) for size in layer.output),
                f"{layer.parameters:,}" if layer.parameters else "",
                f"{layer.output_bytes / _MIB:,.1f}",
                f"{layer.flops / 1e6:,.1f}" if layer.flops else "",
            )
    console = Console(width=None if Console().is_terminal else 140, highlight=False)
    console.print(table)
    console.print("\n".join(("", *totals(summary))), markup=False)


def totals(summary: Summary) -> list[str]:
    """Return the lines below the table."""
    whole = summary.layers[0]
    return [
        f"parameters   {whole.parameters:,}",
        *([f"trained      {summary.trained}; model.freeze excludes the others"] if summary.trained else []),
        f"arithmetic   {whole.flops / 1e9:,.3f} GFLOP an image forward ({whole.flops / 2e9:,.3f} G "
        f"multiply-adds, each counted as two); {summary.training_flops / 1e9:,.3f} GFLOP with backward",
        f"weights      {4 * whole.parameters / _MIB:,.1f} MiB in float32, and as much for gradients",
        f"activations  about {summary.saved_bytes / _MIB:,.0f} MiB kept for backward, for a batch of "
        f"{summary.batch_size:,} in {summary.precision}: an estimate, with nothing compiled or fused",
    ]
