"""Checks how launch.sh sets up its environment, in a checkout of stand-ins."""

import os
import shutil

import pytest

from tests.integration.checkout import UV, Checkout, write
from tests.patience import PATIENCE_S, wait_until


def test_second_start_installs_nothing(checkout: Checkout):
    assert checkout.run().returncode == 0
    first = checkout.uv_calls
    assert len(first) == 2
    assert "sync" in first[0]
    assert "--require-hashes" in first[0]
    assert "requirements-cuda120.lock" in first[0]
    assert "--editable ." in first[1]
    assert checkout.run().returncode == 0
    assert checkout.uv_calls == first


@pytest.mark.parametrize("changed", ["requirements-cuda120.lock", "pyproject.toml", ".venv/pyvenv.cfg"])
def test_a_change_installs_again(checkout: Checkout, changed: str):
    checkout.run("check")
    with (checkout.root / changed).open("a") as file:
        file.write("# changed\n")
    checkout.run("check")
    assert len(checkout.uv_calls) == 4


def test_a_moved_checkout_installs_again(checkout: Checkout):
    checkout.run("check")
    checkout.root = checkout.root.rename(checkout.root.with_name("moved"))
    checkout.run("check")
    assert len(checkout.uv_calls) == 4


def test_an_interrupted_installation_is_done_again(checkout: Checkout):
    (checkout.root / "broken").write_text("7")
    assert checkout.run().returncode == 7
    assert not (checkout.root / "trainer.argv").exists()
    (checkout.root / "broken").unlink()
    assert checkout.run().returncode == 0
    assert len(checkout.uv_calls) == 3


def test_two_starts_install_once(checkout: Checkout):
    hold = checkout.root / "hold"
    hold.touch()
    first = checkout.start("check")
    wait_until(lambda: checkout.uv_calls, "the first start installs")
    second = checkout.start("check")
    assert second.stderr is not None
    assert "waiting for another" in second.stderr.readline()
    hold.unlink()
    for start in (first, second):
        start.communicate(timeout=PATIENCE_S)
        assert start.returncode == 0
    assert len(checkout.uv_calls) == 2


def test_dali_is_chosen_and_stays(checkout: Checkout):
    checkout.run("check", DALI="cuda130")
    checkout.run("check")
    assert ["cuda130" in call for call in checkout.uv_calls] == [True, False]
    checkout.run("check", DALI="cuda120")
    assert "requirements-cuda120.lock" in checkout.uv_calls[2]
    result = checkout.run("check", DALI="cuda110")
    assert result.returncode == 2
    assert "DALI=cuda110" in result.stderr and "cuda120 or cuda130" in result.stderr


def test_no_python_is_an_error_with_a_remedy(checkout: Checkout):
    shutil.rmtree(checkout.root / ".venv")
    for name in ("python3.13", "python3.12", "python3.11", "python3"):
        write(checkout.root / "bin" / name, "#!/bin/sh\nexit 1\n", 0o755)
    result = checkout.run()
    assert result.returncode == 2
    assert "PYTHON=" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_python_that_this_user_cannot_start(checkout: Checkout):
    python = checkout.root / ".venv/bin/python"
    python.chmod(0o644)
    result = checkout.run()
    assert result.returncode == 2
    assert f"{python}, which this user cannot start" in result.stderr and "rm -r .venv" in result.stderr
    assert python.exists() and checkout.uv_calls == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("has_venv", [True, False])
def test_a_folder_that_this_user_cannot_write(checkout: Checkout, has_venv: bool):
    folder = checkout.root / ".venv" if has_venv else checkout.root
    if not has_venv:
        shutil.rmtree(checkout.root / ".venv")
    folder.chmod(0o555)
    result = checkout.run()
    folder.chmod(0o755)
    assert result.returncode == 2
    assert f"{folder}: packages must be installed" in result.stderr and "copy" in result.stderr


def test_a_fresh_venv_gets_the_locked_uv(checkout: Checkout):
    shutil.rmtree(checkout.root / ".venv")
    write(
        checkout.root / "inner",
        '#!/bin/sh\nfor r; do :; done\n[ "$2" != pip ] || { cat "$r" >pip.log; cp outer-uv .venv/bin/uv; }\n',
        0o755,
    )
    write(checkout.root / "outer-uv", UV, 0o755)
    make = "mkdir -p .venv/bin; cp inner .venv/bin/python; touch .venv/pyvenv.cfg"
    write(checkout.root / "my python", f'#!/bin/sh\n[ "$2" != venv ] || {{ {make}; }}\n', 0o755)
    result = checkout.run("check", PYTHON="./my python")
    assert result.returncode == 0, result.stderr
    assert (checkout.root / "pip.log").read_text() == "uv==1.2.3 \\\n    --hash=sha256:bb\n"
    assert len(checkout.uv_calls) == 2


def test_lock_writes_both(checkout: Checkout):
    assert checkout.run("lock", "--upgrade").returncode == 0
    for dali, call in zip(("cuda120", "cuda130"), checkout.uv_calls, strict=True):
        assert f"--extra {dali} " in call
        assert call.endswith(f"--output-file requirements-{dali}.lock --upgrade")
