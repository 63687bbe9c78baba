"""Bring the tables and figures of the README files, and the prices in the recipes, up to date.

    python -m benchmarks readme [--check]

A pair of lines, `<!-- benchmarks:NAME -->` and `<!-- /benchmarks:NAME -->`, marks the place of a table or a
figure in a README. This command writes the lines between the pair from the records. NAME is one of these:

- a benchmark (`loader`, `decoder`, `step`, `end_to_end`, `kernel`, `kernels_by_share`, `ablation`,
  `startup`, `saving`, `scaling`, `peer`, `peers`, `recipe`, `time_to_accuracy`);
- a figure (`beside_peers`, `streamed`, `throughput`, `waterfall`, `depth`, `seconds_to_accuracy`);
- `scaling_model`, the predictions in the records of `scaling` beside the measurements, and `peer_settings`,
  from those of `peers`;
- `published`, the accuracies that others published beside those of the recipes;
- `results`, the small table of the front page.

A figure without records leaves its place on the front page empty, and a sentence elsewhere.

A recipe in configs/ states its price at the end of its header (`prices.py`).
"""

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence
from os.path import relpath
from pathlib import Path

from benchmarks.charts import figures
from benchmarks.publish import prices, published, results
from benchmarks.publish.columns import Table, to_markdown
from benchmarks.publish.peer_tables import peer_settings
from benchmarks.publish.records import FOLDER, RESULTS, Record, newest, read
from benchmarks.publish.tables import MAKERS
from benchmarks.scaling import prediction
from pipeline.errors import EXIT_FAILURE, UserError

FILES = (FOLDER.parent / "README.md", FOLDER / "README.md")
_ABOUT = "Bring the tables and figures of the README files, and the prices in the recipes, up to date."
_BLOCK = re.compile(
    r"<!-- benchmarks:(?P<name>\w+) -->\n(?P<content>.*?)<!-- /benchmarks:(?P=name) -->", re.DOTALL
)
_MARKER = re.compile(r"<!-- /?benchmarks:\w+ -->")
_NO_RECORDS = "No records yet.\n"
_PUBLISHED = "published"
_WIDTH = 110  # characters of a line of prose
# Tables by the name in their marker, each with the benchmark whose records the table shows.
_TABLES: dict[str, tuple[str, Callable[[Sequence[Record]], Table]]] = {
    **{name: (name, make) for name, make in MAKERS.items()},
    "scaling_model": ("scaling", prediction.table),
    "peer_settings": ("peers", peer_settings),
}


def machines(records: Sequence[Record]) -> str:
    """Return the machines that records were measured on, in one line of Markdown.

    Commits of the same machine and day stand side by side; a machine is named once for its days in a row.
    """
    commits: dict[tuple[str, str], dict[str, None]] = {}
    for record in records:
        commit = (record.commit or "unknown")[:10] + (" with changes" if record.dirty else "")
        commits.setdefault((_machine(record), record.utc[:10]), {})[commit] = None
    parts, before = [], ""
    for (machine, day), names in commits.items():
        on = "" if machine == before else f"{machine}, "
        parts.append(f"{on}commit{'s' if len(names) > 1 else ''} {', '.join(names)}, {day}")
        before = machine
    return "; ".join(parts)


def _machine(record: Record) -> str:
    power = f", {record.power_limit_w:.0f} W" if record.power_limit_w else ""
    parts = [
        f"{record.gpu}{power}" if record.gpu else f"CPU, {record.cpu_cores} cores",
        f"driver {record.driver}" if record.driver else "",
        f"CUDA {record.cuda}" if record.gpu else "",
        f"torch {record.torch}",
        f"DALI {record.dali}" if record.dali else "",
        f"Python {record.python}",
    ]
    return ", ".join(part for part in parts if part)


def block(name: str, records: Sequence[Record], readme: Path) -> str:
    """Return the text between the markers NAME of the README at this path; it ends with a line break."""
    if name in figures.FIGURES:
        return _figure(name, records, readme)
    if name == _PUBLISHED:
        table = published.table(records)
        return _wrap(f"{table.title}.\n\n{to_markdown(table)}\n")
    if name == results.NAME:
        shown = results.chosen(records)
        return _wrap(f"{results.markdown(shown)}{machines(shown)}.\n") if shown else _NO_RECORDS
    benchmark, make = _TABLES[name]
    chosen = [record for record in newest(records) if record.benchmark == benchmark]
    parts = []
    for folder in dict.fromkeys(record.folder for record in chosen):
        group = [record for record in chosen if record.folder == folder]
        table = make(group)
        if table.rows:  # few records of scaling hold a prediction
            parts.append(_wrap(f"{table.title}. {machines(group)}\n\n{to_markdown(table)}\n"))
    return "\n".join(parts) or _NO_RECORDS


def _wrap(text: str) -> str:
    """Return Markdown with paragraphs in lines of at most `_WIDTH` characters; tables stay as they are."""
    lines = [
        line if line.startswith("|") else textwrap.fill(line, _WIDTH, break_on_hyphens=False)
        for line in text.splitlines()
    ]
    return "\n".join(lines) + "\n"


def _figure(name: str, records: Sequence[Record], readme: Path) -> str:
    alt = figures.FIGURES[name].alt
    lines = [f"![{alt}]({relpath(path, readme.parent)})\n" for path in figures.paths(name, records)]
    return "\n".join(lines) or ("" if readme == FILES[0] else _NO_RECORDS)


def render(text: str, records: Sequence[Record], path: Path) -> str:
    """Return the text of a README with all blocks made anew, or the text of a recipe with its price.

    Raises:
        UserError: a marker is unknown or has no counterpart, or a recipe has no line for its price.
    """
    if path.suffix == ".yaml":
        return prices.render(text, records, path)
    known = [*_TABLES, _PUBLISHED, results.NAME, *figures.FIGURES]

    def fill(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in known:
            raise UserError(f"{path}: benchmarks:{name}: unknown; use one of {', '.join(known)}")
        return f"<!-- benchmarks:{name} -->\n{block(name, records, path)}<!-- /benchmarks:{name} -->"

    rendered = _BLOCK.sub(fill, text)
    if len(_MARKER.findall(text)) != 2 * len(_BLOCK.findall(text)):
        raise UserError(f"{path}: a benchmarks marker has no counterpart; write both lines of the pair")
    return rendered


def outdated(files: Sequence[Path] = (), records: Path = RESULTS) -> list[Path]:
    """Return the files that disagree with the records; without `files`, of all README files and recipes."""
    known = read(records)
    stale = []
    for path in files or (*FILES, *prices.recipe_paths()):
        if path.exists() and (text := path.read_text("utf-8")) != render(text, known, path):
            stale.append(path)
    return stale


def main(argv: Sequence[str] | None = None) -> int:
    """Draw all figures and rewrite what disagrees with the records, or, with `--check`, list it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks readme", description=_ABOUT)
    parser.add_argument(
        "--check",
        action="store_true",
        help="change nothing; exit with 1 if a README or a recipe disagrees with the records",
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
