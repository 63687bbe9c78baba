"""The graph of a network as a picture: torchview traces it, Graphviz draws it.

Graphviz comes inside pygraphviz's wheels (2.0 and newer), so that no program named `dot` is needed, and
writes in the font that comes with matplotlib, so that none needs to be installed.
"""

import html
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import nn

from pipeline.errors import UserError
from pipeline.plotting import style

FORMATS = (".png", ".svg", ".pdf")
_MAX_BOXES = 64  # a picture that a screen still shows
_MAX_DEPTH = 8
_DRAW = """
import sys, pygraphviz
graph = pygraphviz.AGraph(string=sys.stdin.buffer.read().decode())
sys.stdout.buffer.write(graph.draw(format=sys.argv[1], prog="dot"))
"""
_FILLS = {"ModuleNode": "#E3EEF7", "FunctionNode": "#F4F5F7", "TensorNode": "#FFFFFF"}


def draw_architecture(
    model: nn.Module, input_shape: tuple[int, int, int], path: Path, title: str, depth: int | None = None
) -> int:
    """Draw the modules and functions that an image passes through, with names, output shapes and parameters.

    Args:
        model: on the meta device.
        input_shape: (C, H, W).
        path: of the picture; its suffix says which format, PNG, SVG or PDF.
        title: stands above.
        depth: levels of modules that are opened, 1 being the network's own children; by default as many as
            leave at most 64 boxes.

    Returns:
        The depth that was drawn.

    Raises:
        UserError: another suffix, or a folder that cannot be written to.
    """
    if path.suffix not in FORMATS:
        raise UserError(f"--picture: {path} ends in none of {', '.join(FORMATS)}")
    if depth is None:
        traced = [(1, _trace(model, input_shape, 1))]
        for levels in range(2, _MAX_DEPTH + 1):
            graph = _trace(model, input_shape, levels)
            if len(graph.node_set) > _MAX_BOXES:
                break
            traced.append((levels, graph))
        # opening what has nothing inside changes nothing: the first of equals
        depth, graph = next(item for item in traced if len(item[1].node_set) == len(traced[-1][1].node_set))
    else:
        graph = _trace(model, input_shape, depth)
    picture = _render(_styled(graph, model, title), path.suffix.removeprefix("."))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
    except OSError as error:
        raise UserError(f"--picture: {path} cannot be written ({error.strerror})") from None
    return depth


def _trace(model: nn.Module, input_shape: tuple[int, int, int], depth: int) -> Any:
    from torchview import draw_graph

    images = torch.empty(1, *input_shape, device="meta")
    return draw_graph(model, input_data=images, device="meta", mode="eval", depth=depth, expand_nested=True)


def _styled(graph: Any, model: nn.Module, title: str) -> str:
    """Torchview's graph in Graphviz's language, with our labels and colours."""
    import pygraphviz

    font = {"fontname": "DejaVu Sans", "fontcolor": style.INK}
    picture = pygraphviz.AGraph(string=graph.visual_graph.source)
    picture.graph_attr.update(label=title, labelloc="t", labeljust="l", fontsize="14", **font)
    picture.graph_attr.update(
        bgcolor=style.PAPER, pad="0.25", size="", dpi="96", ranksep="0.25", nodesep="0.3"
    )
    picture.edge_attr.update(color=style.MUTED, arrowsize="0.7")
    modules = {id(module): (name, module) for name, module in model.named_modules()}
    inputs = {node.node_id for node in graph.root_container}
    nodes = {node.node_id: node for node in _nodes(graph.node_hierarchy)}
    for node_id, number in graph.id_dict.items():
        if picture.has_node(str(number)):
            box: Any = picture.get_node(str(number))
            box.attr.update(
                shape="box",
                style="rounded,filled",
                margin="0.12,0.05",
                height="0.3",
                color=style.MUTED,
                fontsize="10",
                **font,
            )
            box.attr.update(
                label=_label(nodes[node_id], modules, inputs), fillcolor=_FILLS[type(nodes[node_id]).__name__]
            )
    clusters = {
        f"cluster_{graph.subgraph_dict[node_id]}": node
        for node_id, node in nodes.items()
        if node_id in graph.subgraph_dict
    }
    _style_clusters(picture, clusters, modules, font)
    return picture.to_string()


def _style_clusters(
    picture: Any, nodes: dict[str, Any], modules: dict[int, tuple[str, nn.Module]], font: dict[str, str]
) -> None:
    for cluster in picture.subgraphs_iter():
        name, module = modules[nodes[cluster.name].compute_unit_id]
        kind = "" if isinstance(module, nn.Sequential) else f"  {type(module).__name__}"
        cluster.graph_attr.update(
            label=name + kind, labeljust="l", style="rounded", color=style.MUTED, fontsize="10", **font
        )
        _style_clusters(cluster, nodes, modules, font)


def _nodes(hierarchy: Any) -> Iterator[Any]:
    """Every node of torchview's nested dictionary."""
    if not isinstance(hierarchy, dict):
        yield hierarchy
        return
    for node, inner in hierarchy.items():
        yield node
        for item in inner:
            yield from _nodes(item)


def _label(node: Any, modules: dict[int, tuple[str, nn.Module]], inputs: set[str]) -> str:
    """Two lines in Graphviz's HTML: what it is; the shape that comes out, and parameters."""
    if type(node).__name__ == "TensorNode":
        head, facts = "images" if node.node_id in inputs else "logits", [_shape(node.tensor_shape)]
    else:
        head, facts = html.escape(node.name), [_shape(shape) for shape in node.output_shape[:1]]
    if type(node).__name__ == "ModuleNode":
        name, module = modules[node.compute_unit_id]
        head = f"<b>{html.escape(name)}</b>  {html.escape(node.name)}"
        count = sum(parameter.numel() for parameter in module.parameters())
        facts += [f"{count:,} parameters"] * bool(count)
    return f'<{head}<br/><font point-size="9" color="{style.MUTED}">{" · ".join(facts)}</font>>'


def _shape(shape: tuple[int, ...]) -> str:
    return " × ".join(str(size) for size in shape[1:])


def _render(source: str, file_format: str) -> bytes:
    """Let Graphviz draw, in a process of its own: there the bundled font can be set, and its libraries' warnings are not shown."""
    fonts = Path(matplotlib.get_data_path(), "fonts", "ttf")
    with tempfile.TemporaryDirectory() as folder:
        settings = Path(folder, "fonts.conf")
        settings.write_text(
            f"<fontconfig><dir>{html.escape(str(fonts))}</dir><cachedir>{html.escape(folder)}</cachedir></fontconfig>"
        )
        done = subprocess.run(
            [sys.executable, "-c", _DRAW, file_format],
            input=source.encode(),
            env={**os.environ, "FONTCONFIG_FILE": str(settings)},
            capture_output=True,
            check=False,
        )
    assert done.returncode == 0 and done.stdout, done.stderr.decode()
    return done.stdout
