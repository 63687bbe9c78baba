"""Evaluates the weights of a run and their moving average, and remembers the best evaluation."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from pipeline.config import Config
from pipeline.data import Loader
from pipeline.distributed.processes import Processes, average_batch_norm
from pipeline.models import DavidNet, ResNet, SpeedNet
from pipeline.run.records import BestEvaluation, EvalRecord, Split
from pipeline.training.build import captures
from pipeline.training.eval_network import EvalNetwork
from pipeline.training.evaluate import EvalResult, evaluate
from pipeline.training.state import TrainState

_OURS = (DavidNet, ResNet, SpeedNet)


@dataclass
class Evaluator:
    """The evaluations of one run on this process.

    Attributes:
        config: of the run; a restart with another seed changes nothing here.
        processes: this process among the others.
        state: that is evaluated, and remembers the best evaluation.
        memory_pool: returns that of the captured training step; None if there is none yet.
        builds_networks: the networks are built by this project. One of the caller may wait for the device in
            evaluation, though not in training, so that it cannot be captured.
    """

    config: Config
    processes: Processes
    state: TrainState
    memory_pool: Callable[[], Any]
    builds_networks: bool
    _networks: dict[str, EvalNetwork] = field(default_factory=dict)

    def evaluate(self, loader: Loader) -> EvalResult:
        """Evaluate the weights and, if there is a moving average of them, the average too."""
        state = self.state
        given = (loader, state.precision, self.processes.device, self.config.evaluation.test_views)
        result = evaluate(state.model, *given, self.network("weights", state.model))
        if state.ema is None:
            return result
        average = evaluate(state.ema.model, *given, self.network("average", state.ema.model))
        return replace(result, ema=average)

    def average_norms(self) -> None:
        """Average the statistics of batch norm over the processes, those of the moving average too."""
        average_batch_norm(self.state.model)
        if self.state.ema is not None:
            average_batch_norm(self.state.ema.model, self.state.model)

    def network(self, name: str, model: nn.Module) -> EvalNetwork:
        """Return the network that evaluates the model; it keeps its captured graphs for all evaluations."""
        if name not in self._networks:
            is_ours = self.builds_networks or type(model) in _OURS
            capture = captures(self.config.compile, self.processes.device) and is_ours
            self._networks[name] = EvalNetwork(model, self.state.precision, capture, self.memory_pool)
        return self._networks[name]

    def take_warmup_s(self) -> tuple[float, float]:
        """Return the seconds since the last call of passes that compiled, and of captures."""
        networks = self._networks.values()
        seconds = sum(each.first_pass_s for each in networks), sum(each.capture_s for each in networks)
        for each in networks:
            each.first_pass_s = each.capture_s = 0.0
        return seconds

    @property
    def num_captured(self) -> int:
        """The number of captured forward passes: one for each network and batch shape."""
        return sum(network.num_captured for network in self._networks.values())

    def record(self, split: Split, result: EvalResult, epoch: float, has_holdout: bool) -> EvalRecord:
        """Return the record of an evaluation, and remember it if it is the best.

        Args:
            split, result: of the evaluation.
            epoch: that has been reached.
            has_holdout: the best one is selected on the holdout; else on the test set.
        """
        self._remember_best(split, result.accuracy, has_holdout)
        figures = result.figures().model_dump()
        return EvalRecord(split=split, step=self.state.step, epoch=round(epoch, 4), **figures)

    def _remember_best(self, split: Split, accuracy: float, has_holdout: bool) -> None:
        """Select by the raw weights."""
        best, step = self.state.best, self.state.step
        selects = split == ("holdout" if has_holdout else "test")
        if selects and (best is None or accuracy > best.accuracy):
            best = BestEvaluation(accuracy=accuracy, step=step, selected_on=split, test_accuracy=None)
        if split == "test" and best is not None and best.step == step:
            best = best.model_copy(update={"test_accuracy": accuracy})
        self.state.best = best

    @property
    def is_best(self) -> bool:
        """True if the evaluation at this step is the best so far."""
        return self.state.best is not None and self.state.best.step == self.state.step
