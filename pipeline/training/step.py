"""Computes the training step: forward, loss, scaled backward, unscale, clip, update. It logs nothing."""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pipeline.config import AnyMixAugment, Config
from pipeline.data.batch import Batch
from pipeline.optim.muon import Muon
from pipeline.training.capture import new_graph
from pipeline.training.compile_ahead import compile_ahead
from pipeline.training.losses import classification_loss, count_correct
from pipeline.training.mixing import MixDraws, mix
from pipeline.training.phases import Phase, phases_of
from pipeline.training.plan import Plan
from pipeline.training.state import TrainState, copy_to_rehearse

_WARMUP = 3  # eager steps before a capture


@dataclass(frozen=True)
class StepOutput:
    """Device scalars of one step. The host has waited for none of them.

    Attributes:
        loss: float32, mean over the process's share of the batch, before scaling.
        correct: int64, correct predictions; float32 if images are mixed (`count_correct`).
        found_inf: float32, 1 if the gradient overflowed and the update was skipped.
    """

    loss: torch.Tensor
    correct: torch.Tensor
    found_inf: torch.Tensor


@dataclass(frozen=True)
class StepOptions:
    """The options of a step.

    Attributes:
        label_smoothing: as `loss.label_smoothing`.
        clip_norm: largest global L2 norm of the unscaled gradient, or None.
        accumulate: number of equal micro-batches that a batch is cut into.
        mix: as `augment.mix`.
        loss: as `loss.name`.
    """

    label_smoothing: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1
    mix: str = "none"
    loss: str = "cross_entropy"

    @classmethod
    def of(cls, config: Config) -> "StepOptions":
        return cls(
            config.loss.label_smoothing,
            config.optimizer.clip_norm,
            config.optimizer.accumulate,
            config.augment.mix,
            config.loss.name,
        )


def train_step(
    state: TrainState,
    options: StepOptions,
    images: torch.Tensor,
    labels: torch.Tensor,
    mix_draws: torch.Tensor | None = None,
) -> StepOutput:
    """Take one optimizer step with the learning rates in the groups of `state.optimizer`.

    Args:
        state: updated in place (all but `state.step`).
        options: of the step.
        images: (B, C, H, W) as the loader delivers them.
        labels: (B,) int64.
        mix_draws: the draws of `mixing.draw_mixing`, if `options.mix` is not `none`.
    """
    shares = None
    if mix_draws is not None:
        images, labels, shares = mix(options.mix, images, labels, mix_draws)
    loss, correct = _backward(state, options, images, labels, shares)
    found_inf = _update_weights(state, options)
    if state.ema is not None:
        state.ema.update(found_inf)
    skips = state.precision.scaler.is_enabled()
    state.totals.add(loss, correct, len(images), found_inf if skips else None)
    return StepOutput(loss, correct, found_inf)


