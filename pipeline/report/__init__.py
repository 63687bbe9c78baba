"""`report.html`: one self-contained page of a run, or of several side by side.

It reads run folders only, and needs neither data set nor torch nor network.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.report.record import read_run

__all__ = ["FILE", "write_report"]

FILE = "report.html"


def write_report(folders: Sequence[Path], output: Path) -> Path:
    """Draw the page of these runs into one file, the same bytes for the same folders.

    Args:
        folders: run folders, in the order of the page; several are shown side by side.
        output: the file; replaced if it is there.

    Returns:
        `output`.

    Raises:
        UserError: one of them is no run folder, or the file cannot be written.
    """
    from importlib.resources import files

    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    from pipeline.report.page import page_of

    assert folders, "a report of no run"
    context = page_of([read_run(folder) for folder in folders])
    # class names, paths and commands may hold markup: everything is escaped but the style sheet
    environment = Environment(
        loader=PackageLoader("pipeline"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = Markup(files("pipeline").joinpath("templates/report.css").read_text(encoding="utf-8"))
    html = environment.get_template("report.html.j2").render(context, style=style)
    beside = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        beside.write_text(html.lstrip(), encoding="utf-8", errors="replace")
        beside.replace(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error}); choose another place with --output") from None
    finally:
        with suppress(OSError):
            beside.unlink()
    return output
