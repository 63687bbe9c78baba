"""Imports point one way, and importing does no work."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("pipeline", "kernels", "benchmarks", "tests")

# For each unit of `pipeline` (a module, or a folder as a whole) the units that it may import, besides `config` and `errors`. A new
# unit needs a row: think about where it stands.
LEAF: set[str] = set()
MAY_IMPORT: dict[str, set[str]] = {
    "atomic_io": LEAF,
    "models": LEAF,
    "optim": LEAF,
    "plotting": LEAF,
    "process": LEAF,
    "data": {"atomic_io"},
    "run": {"atomic_io", "process"},
    "distributed": {"data", "process"},
    "profiling": {"data", "models", "plotting"},
    "training": {"data", "distributed", "models", "optim", "process", "profiling", "run"},
    "inference": {"atomic_io", "data", "distributed", "run", "training"},
    "explain": {"inference", "models", "plotting"},
    "report": {"data", "inference", "plotting", "profiling", "training"},
    "finalize": {"data", "explain", "inference", "models", "profiling", "report", "run", "training"},
}
ENTRY_POINTS = {"api", "dry_run", "train", "finish", "commands", "exit_code", "__main__"}


def imports_of(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it; for `from package import name`, both with and without the name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}:{node.lineno}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def unit_of(module: str) -> str:
    """`pipeline.data.dali` → `data`."""
    return module.split(".")[1]


def units() -> list[str]:
    return sorted({path.relative_to(ROOT / "pipeline").parts[0].removesuffix(".py") for path in files("pipeline")} - {"__init__"})


def imported_units(path: Path) -> Iterator[str]:
    known = set(units())
    for module in imports_of(path):
        if module.startswith("pipeline.") and unit_of(module) in known:
            yield unit_of(module)


@pytest.mark.parametrize("unit", units())
def test_arrows_inside_the_pipeline(unit: str):
    if unit in ENTRY_POINTS:
        return  # they build on everything
    allowed = {"errors": set(), "config": {"errors"}}.get(unit)
    if allowed is None:
        assert unit in MAY_IMPORT, f"pipeline/{unit} has no row in MAY_IMPORT: which units does it build on?"
        allowed = MAY_IMPORT[unit] | {"config", "errors"}
    root = ROOT / "pipeline" / unit
    for path in sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]:
        wrong = set(imported_units(path)) - allowed - {unit}
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_the_table_has_no_circle():
    seen: set[str] = set()
    rest = dict(MAY_IMPORT)
    while rest:
        free = {unit for unit, below in rest.items() if below <= seen}
        assert free, f"circle among {sorted(rest)}"
        seen |= free
        rest = {unit: below for unit, below in rest.items() if unit not in free}


@pytest.mark.parametrize("folder", ["pipeline", "kernels", "benchmarks"])
def test_arrows_between_folders(folder: str):
    allowed = {"pipeline": {"pipeline", "kernels"}, "kernels": {"kernels"}, "benchmarks": {"benchmarks", "pipeline", "kernels"}}[folder]
    for path in files(folder):
        wrong = {module.split(".")[0] for module in imports_of(path)} & set(FOLDERS) - allowed
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"


def test_kernels_need_torch_and_triton_only():
    for path in files("kernels"):
        foreign = {module.split(".")[0] for module in imports_of(path)} - sys.stdlib_module_names - {"torch", "triton", "kernels"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


def test_config_and_errors_need_no_torch():
    for path in [*files("pipeline/config"), ROOT / "pipeline/errors.py"]:
        foreign = {module.split(".")[0] for module in imports_of(path)} - sys.stdlib_module_names - {"pydantic", "yaml", "pipeline"}
        assert not foreign, f"{path.relative_to(ROOT)} imports {sorted(foreign)}"


_IMPORT_ALL = """
import importlib, json, os, pkgutil, random, signal, sys, threading
import accelerate, einops, matplotlib.figure, numpy, PIL.Image, pydantic, rich.console, safetensors.torch, torch
import torch.utils.data, torchvision.transforms.v2, triton, yaml

def state():
    return torch.get_rng_state().sum().item(), random.getstate(), torch.get_num_threads(), threading.active_count(), dict(os.environ)

def watch(event, arguments):
    if watching and event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        events.append(f"writes {arguments[0]}")
    if watching and event in ("subprocess.Popen", "socket.connect", "os.mkdir", "os.fork"):
        events.append(f"{event} {arguments}")

before, events, watching = state(), [], True
sys.addaudithook(watch)
import kernels, pipeline
names = [m.name for package in (pipeline, kernels) for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
watching = False
slow = ("nvidia.dali", "pytorch_grad_cam", "tensorboard", "sklearn", "timm", "torchview", "pygraphviz", "onnx", "onnxruntime", "onnxscript")
lazy = [name for name in slow if name in sys.modules]
handlers = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, signal.getsignal(signal.SIGINT) == signal.default_int_handler
print(json.dumps({"count": len(names), "events": events, "same": before == state(), "lazy": lazy, "handlers": handlers}))
"""


@pytest.mark.slow
def test_importing_everything_does_no_work():
    """No file written, no process or thread started, no switch or random state touched, and nothing imported that takes seconds and may
    not be needed."""
    command = [sys.executable, "-B", "-W", "error", "-c", _IMPORT_ALL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report.pop("count") > 30
    assert report == {"events": [], "same": True, "lazy": [], "handlers": [True, True]}


def test_checking_a_recipe_needs_no_torch():
    """launch.sh checks before it launches: that must take a moment only."""
    code = "import sys, pipeline.__main__ as m; m.main(['check', 'configs/quickstart.yaml']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["configs/quickstart.yaml: valid", "False"]
