"""Reads and checks a sweep file: a base recipe, seeds, and a list of overrides for each run."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.config import Config, config_hash, load_config, name_of, path_of
from pipeline.config.yaml_reader import Source, read_recipe
from pipeline.errors import UserError

_KEYS = {
    "base": "the recipe that every run starts from",
    "seeds": "the seeds that every run is trained with",
    "overrides": "key=value for all runs",
    "runs": "the overrides of each run, by its name",
}
# keys that the sweep sets, each with the key of the sweep file that replaces it
_RESERVED_KEYS = {"seed": "seeds", "resume": "", "log.dir": "", "log.name": ""}
_NAME = re.compile(r"[\w.+-]{1,60}")
# over the recipe, under everything else: pictures and event files of dozens of runs are seldom looked at
_DEFAULTS = ("log.explain=false", "log.report=false", "log.tensorboard=false")
SWEEPS = "sweeps"


@dataclass(frozen=True)
class Run:
    """One training run of a sweep.

    Attributes:
        name: of the variant; with the seed and a hash of the config it names the run.
        changes: overrides of this variant, as in the sweep file.
        overrides: all overrides of the command line.
    """

    name: str
    seed: int
    changes: tuple[str, ...]
    overrides: tuple[str, ...]
    config: Config

    @property
    def key(self) -> str:
        """Name of the run folder, by which a finished run is recognised."""
        return key_of(self.name, self.seed, self.config)


def key_of(name: str, seed: int, config: Config) -> str:
    """Return the name of a run folder, without its time."""
    return f"{name}.seed{seed}.{config_hash(config)}"


@dataclass(frozen=True)
class Plan:
    """All runs of a sweep, variant after variant; within one, seed after seed.

    Attributes:
        folder: of the run folders and the table.
    """

    name: str
    base: str
    folder: Path
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Question:
    """The runs that a sweep asks for, before their configs are checked.

    Attributes:
        name: of the sweep, and of its folder.
        base: recipe.
        variants: overrides by name.
        seeds: of each variant.
        common: overrides of all variants; a variant's own overrides win.
        extra: overrides that win over all others.
        places: file and line of each variant, for messages; empty if no file asks.
    """

    name: str
    base: str
    variants: dict[str, list[str]]
    seeds: Sequence[int]
    common: Sequence[str] = ()
    extra: Sequence[str] = ()
    places: dict[str, str] | None = None

    @property
    def folder(self) -> Path:
        return path_of("log.dir", load_config(self.base, list(self.extra)).log.dir) / SWEEPS / self.name


def read_plan(path: Path, extra: Sequence[str] = ()) -> Plan:
    """Read and check a sweep file, and the config of every run in it.

    Args:
        path: the file.
        extra: overrides of the command line, over those of the file.

    Raises:
        UserError: all problems, one line each, with file and line.
    """
    return make_plan(read_question(path, extra))


def read_question(path: Path, extra: Sequence[str] = ()) -> Question:
    """Read a sweep file, and check it without the configs of the runs.

    Raises:
        UserError: the first problem, with file and line.
    """
    if not path.is_file():
        shipped = ", ".join(sorted(map(str, Path("configs/sweeps").glob("*.yaml"))))
        raise UserError(f"{path}: no such sweep. Shipped: {shipped or 'none in configs/sweeps'}")
    source = read_recipe(path)
    _check_keys(source)
    base = source.values.get("base")
    if not isinstance(base, str):
        place = source.where("base") or path
        raise UserError(f"{place}: base: name {_KEYS['base']}, such as configs/cifar10_resnet18.yaml")
    common = _as_overrides(source.values.get("overrides"), f"{source.where('overrides')}: overrides")
    return Question(
        name=name_of(path),
        base=base,
        variants=_variants(source, path),
        seeds=_seeds(source),
        common=common,
        extra=extra,
        places=_places(source),
    )


def make_plan(question: Question) -> Plan:
    """Return the runs of all variants with every seed.

    Raises:
        UserError: all problems, one line each: the config of a run is bad, or two variants are the same.
    """
    folder = question.folder
    runs: list[Run] = []
    problems: list[str] = []
    names: dict[str, str] = {}  # by the hash of the config
    for variant in question.variants:
        try:
            for run in _runs_of(variant, question, folder):
                other = names.setdefault(config_hash(run.config), variant)
                if other != variant:
                    raise UserError(f"computes the same as run {other}; remove one of the two")
                runs.append(run)
        except UserError as error:
            place = (question.places or {}).get(variant, question.name)
            # in a sweep file, an override is not on the command line
            lines = [
                re.sub(r"^command line(, [^:]*)?(:[0-9]+)?: ", "", line) for line in str(error).splitlines()
            ]
            problems += [f"{place}: run {variant}: {line}" for line in lines]
    if problems:
        raise UserError("\n".join(problems))
    return Plan(question.name, question.base, folder, tuple(runs))


def _runs_of(variant: str, question: Question, folder: Path) -> Iterator[Run]:
    """Yield the runs of a variant, one for each seed."""
    if not _NAME.fullmatch(variant):
        raise UserError("a name is at most 60 letters, digits, and the characters _ . + -")
    changes = question.variants[variant]
    overrides = _merge(_DEFAULTS, question.common, changes, question.extra)
    for seed in question.seeds:
        config = load_config(question.base, [*overrides, f"seed={seed}"])
        of_the_run = (
            f"seed={seed}",
            f"log.dir={folder}",
            f"log.name={key_of(variant, seed, config)}",
            "resume=auto",
        )
        yield Run(variant, seed, tuple(changes), (*overrides, *of_the_run), config)


def _merge(*groups: Sequence[str]) -> tuple[str, ...]:
    """Return the overrides of all groups; the last group with a key wins. Only the last may have `log.dir`.

    Raises:
        UserError: a group has a key twice, or one that the sweep sets.
    """
    merged: dict[str, str] = {}
    for group in groups:
        keys = [item.partition("=")[0] for item in group]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"duplicate key {key}; keep one of the two")
            if key in _RESERVED_KEYS and not (key == "log.dir" and group is groups[-1]):
                instead = f"; use {_RESERVED_KEYS[key]}" if _RESERVED_KEYS[key] else ""
                raise UserError(f"{key}: the sweep sets it for each run{instead}")
        merged |= dict(zip(keys, group, strict=True))
    merged.pop("log.dir", None)
    return tuple(merged.values())


def _check_keys(source: Source) -> None:
    for key in source.values:
        if key not in _KEYS:
            near = difflib.get_close_matches(key, _KEYS, n=1)
            known = "; ".join(f"{name}: {meaning}" for name, meaning in _KEYS.items())
            hint = f"did you mean {near[0]}?" if near else known
            raise UserError(f"{source.where(key)}: unknown key {key}; {hint}")


def _seeds(source: Source) -> list[int]:
    seeds = source.values.get("seeds", [0])
    are_ints = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not are_ints or not seeds or len(set(seeds)) < len(seeds):
        place = source.where("seeds")
        raise UserError(f"{place}: seeds: expected different whole numbers, such as [0, 1, 2], got {seeds!r}")
    return seeds


def _as_overrides(value: Any, place: str) -> list[str]:
    """Return a list of `key=value`; the value may be a single one, or missing."""
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str) or "=" not in item:
            raise UserError(
                f"{place}: expected overrides such as [optimizer.lr=0.2, duration=5ep], got {item!r}"
            )
    return items


def _variants(source: Source, path: Path) -> dict[str, list[str]]:
    """Return the overrides of each run by its name; runs in a list are named after their overrides."""
    runs = source.values.get("runs")
    place = source.where("runs") or str(path)
    if isinstance(runs, list) and runs:
        lists = [_as_overrides(item, f"{place}: runs") for item in runs]
        named = {"_".join(map(_as_name, overrides)) or "base": overrides for overrides in lists}
        if len(named) < len(lists):
            raise UserError(f"{place}: runs: two of them are the same; remove one, or give them names")
        return named
    if not isinstance(runs, dict) or not runs:
        raise UserError(f"{place}: runs: give {_KEYS['runs']}, such as `smooth: [loss.label_smoothing=0.1]`")
    return {
        str(name): _as_overrides(value, f"{source.where(f'runs.{name}')}: run {name}")
        for name, value in runs.items()
    }


def _as_name(override: str) -> str:
    """Return a name for a run with this override.

    >>> _as_name("optimizer.lr=0.3")
    'lr-0.3'
    """
    key, _, value = override.partition("=")
    return re.sub(r"[^\w.+-]+", "-", f"{key.rpartition('.')[2]}-{value}")


def _places(source: Source) -> dict[str, str]:
    runs = source.values.get("runs")
    return {str(name): source.where(f"runs.{name}") for name in runs} if isinstance(runs, dict) else {}
