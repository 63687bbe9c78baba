"""Draws the graph of a network: torchview traces it, Graphviz lays it out.

Graphviz comes inside pygraphviz's wheels (2.0 and newer), so no program named `dot` is needed. It writes in
the font that comes with matplotlib, so no font needs to be installed.
"""

import html
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn

from pipeline.atomic_io import write_whole
from pipeline.errors import UserError
from pipeline.plotting import style

FORMATS = (".png", ".svg", ".pdf")
_MAX_BOXES = 64  # of a picture that fits a screen
_MAX_DEPTH = 8
_DRAW = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot"))
"""


def draw_architecture(
    model: nn.Module, input_shape: tuple[int, int, int], path: Path, title: str, depth: int | None = None
) -> int:
    """Draw the modules and functions that an image passes through, with their types and shapes.

    Args:
        model: on the meta device.
        input_shape: (C, H, W).
        path: of the picture; its suffix is its format: PNG, SVG or PDF.
        title: stands above.
        depth: levels of modules to open; 1 opens the network itself. Default: the most that need at most 64
            boxes.

    Returns:
        The depth that was drawn.

    Raises:
        UserError: another suffix, or a folder that cannot be written to.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--picture: {path} ends in none of {', '.join(FORMATS)}")
    graph = _trace(model, input_shape, depth or 1)
    if depth is None:
        depth = 1
        for levels in range(2, _MAX_DEPTH + 1):
            deeper = _trace(model, input_shape, levels)
            if len(deeper.node_set) > _MAX_BOXES:
                break
            if len(deeper.node_set) > len(graph.node_set):  # some modules have nothing inside to open
                depth, graph = levels, deeper
    picture = _render(_source(graph.visual_graph, title), path.suffix.removeprefix("."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, picture)
    except OSError as error:
        raise UserError(f"--picture: {path} cannot be written ({error.strerror})") from None
    return depth


def _trace(model: nn.Module, input_shape: tuple[int, int, int], depth: int) -> Any:
    from torchview import draw_graph

    images = torch.empty(1, *input_shape, device="meta")
    return draw_graph(model, input_data=images, device="meta", mode="eval", depth=depth, expand_nested=True)


def _source(graph: Any, title: str) -> str:
    """Return torchview's graph in Graphviz's language, with a title and in our font."""
    font = {"fontname": "DejaVu Sans", "fontcolor": style.INK}
    graph.graph_attr.update(font, label=title, labelloc="t", labeljust="l", fontsize="14")
    graph.graph_attr.update(pad="0.25", size="", dpi="96", ranksep="0.25", nodesep="0.3")
    graph.node_attr.update(font)
    graph.edge_attr.update(color=style.MUTED, arrowsize="0.7")
    return graph.source


def _render(source: str, file_format: str) -> bytes:
    """Draw in a process of its own, which uses the bundled font and hides the libraries' warnings."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "fonts.conf")
        entries = f"<dir>{html.escape(str(fonts))}</dir><cachedir>{html.escape(folder)}</cachedir>"
        settings.write_text(f"<fontconfig>{entries}</fontconfig>")
        done = subprocess.run(
            [sys.executable, "-c", _DRAW, file_format],
            input=source.encode(),
            env={**os.environ, "FONTCONFIG_FILE": str(settings)},
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0 and done.stdout, done.stderr.decode()
    return done.stdout
