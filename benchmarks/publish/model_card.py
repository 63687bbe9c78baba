"""Writes the model card of weights that are shipped: what they are, their accuracy, and how to load them."""

import json
import textwrap
from collections.abc import Sequence
from string import Template

from pipeline.config import Config, load_values
from pipeline.config.model import CIFAR_NETWORKS
from pipeline.pretrained.registry import Shipped

_WIDTH = 110
# The networks that the code of the card defines: three stages of basic blocks, with shortcuts of option A.
NETWORKS = tuple(name for name in CIFAR_NETWORKS if name.startswith("resnet"))

_CARD = Template("""# $name

$summary

| | |
|---|---|
| network | $network, shortcuts of option A, $num_parameters parameters (He et al. 2015, arXiv:1512.03385) |
| recipe | `configs/$recipe.yaml`, seed $seed |
| commit | $commit |
| data | $data; the accuracies are of all $num_test_images test images |
| test accuracy of this file | $accuracy, computed in float32, one view of each image |
| before rounding to half precision | $accuracy_float32, computed in the same way |
| recorded by the run at its last step | $accuracy_in_training, computed in $precision |
| mean per channel | $mean |
| standard deviation per channel | $std |
| file | `$file`; float16, and float32 for norms and biases |
| SHA-256 | `$sha256` |
| licence | $licence |

Pixels are RGB from 0 to 1 (pixel / 255), $size x $size; subtract the mean, and divide by the standard
deviation.

$classes

## Use

```
python -m pipeline predict $name photo.png
python -m pipeline evaluate $name
python -m pipeline train CONFIG model.name=$network model.shortcut=A model.weights=$name
```

In plain PyTorch, without this project, in the folder of the file:

```python
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


def conv(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(y + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


def stage(inputs, outputs, depth, stride):
    rest = [Block(outputs, outputs, 1) for _ in range(depth - 1)]
    return nn.Sequential(Block(inputs, outputs, stride), *rest)


class ResNet(nn.Module):
    def __init__(self, depth, num_classes):
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16))
        self.stages = nn.Sequential(stage(16, 16, depth, 1), stage(16, 32, depth, 2), stage(32, 64, depth, 2))
        self.head = nn.Linear(64, num_classes)

    def forward(self, images):
        return self.head(self.stages(F.relu(self.stem(images))).mean((2, 3)))


network = ResNet(depth=$depth, num_classes=$num_classes).eval()
network.load_state_dict(load_file("$file"))
mean = torch.tensor($mean)[:, None, None]
std = torch.tensor($std)[:, None, None]
images = torch.rand(1, 3, $size, $size)  # RGB from 0 to 1
with torch.no_grad():
    logits = network((images - mean) / std)
```
""")


def why_no_card(config: Config) -> str | None:
    """Return why the code of the card does not define the network of a config; None if it does."""
    model = config.model
    if model.name not in NETWORKS:
        return f"model.name is {model.name}, and a card knows {', '.join(NETWORKS)}"
    plain = {"shortcut": "A", "width": 1, "squeeze_excitation": 0}
    for key, value in plain.items():
        if getattr(model, key) != value:
            return f"model.{key} is {getattr(model, key)}, and a card knows {value}"
    if model.preactivation or model.stem == "imagenet":
        return "a card knows neither model.preactivation nor model.stem=imagenet"
    return None


def render(shipped: Shipped) -> str:
    """Return the text of the card, from the registry's entry alone."""
    config = load_values(shipped.config, shipped.name)
    inputs, network = shipped.inputs, config.model.name
    values = shipped.model_dump() | {
        "name": shipped.name,
        "network": network,
        "depth": (int(network.removeprefix("resnet")) - 2) // 6,
        "num_classes": len(inputs.class_names),
        "classes": _wrap(f"Classes, in the order of the logits: {', '.join(inputs.class_names)}."),
        "mean": _rounded(inputs.mean),
        "std": _rounded(inputs.std),
        "size": inputs.image_size,
        "precision": config.precision.mode,
        "num_parameters": f"{shipped.num_parameters:,}",
        "num_test_images": f"{shipped.num_test_images:,}",
        **{
            key: f"{getattr(shipped, key):.2%}"
            for key in ("accuracy", "accuracy_float32", "accuracy_in_training")
        },
    }
    summary = (
        f"A {network} of {values['num_parameters']} parameters for images of {inputs.image_size} x "
        f"{inputs.image_size} pixels, trained on {shipped.data} by the recipe `{shipped.recipe}` of "
        f"quickres. Its test accuracy is {values['accuracy']}."
    )
    return _CARD.substitute(values, summary=_wrap(summary))


def _wrap(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def _rounded(numbers: Sequence[float]) -> str:
    return json.dumps([round(number, 6) for number in numbers])
