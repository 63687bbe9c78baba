"""Tests TensorBoard's graph of the network at the end of a run."""

from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import ModelConfig
from pipeline.models import build_model
from pipeline.report.tensorboard import write_end_of_run
from pipeline.run.folder import RunFolder


@pytest.mark.parametrize("name", ["resnet20", "davidnet", "speednet94", "speednet96"])
def test_the_graph_of_every_kind_of_network_is_written(name: str, tmp_path: Path):
    model = build_model(ModelConfig.model_validate({"name": name}), 10)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    run = RunFolder(tmp_path)
    write_end_of_run(run, model, (16, 16), 3, {"seed": 0}, {"test_accuracy": 0.5, "test_loss": None})
    assert model.training and all(
        torch.equal(before[key], value) for key, value in model.state_dict().items()
    )
    (file,) = run.tensorboard.iterdir()
    events = EventAccumulator(str(file)).Reload()
    assert events.Scalars("hparam/test_accuracy")[0].value == 0.5
    nodes = [node.name for node in events.Graph().node]
    for part in ("[stem]", "[stages]", "[head]"):
        assert any(part in node for node in nodes), part
