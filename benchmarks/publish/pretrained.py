"""Make shipped weights out of a finished run of a shipped recipe: weights file, model card, registry entry.

The weights are those of the last step. They are rounded to half precision, except for norms and biases, and
evaluated on the whole test set before anything is written. The files are written to pipeline/pretrained/.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.publish.finished import Finished, check_recipe, read_finished
from benchmarks.publish.model_card import render, why_no_card
from benchmarks.publish.prices import recipe_path
from benchmarks.publish.recipes import DATA_NAMES
from pipeline.atomic_io import write_whole
from pipeline.config import Config, default_values, load_config
from pipeline.errors import UserError
from pipeline.pretrained.registry import Inputs, Shipped, is_name, read_registry, write_registry
from pipeline.process.fast_import import imports_uncollected

if TYPE_CHECKING:
    import torch

    from pipeline.inference.trained_model import Trained

LICENCE = "Apache-2.0"  # that of the project
# Largest accepted losses of accuracy, as fractions. Rounding: the same images in the same arithmetic. The
# run's own figure is of another arithmetic (fp16, perhaps on another machine), which moves a few images
# either way. A larger difference means other images or other code.
MOST_LOST_BY_ROUNDING = 0.0002
MOST_FROM_RECORDED = 0.002
_SLACK = 1e-9  # of the comparison of fractions


@dataclass(frozen=True)
class Measured:
    """The accuracies of the weights on one test set, as fractions.

    Attributes:
        recorded: of the last step, as the run recorded it.
        full: of the run's weights, computed in float32.
        half: of the rounded weights, computed in float32.
        num_images: of the test set.
    """

    recorded: float
    full: float
    half: float
    num_images: int

    def __str__(self) -> str:
        return (
            f"half precision {self.half:.2%}, float32 {self.full:.2%}, both computed in float32 here; the "
            f"run recorded {self.recorded:.2%} ({self.num_images:,} test images)"
        )

    def check(self, run: Finished) -> None:
        """Check that the rounded weights are as good as the run's.

        Raises:
            UserError: they lose too much, or the figures are not of the same images; says all figures.
        """
        if self.num_images != run.result.test_seen:
            raise UserError(
                f"{run.path}: was tested on {run.result.test_seen:,} images, and the test set has "
                f"{self.num_images:,}; give the data of the run with --data-root"
            )
        if self.full - self.half > MOST_LOST_BY_ROUNDING + _SLACK:
            raise UserError(
                f"{run.path}: half precision loses more than {MOST_LOST_BY_ROUNDING * 100:.2g} points: "
                f"{self}; nothing was written; ship another seed"
            )
        if abs(self.half - self.recorded) > MOST_FROM_RECORDED + _SLACK:
            raise UserError(
                f"{run.path}: the accuracy is not the recorded one: {self}; nothing was written; give the "
                "data of the run with --data-root, and use the code of its commit"
            )


def round_to_half(weights: "Mapping[str, torch.Tensor]") -> "dict[str, torch.Tensor]":
    """Return weights in the precision in which they are shipped.

    Tensors of one dimension (norms, their statistics, biases) stay float32: they are one hundredth of the
    numbers. Integers, the counts of batches, are left out: nothing reads them.
    """
    return {
        key: (value.half() if value.ndim > 1 else value.float()).cpu().contiguous()
        for key, value in weights.items()
        if value.is_floating_point()
    }


def _load_last_step(run: Finished, data_root: Path | None) -> "Trained":
    """Load the network of the run's last step, which computes in float32.

    Raises:
        UserError: the checkpoint of that step is gone or damaged.
    """
    from pipeline.inference.source import in_float32
    from pipeline.inference.trained_model import load_trained

    moved = [] if data_root is None else [f"data.root={data_root}", "data.cache_dir=null"]
    return load_trained(run.path, f"step-{run.result.steps}", in_float32(moved))


def _measure(run: Finished, trained: "Trained", half: "Mapping[str, torch.Tensor]") -> Measured:
    """Evaluate the run's weights, then the rounded ones, which the network keeps."""
    from pipeline.inference.evaluate_run import evaluate_trained

    full = evaluate_trained(trained)
    trained.model.load_state_dict(dict(half))
    rounded = evaluate_trained(trained)
    return Measured(run.result.test_accuracy, full.accuracy, rounded.accuracy, rounded.seen)


