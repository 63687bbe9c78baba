"""Bring the tables and figures of the README files, and the prices in the recipes, up to date with the records.

    python -m benchmarks readme [--check]

A README says where a table goes by a pair of lines, `<!-- benchmarks:NAME -->` and `<!-- /benchmarks:NAME -->`; what stands between
them is written by this command. NAME is a benchmark (`loader`, `step`, `end_to_end`, `kernel`, `ablation`, `startup`, `saving`,
`scaling`, `peer`, `recipe`), a figure (`streamed`, `throughput`, `waterfall`), `scaling_model`, which is made from the records of
`scaling`, or `published`, the accuracies of others beside ours. A recipe in configs/ says its price at the end of its header (`prices.py`).
"""

import argparse
import re
from collections.abc import Callable, Sequence
from os.path import relpath
from pathlib import Path

from benchmarks.publish import figures, prices, published
from benchmarks.publish.records import FOLDER, RESULTS, Record, newest, read
from benchmarks.publish.tables import MAKERS, Table, to_markdown
from benchmarks.scaling import scaling_model
from pipeline.errors import EXIT_FAILURE, UserError

FILES = (FOLDER.parent / "README.md", FOLDER / "README.md")
_BLOCK = re.compile(
    r"<!-- benchmarks:(?P<name>\w+) -->\n(?P<content>.*?)<!-- /benchmarks:(?P=name) -->", re.DOTALL
)
_MARKER = re.compile(r"<!-- /?benchmarks:\w+ -->")
_NO_RECORDS = "No records yet."
_PUBLISHED = "published"
# tables by their names in a marker, each with the benchmark whose records it is made from
_TABLES: dict[str, tuple[str, Callable[[Sequence[Record]], Table]]] = {
    **{name: (name, make) for name, make in MAKERS.items()},
    "scaling_model": ("scaling", scaling_model.table),
}


def machines(records: Sequence[Record]) -> str:
    """What records were measured on, in one line of Markdown; commits of one machine and day stand side by side."""
    commits: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        commit = (
            f"{record.commit[:10] if record.commit else 'unknown'}{' with changes' if record.dirty else ''}"
        )
        commits.setdefault((_machine(record), record.utc[:10]), {})[commit] = None
    return "; ".join(
        f"{machine}, commit{'s' if len(found) > 1 else ''} {', '.join(found)}, {day}"
        for (machine, day), found in commits.items()
    )


def _machine(record: Record) -> str:
    gpu = (
        f"{record.gpu}" + (f", {record.power_limit_w:.0f} W" if record.power_limit_w else "")
        if record.gpu
        else f"CPU, {record.cpu_cores} cores"
    )
    parts = [
        gpu,
        f"driver {record.driver}" if record.driver else "",
        f"CUDA {record.cuda}" if record.gpu else "",
        f"torch {record.torch}",
        f"DALI {record.dali}" if record.dali else "",
        f"Python {record.python}",
    ]
    return ", ".join(part for part in parts if part)


def block(name: str, records: Sequence[Record], readme: Path) -> str:
    """What stands between the markers NAME, for a README at this path. Ends with a line break."""
    if name in figures.FIGURES:
        return _figure(name, records, readme)
    if name == _PUBLISHED:
        table = published.table(records)
        return f"{table.title}.\n\n{to_markdown(table)}\n"
    benchmark, make = _TABLES[name]
    chosen = [record for record in newest(records) if record.benchmark == benchmark]
    parts = []
    for folder in dict.fromkeys(record.folder for record in chosen):
        group = [record for record in chosen if record.folder == folder]
        table = make(group)
        if not table.rows:  # the model knows the links of some GPUs only
            continue
        parts.append(f"{table.title}. {machines(group)}\n\n{to_markdown(table)}\n")
    return "\n".join(parts) or f"{_NO_RECORDS}\n"


def _figure(name: str, records: Sequence[Record], readme: Path) -> str:
    lines = [
        f"![{figures.FIGURES[name].alt}]({relpath(path, readme.parent)})\n"
        for path in figures.paths(name, records)
    ]
    return "\n".join(lines) or f"{_NO_RECORDS}\n"


def render(text: str, records: Sequence[Record], path: Path) -> str:
    """The text of a README with all blocks made anew, or of a recipe with its price.

    Raises:
        UserError: a marker that is unknown, or has no counterpart; a recipe without the line of its price.
    """
    if path.suffix == ".yaml":
        return prices.render(text, records, path)
    known = [*_TABLES, _PUBLISHED, *figures.FIGURES]

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in known:
            raise UserError(f"{path}: benchmarks:{name}: unknown; use one of {', '.join(known)}")
        return f"<!-- benchmarks:{name} -->\n{block(name, records, path)}<!-- /benchmarks:{name} -->"

    rendered = _BLOCK.sub(fill, text)
    if len(_MARKER.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise UserError(f"{path}: a benchmarks marker without its counterpart; see benchmarks/README.md")
    return rendered


def outdated(files: Sequence[Path] = (), results: Path = RESULTS) -> list[Path]:
    """Files that disagree with the records; of all README files and recipes, where none are given."""
    records = read(results)
    existing = [path for path in files or (*FILES, *prices.recipe_paths()) if path.exists()]
    return [
        path for path in existing if render(path.read_text("utf-8"), records, path) != path.read_text("utf-8")
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks readme", description=__doc__)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 where a README or a recipe disagrees with the records",
    )
    arguments = parser.parse_args(argv)
    if arguments.check:
        stale = outdated()
        for path in stale:
            print(f"{path}: disagrees with the records; run `python -m benchmarks readme`")
        return EXIT_FAILURE if stale else 0
    records = read()
    for path in figures.draw_all(records):
        print(f"drawn {path}")
    for path in outdated():
        path.write_text(render(path.read_text("utf-8"), records, path), "utf-8")
        print(f"updated {path}")
    return 0
