"""Finds a folder that `export --format hub` wrote, and reads its config."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.atomic_io import read_json
from pipeline.errors import UserError
from pipeline.inference.hub_names import CONFIG
from pipeline.inference.preprocessing import InputSpec

REMEDY = "give a folder that `export --format hub` wrote"
_INPUTS = TypeAdapter(InputSpec)


def repository_name(model: str, dataset: str) -> str:
    """Return a name for a network on the Hub.

    >>> repository_name("timm/resnet18", "cifar10")
    'timm-resnet18-cifar10'
    """
    return f"{model.replace('/', '-')}-{dataset}"


def read_hub_config(folder: Path) -> tuple[str, dict[str, Any], InputSpec]:
    """Read config.json: the name of the network, the values of its config, and its inputs.

    Raises:
        UserError: the file is damaged, or of another library.
    """
    file = folder / CONFIG
    values = read_json(file, REMEDY)
    if not isinstance(values, dict) or not isinstance(values.get("quickres"), dict):
        raise UserError(f"{file}: not of a network of quickres; {REMEDY}")
    try:
        return (
            str(values.get("name", folder.name)),
            values["quickres"],
            _INPUTS.validate_python(values["inputs"]),
        )
    except (KeyError, ValidationError):
        raise UserError(f"{file}: does not describe the inputs of a network; {REMEDY}") from None
