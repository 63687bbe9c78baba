"""Lets the scripts of a copied environment start its own Python."""

import subprocess
import venv
from pathlib import Path

import pytest

from pipeline.process.relocate import relocate

LONG = """#!/bin/sh
'''exec' '{}/bin/python' "$0" "$@"
' '''
"""


@pytest.mark.parametrize("name", ["copy", "a copy"])
@pytest.mark.parametrize("start", ["#!{}/bin/python3\n", LONG], ids=["plain", "long"])
def test_a_copied_environment(tmp_path: Path, name: str, start: str):
    original, copy = tmp_path / "project" / ".venv", tmp_path / name / ".venv"
    venv.create(original, symlinks=True)
    copy.parent.mkdir()
    original.rename(copy)  # so the old Python cannot start
    script = copy / "bin" / "tool"
    script.write_text(start.format(original) + "import sys\nprint(sys.prefix, sys.argv[1])\n")
    script.chmod(0o755)
    other = copy / "bin" / "other"
    other.write_text("#!/usr/bin/python3\n")
    for _ in range(2):
        relocate(copy)
        found = subprocess.run([script, "a b"], capture_output=True, text=True, check=True).stdout
        assert found == f"{copy} a b\n"
    shell = f"""PATH=/usr/bin:/bin; . "{copy}/bin/activate"; echo "$VIRTUAL_ENV" "$PATH\""""
    found = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True).stdout
    assert found == f"{copy} {copy}/bin:/usr/bin:/bin\n"
    assert other.read_text() == "#!/usr/bin/python3\n"


def test_an_environment_in_its_place_is_left_as_it_is(tmp_path: Path):
    folder = tmp_path / ".venv"
    venv.create(folder, symlinks=True)
    (folder / "bin" / "tool").write_text(f"#!{folder}/bin/python\n")
    before = {path: path.read_bytes() for path in (folder / "bin").iterdir()}
    relocate(folder)
    assert {path: path.read_bytes() for path in (folder / "bin").iterdir()} == before
