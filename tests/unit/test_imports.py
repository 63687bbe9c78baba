"""Imports point one way, and importing does no work."""

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.python import ROOT, run_python

FOLDERS = ("pipeline", "kernels", "benchmarks", "tests")

# The floors of `pipeline`, the lowest first. A room imports from lower floors only, and from itself.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("argument_types", "atomic_io", "plotting"),
    ("config", "pretrained", "process"),
    ("data", "models", "optim", "run"),
    ("distributed", "profiling"),
    ("training",),
    ("inference",),
    ("explain", "report"),
    ("commands",),
    ("begin", "finalize"),
    ("train",),
    ("__main__", "api"),
)
# The floors inside `pipeline/data`.
DATA_FLOORS: tuple[tuple[str, ...], ...] = (
    ("batch",),
    ("files", "sampling"),
    ("datasets",),
    ("loaders",),
    ("build",),
)
NO_TORCH = ("errors", "argument_types", "atomic_io", "config", "pretrained", "process")


def _is_type_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(path: Path, *, at_run_time: bool = False) -> set[str]:
    """Return every module that a file imports; for `from package import name`, with and without the name."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(), str(path))
    for_types = (
        {id(node) for guard in ast.walk(tree) if _is_type_guard(guard) for node in ast.walk(guard)}
        if at_run_time
        else set()
    )
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def rooms(folder: str) -> list[str]:
    """Modules and folders right below a folder."""
    below = {path.relative_to(ROOT / folder).parts[0].removesuffix(".py") for path in files(folder)}
    return sorted(below - {"__init__"})


def arrows(folder: str, room: str) -> Iterator[tuple[Path, str]]:
    """Each import of another room of the same folder: the file, and that room."""
    prefix, known = folder.replace("/", ".") + ".", set(rooms(folder))
    root = ROOT / folder / room
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        for module in imports_of(path):
            other = module.removeprefix(prefix).split(".")[0]
            if module.startswith(prefix) and other in known - {room}:
                yield path, other


@pytest.mark.parametrize(
    ("folder", "floors", "room"),
    [
        (folder, floors, room)
        for folder, floors in (("pipeline", FLOORS), ("pipeline/data", DATA_FLOORS))
        for room in rooms(folder)
    ],
)
def test_a_room_imports_from_lower_floors_only(folder: str, floors: tuple[tuple[str, ...], ...], room: str):
    floor_of = {name: number for number, names in enumerate(floors) for name in names}
    assert room in floor_of, f"{folder}/{room} stands on no floor: which rooms does it build on?"
    wrong = {
        (str(path.relative_to(ROOT)), other)
        for path, other in arrows(folder, room)
        if floor_of[other] >= floor_of[room]
    }
    assert not wrong, wrong


@pytest.mark.parametrize(("folder", "floors"), [("pipeline", FLOORS), ("pipeline/data", DATA_FLOORS)])
def test_every_room_of_the_plan_is_there(folder: str, floors: tuple[tuple[str, ...], ...]):
    assert {name for names in floors for name in names} == set(rooms(folder)) - {"templates"}


def test_a_folder_s_init_holds_no_logic():
    for path in [*files("pipeline"), *files("kernels"), *files("benchmarks")]:
        if path.name == "__init__.py":
            body = ast.parse(path.read_text()).body
            assert isinstance(body[0], ast.Expr), f"{path}: no docstring"
            logic = [
                node
                for node in body[1:]
                if not isinstance(node, ast.ImportFrom)
                and not (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__")
            ]
            assert not logic, f"{path}:{logic[0].lineno}: an __init__.py re-exports, or is empty"


@pytest.mark.parametrize("folder", ["pipeline", "kernels", "benchmarks"])
def test_arrows_between_folders(folder: str):
    allowed = {
        "pipeline": {"pipeline", "kernels"},
        "kernels": {"kernels"},
        "benchmarks": {"benchmarks", "pipeline", "kernels"},
    }[folder]
    for path in files(folder):
        wrong = {module.split(".")[0] for module in imports_of(path)} & set(FOLDERS) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_kernels_need_torch_and_triton_only():
    for path in files("kernels"):
        foreign = (
            {module.split(".")[0] for module in imports_of(path)}
            - sys.stdlib_module_names
            - {"torch", "triton", "kernels"}
        )
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


@pytest.mark.parametrize("room", NO_TORCH)
def test_rooms_that_need_no_torch(room: str):
    root = ROOT / "pipeline" / room
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        foreign = (
            {module.split(".")[0] for module in imports_of(path, at_run_time=True)}
            - sys.stdlib_module_names
            - {"pydantic", "yaml", "pipeline"}
        )
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


_IMPORT_ALL = """
import importlib, json, logging, os, pkgutil, random, signal, sys, threading
import accelerate, einops, matplotlib.figure, numpy, PIL.Image, pydantic, rich.console
import safetensors.torch, torch
import torch.utils.data, torchvision.transforms.v2, triton, yaml

def state():
    drawn = torch.get_rng_state().sum().item(), random.getstate()
    levels = {name: getattr(logger, "level", 0) for name, logger in logging.root.manager.loggerDict.items()}
    told = [name for name, level in levels.items() if level and name.split(".")[0] in ("pipeline", "kernels")]
    return drawn, told, torch.get_num_threads(), threading.active_count(), dict(os.environ)

def watch(event, arguments):
    if watching and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"writes {arguments[0]}")
    if watching and event in ("subprocess.Popen", "socket.connect", "os.mkdir", "os.fork"):
        events.append(f"{event} {arguments}")

before, events, watching = state(), [], True
sys.addaudithook(watch)
import kernels, pipeline
walks = [pkgutil.walk_packages(package.__path__, package.__name__ + ".") for package in (pipeline, kernels)]
names = [module.name for walk in walks for module in walk]
for name in names:
    importlib.import_module(name)
watching = False
slow = "pytorch_grad_cam tensorboard sklearn timm torchview pygraphviz onnx onnxruntime onnxscript".split()
lazy = [name for name in ["nvidia.dali", *slow] if name in sys.modules]
expected = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
handlers = [signal.getsignal(number) == handler for number, handler in expected.items()]
same = before == state()
print(json.dumps({"count": len(names), "events": events, "same": same, "lazy": lazy, "handlers": handlers}))
"""


@pytest.mark.slow
def test_importing_everything_does_no_work():
    """Importing writes no file, starts no process or thread and changes no switch or random state.

    It imports nothing that takes seconds and may not be needed.
    """
    done = run_python("-B", "-W", "error", "-c", _IMPORT_ALL, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("count") > 30
    assert report == {"events": [], "same": True, "lazy": [], "handlers": [True, True]}


def test_checking_a_recipe_needs_no_torch():
    """launch.sh checks before it launches: that must take a moment only."""
    check = "import sys, pipeline.__main__ as m; m.main(['check', 'configs/quickstart.yaml'])"
    code = f"{check}; print('torch' in sys.modules)"
    done = run_python("-W", "error", "-c", code)
    assert done.stdout.splitlines() == ["configs/quickstart.yaml: valid", "False"]
