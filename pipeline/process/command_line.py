"""Writes commands for a person to copy: quoted, and with an interpreter that the person's shell finds."""

import os
import shlex
import shutil
import sys
from pathlib import Path

_LAUNCHER = "./launch.sh"


def command_line() -> list[str]:
    """Return the command that starts this run again, as a list of words.

    launch.sh and `accelerate launch` start this process with another command line; this function restores the
    command that a person gave to them. `NUM_PROCESSES` is the only environment variable in it.
    """
    words = [Path(sys.executable).name, *sys.orig_argv[1:]]
    if "pipeline.train" not in words:  # started by hand, without a launcher
        return words
    arguments = words[words.index("pipeline.train") + 1 :]
    num_processes = os.environ.get("NUM_PROCESSES")
    if "QUICKRES_NUM_PROCESSES" in os.environ:
        return [*([f"NUM_PROCESSES={num_processes}"] if num_processes else []), _LAUNCHER, *arguments]
    if "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ:
        launch = ["accelerate", "launch", "--num_processes", os.environ.get("WORLD_SIZE", "1")]
        return [*launch, "-m", "pipeline.train", *arguments]
    return words


def same_command(*overrides: str) -> str | None:
    """Return this process's command with other overrides, and without `resume` unless that is one of them.

    Args:
        overrides: `key=value`, each in place of what the command gives for the key.

    Returns:
        The command. None if it cannot be given once more: the recipe came by a pipe, or a program of the
        user's own called this library.
    """
    words = command_line()
    if not {_LAUNCHER, "pipeline.train", "pipeline"} & set(words):
        return None
    if any(word.startswith(("/dev/", "/proc/")) for word in words):
        return None
    if words[0] == Path(sys.executable).name:
        words[0] = _interpreter()
    keys = tuple(f"{key.partition('=')[0]}=" for key in (*overrides, "resume"))
    return shlex.join([*(word for word in words if not word.startswith(keys)), *overrides])


def pipeline_command(*words: str | Path) -> str:
    """Return `./launch.sh WORDS` if the command of this process begins so, or could begin so, because
    launch.sh uses the same interpreter; otherwise `python -m pipeline WORDS`."""
    if _LAUNCHER in command_line() or (_interpreter() == ".venv/bin/python" and Path(_LAUNCHER).is_file()):
        return shlex.join([_LAUNCHER, *map(str, words)])
    return module_command("pipeline", *words)


def module_command(module: str, *words: str | Path) -> str:
    """Return `python -m MODULE WORDS` with the interpreter of this process."""
    return shlex.join([_interpreter(), "-m", module, *map(str, words)])


def _interpreter() -> str:
    """Return the shortest name by which the person's shell finds the interpreter of this process."""
    path = Path(sys.executable)
    if shutil.which(path.name) == str(path):
        return path.name
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
