"""Names the files of a folder for the Hugging Face Hub, and recognises such a folder. Imports no torch."""

from pathlib import Path

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def is_hub_folder(path: Path) -> bool:
    """Return True if a folder holds the config and the weights of a network for the Hub."""
    try:
        return (path / CONFIG).is_file() and (path / WEIGHTS).is_file()
    except OSError:
        return False
