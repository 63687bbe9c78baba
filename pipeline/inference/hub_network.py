"""Makes a network that `huggingface_hub` saves and loads: `HubNetwork.from_pretrained("USER/NAME")`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin
from huggingface_hub.errors import HFValidationError
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor, nn

from pipeline.config import load_values
from pipeline.errors import UserError
from pipeline.inference.hub_folder import REMEDY, read_hub_config
from pipeline.inference.hub_names import CONFIG
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

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **keywords: Any) -> Self:
        """Load a folder that `export --format hub` wrote, or a repository with its files.

        Args:
            pretrained_model_name_or_path: the folder, or `USER/NAME`.
            keywords: of `ModelHubMixin.from_pretrained`, such as `revision`. `strict`, here True by default,
                refuses weights of another network; the network moves to the device `map_location`.

        Raises:
            UserError: the weights are damaged or of another network; files of a folder are missing, or its
                config.json is damaged; config.json is not of this library.
            Exception: of `huggingface_hub`, if a repository cannot be read; of torch, for a wrong
                `map_location`.
        """
        folder, keywords = Path(pretrained_model_name_or_path), {"strict": True, **keywords}
        if not folder.is_dir():
            try:
                return super().from_pretrained(pretrained_model_name_or_path, **keywords)
            except HFValidationError:
                raise UserError(f"{folder}: is neither a folder nor a name USER/NAME; {REMEDY}") from None
        _, values, _ = read_hub_config(folder)
        load_values(values, str(folder / CONFIG))
        return super().from_pretrained(folder, **keywords)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **keywords: Any) -> Self:
        """Refuse a repository without our config.json, which `ModelHubMixin` passes over."""
        if not {"quickres", "inputs"} <= keywords.keys():
            raise UserError(f"{model_id}: its {CONFIG} is not of a network of quickres; {REMEDY}")
        return super()._from_pretrained(model_id=model_id, **keywords)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        """Load on the CPU, where a failure is the file's; move to another device after that."""
        try:
            super()._load_as_safetensor(model, model_file, "cpu", strict)
        except (OSError, SafetensorError, RuntimeError) as error:
            # load_state_dict names each wrong key in a line of its own
            first, *others = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
            reason = " ".join([first, *others[:1]]).rstrip(":")
            raise UserError(f"{model_file}: cannot be loaded ({reason}); {REMEDY}") from None
        return model.to(map_location)

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images)

    def state_dict(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        return self.network.state_dict(*arguments, **keywords)

    def load_state_dict(self, state_dict: Mapping[str, Any], *arguments: Any, **keywords: Any) -> Any:
        return self.network.load_state_dict(state_dict, *arguments, **keywords)