def _read_run(path: Path) -> Finished:
    """Read a run, and check that its weights can be shipped.

    Raises:
        UserError: it is not one of a shipped recipe, its code is not a commit, or a card cannot define its
            network.
    """
    run = read_finished(path)
    check_recipe(run)
    environments = (run.environment, *run.environment.get("continued", ()))
    commits = {environment.get("commit") for environment in environments}
    if None in commits or len(commits) > 1 or any(environment.get("dirty") for environment in environments):
        raise UserError(
            f"{run.path}: its code is not one commit (commit {run.environment['commit']}, with changes: "
            f"{run.environment.get('dirty')}); train from a clean checkout, or set QUICKRES_COMMIT"
        )
    reason = why_no_card(run.config)
    if reason is not None:
        raise UserError(f"{run.path}: {reason}; its weights need another card")
    return run


def _name_data(run: Finished, given: str | None) -> str:
    """Return the name of the data set.

    Raises:
        UserError: the run read a folder, and no name is given.
    """
    name = DATA_NAMES.get(run.config.data.dataset) or given
    if name is None:
        raise UserError(
            f"{run.path}: data.dataset=folder does not name the images in the folder; name them, such as "
            "--data CIFAR-10"
        )
    return name


def _portable_config(run: Finished, data: str) -> Config:
    """Return the config of the recipe with the run's seed, without places of a machine.

    The data set is the recipe's if its name is the run's. Otherwise it is the run's, in the folder `data`.
    """
    recipe, seed = recipe_path(run.recipe), f"seed={run.config.seed}"
    config = load_config(recipe, [seed])
    if DATA_NAMES.get(config.data.dataset) == data:
        return config
    keys = ("root", "cache_dir", "train_folder", "test_folder", "train_list", "test_list", "class_names")
    defaults = default_values()
    changes = {key: defaults[f"data.{key}"] for key in keys if hasattr(run.config.data, key)}
    return config.model_copy(update={"data": run.config.data.model_copy(update=changes)})


def _describe(
    run: Finished, trained: "Trained", name: str, data: str, measured: Measured, digest: str
) -> Shipped:
    inputs = trained.inputs
    return Shipped(
        name=name,
        file=f"{name}.safetensors",
        sha256=digest,
        num_parameters=run.result.num_parameters,
        recipe=run.recipe,
        config=_portable_config(run, data).model_dump(mode="json"),
        inputs=Inputs(
            class_names=tuple(inputs.class_names),
            mean=inputs.mean,
            std=inputs.std,
            image_size=inputs.image_size,
            crop=inputs.crop,
        ),
        data=data,
        seed=run.config.seed,
        commit=run.environment["commit"],
        accuracy=measured.half,
        accuracy_float32=measured.full,
        accuracy_in_training=measured.recorded,
        num_test_images=measured.num_images,
        licence=LICENCE,
    )


def ship(path: Path, name: str | None, data_root: Path | None, data: str | None) -> tuple[Shipped, Measured]:
    """Write the weights of a run, their card and their entry of the registry. An older one is replaced.

    Args:
        path: the run folder.
        name: of the weights; None: that of the recipe.
        data_root: replaces `data.root` of the run, if its data has moved.
        data: name of the data set, for a run on a folder.

    Raises:
        UserError: the run or the name does not suit, or the rounded weights are worse than the run's.
    """
    run = _read_run(path)
    name = name or run.recipe
    if not is_name(name):
        raise UserError(f"--name: {name!r} is no name; use letters, digits, - and _")
    data, registry = _name_data(run, data), read_registry()
    with imports_uncollected():
        from safetensors.torch import save

    trained = _load_last_step(run, data_root)
    half = round_to_half(trained.model.state_dict())
    measured = _measure(run, trained, half)
    measured.check(run)
    content = save(half, {"format": "pt"})
    shipped = _describe(run, trained, name, data, measured, sha256(content).hexdigest())
    write_whole(shipped.path, content)
    write_whole(shipped.card, render(shipped))
    write_registry({**registry, name: shipped})
    return shipped, measured


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks pretrained",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder of a shipped recipe, finished")
    parser.add_argument("--name", help="of the weights (default: the name of the recipe)")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder of the data set, if it is not where it was"
    )
    parser.add_argument("--data", metavar="NAME", help="name of the images, for data.dataset=folder")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    shipped, measured = ship(options.run, options.name, options.data_root, options.data)
    print(f"{shipped.name}: {measured}")
    for path in (shipped.path, shipped.card):
        print(f"{path}: {path.stat().st_size:,} bytes")
    total = sum(entry.path.stat().st_size for entry in read_registry().values())
    print(f"all shipped weights: {total:,} bytes")
    return 0
