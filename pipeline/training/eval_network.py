"""Runs a network in the evaluations of a training run: on our kernels, replayed as CUDA graphs."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.models.fused import kernels_in_evaluation
from pipeline.training.build import without_compiled_blocks
from pipeline.training.capture import new_graph
from pipeline.training.compile_ahead import compile_ahead
from pipeline.training.precision import Precision

_MOST_SHAPES = 8  # a loader of the caller may give images of any number of sizes


@dataclass(frozen=True)
class _Captured:
    """A forward pass that was captured, the images that it reads, and its logits."""

    graph: torch.cuda.CUDAGraph
    images: torch.Tensor
    logits: torch.Tensor


class EvalNetwork:
    """Computes the logits of a network in evaluation mode, with the weights that it has at each call.

    Fused layers run on our kernels; all others eagerly, because the compiled training graph would be compiled
    again for evaluation. On a GPU, the first call for images of a shape also captures the forward pass, and
    later calls replay it: an eager pass takes longer on the host than on the device. After eight shapes no
    other one is captured. The weights and the running statistics must keep their memory, as a captured
    training step asks for too.

    Args:
        model: the network that is trained, or its moving average.
        precision: autocast as in training.
        capture: replay as CUDA graphs. Calls must then be on another stream than the default one.
        memory: returns the memory pool of other graphs that run at other times on the same stream, to share
            it; None if there is none yet.

    Attributes:
        num_captured: number of shapes that are captured.
        first_pass_s, capture_s: seconds of the first passes of these shapes, which compile kernels and choose
            algorithms, and of the captures.
    """

    def __init__(
        self,
        model: nn.Module,
        precision: Precision,
        capture: bool,
        memory: Callable[[], Any] = lambda: None,
    ):
        self.model, self._precision, self._capture, self._memory = model, precision, capture, memory
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self.first_pass_s = self.capture_s = 0.0

    @property
    def num_captured(self) -> int:
        return len(self._captured)

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits, (B, K) float32, in memory of their own. The model must be in evaluation mode."""
        key = (images.shape, images.stride(), images.dtype)
        captured = self._captured.get(key)
        if captured is None and not (self._capture and self.num_captured < _MOST_SHAPES):
            return self._logits(images)
        if captured is None:
            return self._first_pass(key, images)
        captured.images.copy_(images)
        captured.graph.replay()
        return captured.logits.to(torch.float32, copy=True)

    def _first_pass(self, key: tuple[Any, ...], images: torch.Tensor) -> torch.Tensor:
        """Compile kernels and choose algorithms, which no capture can do; then capture."""
        began = time.perf_counter()
        # a copy, as the captured pass reads: cuDNN chooses algorithms for the alignment of the memory
        images = images.clone()
        about = ("evaluation", self._precision.mode)
        compile_ahead(lambda: self._forward(images.clone()), self.model, [images], *about)
        logits = self._logits(images)
        if images.is_cuda:
            torch.cuda.current_stream(images.device).synchronize()
        compiled = time.perf_counter()
        self._captured[key] = self._capture_pass(images)
        self.first_pass_s += compiled - began
        self.capture_s += time.perf_counter() - compiled
        return logits

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        return self._forward(images).to(torch.float32, copy=True)

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        eagerly = without_compiled_blocks(self.model)
        with kernels_in_evaluation(self.model), eagerly, self._precision.autocast():
            return self.model.forward(images)

    def _capture_pass(self, images: torch.Tensor) -> _Captured:
        others = list(self._captured.values())
        pool = others[0].graph.pool() if others else self._memory()
        static = images.clone()  # keeps the strides
        with new_graph(pool) as graph:
            logits = self._forward(static)
        return _Captured(graph, static, logits)
