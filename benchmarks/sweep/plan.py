"""A sweep file, read and checked: a base recipe, seeds, and a list of overrides for each run."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, config_hash, load_config
from pipeline.config.yaml_reader import Source, read_recipe
from pipeline.errors import UserError

_KEYS = {
    "base": "the recipe that every run starts from",
    "seeds": "the seeds that every run is trained with",
    "overrides": "key=value for all runs",
    "runs": "the overrides of each run, by its name",
}
_OWN_KEYS = {"seed": "seeds", "resume": "", "log.dir": "", "log.name": ""}
_NAME = re.compile(r"[\w.+-]{1,60}")
# over the recipe, under everything else: pictures and event files of dozens of runs are seldom looked at
_DEFAULTS = ("log.explain=false", "log.report=false", "log.tensorboard=false")
SWEEPS = "sweeps"


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
        name: of the variant; with the seed and a hash of the config it names the run.
        changes: what the sweep file says of this variant.
        overrides: all that goes on the command line.
    """

    name: str
    seed: int
    changes: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Config

    @property
    def key(self) -> str:
        """Name of the run, by which it is found again."""
        return key_of(self.name, self.seed, self.config)


def key_of(name: str, seed: int, config: Config) -> str:
    return f"{name}.seed{seed}.{config_hash(config)}"


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, variant after variant; within one, seed after seed.

    Attributes:
        folder: where the run folders and the table are written.
    """

    name: str
    base: str
    folder: Path
    runs: tuple[Run, ...]


def read_plan(path: Path, extra: Sequence[str] = ()) -> Plan:
    """Read and check a sweep file, and the config of every run in it.

    Args:
        path: the file.
        extra: overrides of the command line, over those of the file.

    Raises:
        UserError: all that is wrong, one line each, with file and line.
    """
    if not path.is_file():
        shipped = ", ".join(sorted(map(str, Path("configs/sweeps").glob("*.yaml"))))
        raise UserError(f"{path}: no such sweep. Shipped: {shipped or 'none in configs/sweeps'}")
    source = read_recipe(path)
    for key in source.values:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            meant = (
                f"did you mean {near[0]}?"
                if near
                else "; ".join(f"{name}: {what}" for name, what in _KEYS.items())
            )
            raise UserError(f"{source.where(key)}: unknown key {key}; {meant}")
    base = source.values.get("base")
    if not isinstance(base, str):
        raise UserError(
            f"{source.where('base') or path}: base: name {_KEYS['base']}, such as configs/cifar10_resnet18.yaml"
        )
    return make_plan(
        path.stem,
        base,
        _variants(source, path),
        _seeds(source),
        [*_overrides(source, "overrides")],
        extra,
        _places(source),
    )


def make_plan(
    name: str,
    base: str,
    variants: dict[str, list[str]],
    seeds: Sequence[int],
    common: Sequence[str] = (),
    extra: Sequence[str] = (),
    places: dict[str, str] | None = None,
) -> Plan:
    """The runs of variants (name to overrides) with every seed.

    Args:
        name: of the sweep, and of its folder.
        base: recipe.
        variants: overrides by name.
        seeds: of each variant.
        common: overrides of all variants, under their own.
        extra: overrides over everything.
        places: file and line of each variant, for messages.

    Raises:
        UserError: the config of a run is bad, or two variants are the same; all of them, one line each.
    """
    folder = Path(load_config(base, list(extra)).log.dir) / SWEEPS / name
    runs: list[Run] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for variant, changes in variants.items():
        where = f"{(places or {}).get(variant, name)}: run {variant}"
        try:
            for seed in seeds:
                runs.append(_make_run(variant, changes, seed, base, folder, common, extra))
                same = seen.setdefault(f"{config_hash(runs[-1].config)}", variant)
                if same != variant:
                    raise UserError(f"computes the same as run {same}; remove one of the two")
        except UserError as error:
            problems += [
                f"{where}: {re.sub(r'^command line(, [^:]*)?(:[0-9]+)?: ', '', line)}"
                for line in str(error).splitlines()
            ]
    if problems:
        raise UserError("\n".join(problems))
    return Plan(name, base, folder, tuple(runs))


def _make_run(
    variant: str,
    changes: Sequence[str],
    seed: int,
    base: str,
    folder: Path,
    common: Sequence[str],
    extra: Sequence[str],
) -> Run:
    if not _NAME.fullmatch(variant):
        raise UserError("a name is at most 60 letters, digits, and the characters _ . + -")
    merged: dict[str, str] = {}
    for group in (_DEFAULTS, common, changes, extra):
        keys = [item.partition("=")[0] for item in group]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"duplicate key {key}; keep one of the two")
            if key in _OWN_KEYS and not (key == "log.dir" and group is extra):
                instead = f"; use {_OWN_KEYS[key]}" if _OWN_KEYS[key] else ""
                raise UserError(f"{key}: the sweep sets it for each run{instead}")
        merged |= {item.partition("=")[0]: item for item in group}
    merged.pop("log.dir", None)
    overrides = tuple(merged.values())
    config = load_config(base, [*overrides, f"seed={seed}"])
    placed = (
        *overrides,
        f"seed={seed}",
        f"log.dir={folder}",
        f"log.name={key_of(variant, seed, config)}",
        "resume=auto",
    )
    return Run(variant, seed, tuple(changes), placed, config)


def _seeds(source: Source) -> list[int]:
    seeds = source.values.get("seeds", [0])
    ints = isinstance(seeds, list) and all(
        isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in seeds
    )
    if not ints or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(
            f"{source.where('seeds')}: seeds: expected different whole numbers, such as [0, 1, 2], got {seeds!r}"
        )
    return seeds


def _overrides(source: Source, key: str) -> list[str]:
    return _as_overrides(source.values.get(key), f"{source.where(key)}: {key}")


def _as_overrides(value: Any, where: str) -> list[str]:
    """A list of `key=value`; one alone, or nothing, will do."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str) or "=" not in item:
            raise UserError(
                f"{where}: expected overrides such as [optimizer.lr=0.2, duration=5ep], got {item!r}"
            )
    return items


def _variants(source: Source, path: Path) -> dict[str, list[str]]:
    runs = source.values.get("runs")
    where = source.where("runs") or str(path)
    if isinstance(runs, list) and runs:
        lists = [_as_overrides(item, f"{where}: runs") for item in runs]
        named = {"_".join(map(_as_name, overrides)) or "base": overrides for overrides in lists}
        if len(named) < len(lists):
            raise UserError(f"{where}: runs: two of them are the same; remove one, or give them names")
        return named
    if not isinstance(runs, dict) or not runs:
        raise UserError(f"{where}: runs: give {_KEYS['runs']}, such as `smooth: [loss.label_smoothing=0.1]`")
    return {
        str(name): _as_overrides(value, f"{source.where(f'runs.{name}')}: run {name}")
        for name, value in runs.items()
    }


def _as_name(override: str) -> str:
    """
    >>> _as_name("optimizer.lr=0.3")
    'lr-0.3'
    """
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.+-]+", "-", f"{key.rpartition('.')[2]}-{value}")


def _places(source: Source) -> dict[str, str]:
    runs = source.values.get("runs")
    return {str(name): source.where(f"runs.{name}") for name in runs} if isinstance(runs, dict) else {}
