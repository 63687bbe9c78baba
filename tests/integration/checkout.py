"""Makes a checkout with the real launch.sh and stand-ins: a uv that installs nothing, and no torch."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.patience import PATIENCE_S
from tests.python import ROOT

PYTHON = f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'  # -S: starts fast
UV = """#!/bin/sh
echo "$*" >>uv.log
case $* in *sync*)
    while [ -e hold ]; do sleep 0.05; done
    exit "$(cat broken 2>/dev/null || echo 0)" ;;
esac
"""
CORES = 6  # that the stand-in of `check` says to be usable
CLI = f"""
import pathlib, sys, time
overrides = dict(item.split("=") for item in sys.argv[4:] if "=" in item)
if sys.argv[1] != "check":
    print("command", *sys.argv[1:])
elif "unknown" in overrides:
    sys.exit(2)
else:
    if "slow" in overrides:
        pathlib.Path("checking").touch()
        time.sleep(1)
    print(overrides.get("runtime.device", "auto"), {CORES})
"""
LAUNCHER = """
import pathlib, subprocess, sys
pathlib.Path("launcher.argv").write_text("\\n".join(sys.argv[1:]))
module = sys.argv.index("-m")
sys.exit(subprocess.run([sys.executable, *sys.argv[module:]]).returncode)
"""
TRAINER = """
import os, pathlib, signal, subprocess, sys, time
def leave(code):
    os.write(1, b"runs/stand-in\\n")
    os._exit(code)
def save(*_):
    os.write(1, b"saving\\n")
    time.sleep(0.3)
    leave(75)
recipe, *overrides = sys.argv[1:]
pathlib.Path("trainer.argv").write_text("\\n".join(sys.argv[1:]))
pathlib.Path("recipe.text").write_text(os.environ.get("QUICKRES_RECIPE", ""))
pathlib.Path("user.threads").write_text(os.environ.get("QUICKRES_USER_THREADS", "not set"))
names = ("QUICKRES_NUM_PROCESSES", "WORLD_SIZE", "OMP_NUM_THREADS", "QUICKRES_START_TIME")
values = [os.environ.get(name, "-") for name in names]
line = " ".join([*values, str(os.isatty(1)), *overrides]) + "\\n"
os.write(1, line.encode())  # one write, because two processes share the pipe
match recipe:
    case "fails.yaml": leave(3)
    case "finishes.yaml":
        result = pathlib.Path("a run/result.json")
        result.parent.mkdir()
        result.write_text('{\\n "timeline": {\\n  "exit": null\\n }\\n}\\n')
        with open(os.environ["QUICKRES_RESULT_PIPE"], "w") as pipe:
            pipe.write(f"{time.time_ns() // 1000} {result.resolve()}\\n")
        time.sleep(0.3)
        leave(0)
    case "crashes.yaml": sys.exit(9)
    case "waits.yaml": signal.signal(signal.SIGTERM, save)
    case "detached.yaml":
        os.setsid()
        signal.signal(signal.SIGTERM, save)
    case "stubborn.yaml":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen(["sleep", "300"], start_new_session=True)
    case "hangs.yaml": signal.signal(signal.SIGTERM, signal.SIG_DFL)
    case _: leave(0)
pathlib.Path("trainer.pid").write_text(str(os.getpid()))
os.write(1, b"ready\\n")
time.sleep(300)
"""


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


class Checkout:
    """A folder with the real launch.sh and configs/accelerate, and stand-ins for all that they start."""

    def __init__(self, root: Path):
        self.root = root
        shutil.copytree(ROOT / "configs/accelerate", root / "configs/accelerate")
        shutil.copy(ROOT / "launch.sh", root)
        for dali in ("cuda120", "cuda130"):
            write(
                root / f"requirements-{dali}.lock",
                "torch==2 \\\n    --hash=sha256:aa\nuv==1.2.3 \\\n    --hash=sha256:bb\nwheel==1\n",
            )
        write(root / "pyproject.toml", "")
        write(root / ".venv/pyvenv.cfg", "version = 3.11.0\n")
        write(root / ".venv/bin/python", PYTHON, 0o755)
        write(root / ".venv/bin/uv", UV, 0o755)
        write(root / "pipeline/__main__.py", CLI)
        write(root / "pipeline/train.py", TRAINER)
        write(root / "pipeline/distributed/launcher.py", LAUNCHER)
        self._copy("process/relocate")
        self.set_gpus(0)

    def set_gpus(self, count: int) -> None:
        lines = "".join(f"echo 'GPU {index}: a stand-in (UUID: GPU-{index})'\n" for index in range(count))
        write(self.root / "bin/nvidia-smi", f"#!/bin/sh\n{lines}", 0o755)

    def use_real_accelerate(self) -> None:
        for name in (
            "errors",
            "distributed/launcher",
            "process/exit",
            "process/fast_import",
            "process/libraries",
            "process/world",
        ):
            shutil.copy(ROOT / f"pipeline/{name}.py", self.root / f"pipeline/{name}.py")
        write(self.root / ".venv/bin/python", PYTHON.replace(" -S", ""), 0o755)

    def _copy(self, *modules: str) -> None:
        for module in modules:
            write(self.root / f"pipeline/{module}.py", (ROOT / f"pipeline/{module}.py").read_text())

    def environment(self, **variables: str) -> dict[str, str]:
        return {
            "PATH": f"{self.root}/bin:/usr/bin:/bin",
            "HOME": str(self.root),
            "TMPDIR": f"{self.root}/missing",  # nothing may depend on a temporary file
            **variables,
        }

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self.root / "launch.sh", *arguments],
            cwd=self.root.parent,
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=PATIENCE_S)
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def shell(self, command: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell in this folder."""
        return subprocess.run(
            ["bash", "-c", command],
            cwd=self.root,
            env=self.environment(**variables),
            capture_output=True,
            text=True,
            check=False,
        )

    def launched(self) -> dict[str, str]:
        """Return the options given to the launcher; empty if the trainer was started without it."""
        if not (self.root / "launcher.argv").exists():
            return {}
        argv = (self.root / "launcher.argv").read_text().split("\n")
        options = argv[1 : argv.index("-m")]
        assert argv[0] == "--quiet"
        return dict(zip(options[::2], options[1::2], strict=True))

    @property
    def uv_calls(self) -> list[str]:
        log = self.root / "uv.log"
        return log.read_text().splitlines() if log.exists() else []