def _backward(
    state: TrainState,
    options: StepOptions,
    images: torch.Tensor,
    labels: torch.Tensor,
    shares: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run forward and scaled backward, one micro-batch after another.

    The gradients are those of the mean over the whole batch, and over all processes.

    Returns:
        The mean loss and the number of correct predictions.
    """
    losses, correct = [], []
    count = options.accumulate
    for some_images, targets in zip(images.chunk(count), labels.chunk(count), strict=True):
        with state.precision.autocast():
            logits = state.model(some_images)
            smoothing, name = options.label_smoothing, options.loss
            loss = classification_loss(logits, targets, smoothing, shares, name, state.class_weights)
        state.precision.scaler.scale(loss / count if count > 1 else loss).backward()
        losses.append(loss.detach())
        correct.append(count_correct(logits.detach(), targets, shares))
    if state.gradient_mean is not None:
        state.gradient_mean.average()
    if count == 1:
        return losses[0], correct[0]
    return torch.stack(losses).mean(), torch.stack(correct).sum()


def _update_weights(state: TrainState, options: StepOptions) -> torch.Tensor:
    """Unscale and clip the gradients, update the weights, then the loss scale.

    Returns:
        Device scalar, float32: 1 if the gradient overflowed and the update was skipped.
    """
    scaler, optimizer = state.precision.scaler, state.optimizer
    if options.clip_norm is not None or isinstance(optimizer, Muon):
        scaler.unscale_(optimizer)
    if options.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), options.clip_norm)
    scaler.step(optimizer)
    # torch has no public name for this flag; comparing two scales, the public way, waits for the device
    flags = list(scaler._found_inf_per_device(optimizer).values()) if scaler.is_enabled() else []
    found_inf = flags[0].clone() if flags else torch.zeros((), device=state.lr.device)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return found_inf


def _compiled_graphs() -> int:
    if "torch._dynamo" not in sys.modules:  # importing it takes a second
        return 0
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@dataclass
class _Shape:
    """The progress of the steps on images of one height and width, in one phase of the run.

    Attributes:
        eager_left: eager steps before the capture.
        graph, static, output: the captured step, the tensors that it reads, and its result.
    """

    eager_left: int
    graph: torch.cuda.CUDAGraph | None = None
    static: list[torch.Tensor] = field(default_factory=list)
    output: StepOutput | None = None


class Step:
    """Takes the steps of a run: sets the learning rate, counts, and on a GPU replays the whole step as one
    CUDA graph.

    The first steps run eagerly, until torch.compile and cuDNN's choice of algorithms have settled. Then one
    step is captured, from forward to update. Every later step is a copy into the static input and a replay,
    so that the host has little to do. The eager steps are training steps too, so capturing changes no result.
    Images of another height and width are compiled and captured once too, and so is each phase of the run.
    All graphs share their memory.

    Args:
        config: the run's config.
        state: updated in place.
        rates_at: learning rate of each parameter group, at an optimizer step.
        capture: replay as a CUDA graph.
        plan: durations in steps; None: no renormalisation, no Lookahead, one phase, and a moving average of
            every step.

    Attributes:
        phases: of the run, in their order. On several processes there is one.
        eager_steps: on images of a new size, before the capture.
    """

    def __init__(
        self,
        config: Config,
        state: TrainState,
        rates_at: Callable[[int], Sequence[float]],
        capture: bool,
        plan: Plan | None = None,
    ):
        self._state, self._rates_at, self._plan = state, rates_at, plan
        self._config = config
        self._options = StepOptions.of(config)
        self._capture = capture
        self.eager_steps = _WARMUP
        self.take_draws_of(config)
        self.phases = (Phase(),)
        if plan is not None and state.gradient_mean is None:
            self.phases = phases_of(config, plan, state.model)
        # by height and width, and by the first step of the phase
        self._shapes: dict[tuple[torch.Size, int], _Shape] = {}
        self._shape = _Shape(_WARMUP)
        self._graphs_when_settled: int | None = None
        self._unexpected_graphs = 0
        self._capture_s = 0.0
        self._kernels_are_compiled = False

    def take_capture_s(self) -> float:
        """Return the seconds of capturing since the last call."""
        seconds, self._capture_s = self._capture_s, 0.0
        return seconds

    def take_draws_of(self, config: Config) -> None:
        """Mix images by the draws of another seed from now on; the captured graphs stay.

        Args:
            config: that of the step, but for the seed.
        """
        augment, device = config.augment, self._state.totals.values.device
        mixes = isinstance(augment, AnyMixAugment)
        self._mix_draws = MixDraws(augment, config.seed, config.image_size, device) if mixes else None

    @property
    def settled(self) -> bool:
        """True if warm-up, compiling and capturing are over for steps such as the last one."""
        return self._shape.eager_left <= 0 and (self._shape.graph is not None or not self._capture)

    def is_new(self, batch: Batch) -> bool:
        """True if the step has not seen images of this height and width in this phase yet."""
        return self._key(batch) not in self._shapes

    def describe_new(self, batch: Batch) -> str:
        """Return why the next step is compiled, if `is_new`."""
        height, width = batch.images.shape[2:]
        if all(size != batch.images.shape[2:] for size, _ in self._shapes):
            return f"images of {height}x{width} pixels from here on"
        return f"{len(self.phase.ended)} of the parameters reached `until`; only the others are trained now"

    @property
    def phase(self) -> Phase:
        """Return the phase of the next step."""
        return [phase for phase in self.phases if phase.first_step <= self._state.step][-1]

    def _key(self, batch: Batch) -> tuple[torch.Size, int]:
        return batch.images.shape[2:], self.phase.first_step

    @property
    def recompilations(self) -> int:
        """Number of graphs compiled after warm-up. It is 0 unless batch sizes or types changed."""
        since = _compiled_graphs() - self._graphs_when_settled if self._graphs_when_settled is not None else 0
        return self._unexpected_graphs + since

    def __call__(self, batch: Batch) -> StepOutput:
        state = self._state
        self._select_shape(batch)
        self._set_rates()
        if state.ema is not None:
            state.ema.set_step(state.step, self._plan.ema_every if self._plan is not None else 1)
        inputs = [batch.images, batch.labels]
        if self._mix_draws is not None:
            inputs.append(self._mix_draws.at(state.step))
        if self._capture and self._shape.graph is None:
            # copies, as the captured step reads: cuDNN chooses algorithms for the alignment of the memory
            inputs = [tensor.clone() for tensor in inputs]
        if state.totals.values.is_cuda and not self._kernels_are_compiled:
            self._compile_kernels(inputs)
        if not self._capture or self._shape.eager_left > 0:
            with self.phase.without_ended():
                output = train_step(state, self._options, *inputs)
            self._shape.eager_left -= 1
        else:
            output = self._replay(inputs)
        if self._graphs_when_settled is None and self.settled:
            self._graphs_when_settled = _compiled_graphs()
        state.step += 1
        self._look_ahead()
        return output

    def _look_ahead(self) -> None:
        state, plan, lookahead = self._state, self._plan, self._config.lookahead
        if state.lookahead is None or plan is None or plan.lookahead_every is None:
            return
        if state.step % plan.lookahead_every == 0:
            done = state.step / plan.total_steps
            state.lookahead.update(lookahead.decay * done**lookahead.power)

    def _set_rates(self) -> None:
        """Write the learning rates of this step, and Muon's switch, to the device."""
        optimizer, step = self._state.optimizer, self._state.step
        for group, rate in zip(optimizer.param_groups, self._rates_at(step), strict=True):
            group["lr"].fill_(rate)
        if isinstance(optimizer, Muon) and optimizer.renormalise is not None:
            every = self._plan.renormalise_every if self._plan is not None else None
            optimizer.renormalise.fill_(every is not None and step % every == 0)

    def _compile_kernels(self, inputs: list[torch.Tensor]) -> None:
        """Compile the kernels of the first step in threads, on the GPU that this process trains on.

        The rehearsal holds the activations of a step that is not compiled. The peak of memory is counted anew
        after it.
        """
        device = inputs[0].device

        def rehearse() -> None:
            state = copy_to_rehearse(self._state, self._config)
            copies = dict(zip(self._state.model.parameters(), state.model.parameters(), strict=True))
            phase = Phase(self.phase.first_step, tuple(copies[each] for each in self.phase.ended))
            with phase.without_ended():
                train_step(state, self._options, *(tensor.clone() for tensor in inputs))

        config = self._config
        names = (config.optimizer.name, config.precision.mode, config.compile.mode)
        about = ("step", *names, self._options, self._state.class_weights is None)
        compile_ahead(rehearse, self._state.model, inputs, *about)
        torch.cuda.reset_peak_memory_stats(device)
        self._kernels_are_compiled = True

    def _select_shape(self, batch: Batch) -> None:
        """Select the graph of the batch's image size and of the phase. If one is new, the next compilation is
        expected."""
        key = self._key(batch)
        if key not in self._shapes:
            self._unexpected_graphs, self._graphs_when_settled = self.recompilations, None
            self._shapes[key] = _Shape(self.eager_steps)
        self._shape = self._shapes[key]

    def _replay(self, inputs: list[torch.Tensor]) -> StepOutput:
        shape = self._shape
        if shape.graph is None:
            self._capture_step(shape, inputs)
        assert shape.graph is not None
        assert shape.output is not None
        for static, tensor in zip(shape.static, inputs, strict=True):
            static.copy_(tensor, non_blocking=True)
        shape.graph.replay()
        return shape.output

    def memory_pool(self) -> Any:
        """Return the memory that all captured steps share, because one runs at a time; None before the first
        one."""
        graphs = [shape.graph for shape in self._shapes.values() if shape.graph is not None]
        return graphs[0].pool() if graphs else None

    def _capture_step(self, shape: _Shape, inputs: list[torch.Tensor]) -> None:
        began = time.perf_counter()
        shape.static = [tensor.clone() for tensor in inputs]
        with new_graph(self.memory_pool()) as graph, self.phase.without_ended():
            shape.output = train_step(self._state, self._options, *shape.static)
        shape.graph = graph
        self._capture_s += time.perf_counter() - began
