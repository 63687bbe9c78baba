"""Describes an exported network: its metadata, and the README.md beside the file."""

import json
from string import Template

from pipeline.inference.hub import accuracy_of
from pipeline.inference.hub_folder import repository_name
from pipeline.inference.trained_model import Trained


def describe(trained: Trained, input: str) -> dict[str, str]:
    """Return the metadata of the file: texts, and lists as JSON."""
    inputs, size = trained.inputs, trained.inputs.image_size
    values = (
        "from 0 to 1 (pixel / 255); the network normalises them"
        if input == "unit"
        else "normalised as (pixel / 255 - mean) / std"
    )
    return {
        "run": trained.name,
        "checkpoint": "" if trained.checkpoint is None else trained.checkpoint.name,
        "weights": "moving average" if trained.ema else "raw",
        "model": trained.config.model.name,
        "input": f"images: float32 (N, 3, {size}, {size}), RGB, {values}",
        "resize": f"shorter side to {inputs.resized} pixels, bilinear with antialiasing, then the central "
        f"{size} x {size} pixels",
        "output": f"logits: float32 (N, {inputs.num_classes}); softmax gives probabilities",
        "image_size": str(size),
        "resized": str(inputs.resized),
        "mean": json.dumps(inputs.mean),
        "std": json.dumps(inputs.std),
        "class_names": json.dumps(inputs.class_names),
    }


_USE = {
    "safetensors": """import torch
from safetensors.torch import load_file

from pipeline.training.build import build_raw_model
from pipeline.config import load_config

config = load_config("config.yaml")
network = build_raw_model(config, num_classes=$num_classes, device=torch.device("cpu")).eval()
network.load_state_dict(load_file("model.safetensors"))
logits = network(torch.zeros(1, 3, $size, $size))""",
    "hub": """import torch

from pipeline.inference.hub_network import HubNetwork

network = HubNetwork.from_pretrained(".")  # or the repository: "USER/NAME"
logits = network(torch.zeros(1, 3, $size, $size))""",
    "torch-export": """import torch

network = torch.export.load("model.pt2").module()
logits = network(torch.zeros(1, 3, $size, $size))""",
    "onnx": """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(logits,) = session.run(None, {"images": np.zeros((1, 3, $size, $size), np.float32)})""",
}


def readme_of(trained: Trained, format: str, description: dict[str, str], file: str, checked: str) -> str:
    """Return the text of the README.md.

    Args:
        trained: the network.
        format: of the file.
        description: from `describe`.
        file: name of the file.
        checked: how the file was compared with the network, and what came out.
    """
    inputs, origin, config = trained.inputs, description["model"], trained.config
    use = Template(_USE[format]).substitute(num_classes=inputs.num_classes, size=inputs.image_size)
    if trained.shipped is not None:
        origin += f", the weights {trained.name} of quickres"
    elif trained.run is not None:
        origin += f", {description['checkpoint']} of the run {description['run']}"
    if trained.ema:
        origin += ", moving average of its weights"
    title = repository_name(config.model.name, config.data.dataset) if format == "hub" else file
    if format == "hub" and (accuracy := accuracy_of(trained)) is not None:
        origin += f". Test accuracy {accuracy:.2%}, one view of each image"
    names = "\n".join(f"{index}. {name}" for index, name in enumerate(trained.inputs.class_names))
    return f"""# {title}

{origin}. The file holds this description too, as its metadata.

- Input: {description["input"]}
- Size: {description["resize"]}
- Mean and standard deviation per channel: {description["mean"]}, {description["std"]}
- Output: {description["output"]}
- Checked after writing: {checked}

```python
{use}
```

Classes, in the order of the logits:

{names}
"""
