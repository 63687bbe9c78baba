"""Modules are imported in a thread, and nothing of it is left behind."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.process.import_beside import import_beside, wait_for_imports


def test_modules_are_imported_in_order_and_bad_ones_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fails_beside.py").write_text("raise RuntimeError('bad')\n")
    (tmp_path / "works_beside.py").write_text("import threading\nTHREAD = threading.current_thread().name\n")
    monkeypatch.syspath_prepend(tmp_path)
    usual = sys.getswitchinterval()
    import_beside(["fails_beside", "missing_beside", "works_beside"])
    import_beside(["json"])  # after the thread before
    wait_for_imports()
    assert sys.modules["works_beside"].THREAD == "imports"
    assert "fails_beside" not in sys.modules
    assert sys.getswitchinterval() == usual
    assert all(thread.name != "imports" for thread in threading.enumerate())


_END = """
import sys
from pipeline.config import load_config
from pipeline.finalize import import_for_the_end
from pipeline.process.import_beside import wait_for_imports

import_for_the_end(load_config(overrides=["data.dataset=digits", *sys.argv[1:]]))
wait_for_imports()
print(*sys.modules)
"""


@pytest.mark.parametrize(("explain", "report", "tensorboard"), [(True, True, True), (False, False, False)])
def test_the_end_of_a_run_imports_what_it_draws(explain: bool, report: bool, tensorboard: bool) -> None:
    keys = f"log.explain={explain} log.report={report} log.tensorboard={tensorboard}".lower().split()
    ran = subprocess.run([sys.executable, "-c", _END, *keys], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    imported = set(ran.stdout.split())
    assert {"matplotlib.axes", "pipeline.report.curves"} <= imported
    wanted = {
        "scipy.ndimage": explain,
        "jinja2": report,
        "pipeline.explain.contact_sheet": explain or report,
        "torch.utils.tensorboard": tensorboard,
    }
    assert all(name in imported for name, is_wanted in wanted.items() if is_wanted)
    assert "pytorch_grad_cam" not in imported
    assert ("cv2" in imported) == explain
