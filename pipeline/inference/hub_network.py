"""Makes a network that `huggingface_hub` saves and loads: `HubNetwork.from_pretrained("USER/NAME")`."""

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from pydantic import TypeAdapter
from torch import Tensor, nn

from pipeline.config import load_values
from pipeline.inference.preprocessing import InputSpec
from pipeline.training.build import build_raw_model

_INPUTS = TypeAdapter(InputSpec)


class HubNetwork(
    nn.Module, PyTorchModelHubMixin, library_name="quickres", pipeline_tag="image-classification"
):
    """A network with its preprocessing. The names of its weights are those of the network inside.

    Shape: (B, 3, H, W) float32, normalised → (B, K) logits. `inputs` reads and normalises images.

    Args:
        quickres: values of the config, nested by section.
        inputs: the fields of `InputSpec`.
    """

    def __init__(self, quickres: dict[str, Any], inputs: dict[str, Any]):
        super().__init__()
        self.inputs = _INPUTS.validate_python(inputs)
        config = load_values(quickres, "quickres in config.json")
        self.network = build_raw_model(config, self.inputs.num_classes, torch.device("cpu"))
        self.network.to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        return self.network.state_dict(*arguments, **keywords)

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **keywords: Any) -> Any:
        return self.network.load_state_dict(state_dict, *arguments, **keywords)
