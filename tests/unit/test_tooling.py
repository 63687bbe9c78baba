"""The locks, and the files that tools read."""

import os
import re
import shutil
import subprocess
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from pre_commit.clientlib import load_config

from tests.python import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = ("cuda120", "cuda130")
DALI = {extra: f"nvidia-dali-{extra}" for extra in EXTRAS}
# written so that this file does not match itself
INDEX_HOST = re.compile(
    r"pyp[i]\.org|pythonhoste[d]|npmj[s]\.org|anaconda\.(?:org|com)|download\.pytorc[h]|pyp[i]\.nvidia"
)
INDEX_OPTION = re.compile(r"^(?:-i|-f|--(?:extra-)?index-url|--find-links|--trusted-host)\b", re.MULTILINE)


def read_lock(extra: str) -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Return requirements by name, each with its hashes, once for each range of Python versions."""
    text = (ROOT / f"requirements-{extra}.lock").read_text().replace("\\\n", " ")
    entries: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = re.split(r"\s+--hash=", line.strip())
            parsed = Requirement(requirement)
            entries.setdefault(canonicalize_name(parsed.name), []).append((parsed, hashes))
    return entries


def pin(requirement: Requirement) -> Version:
    (specifier,) = requirement.specifier
    assert specifier.operator == "==", requirement
    return Version(specifier.version)


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_locked_package_is_pinned_and_hashed(extra: str):
    for entries in read_lock(extra).values():
        for requirement, hashes in entries:
            assert pin(requirement)
            assert requirement.url is None
            assert hashes
            assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", item) for item in hashes), requirement


@pytest.mark.parametrize("extra", EXTRAS)
@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0", "3.14.0"])
def test_lock_holds_what_pyproject_asks_for(extra: str, python: str):
    lock = read_lock(extra)
    project = PROJECT["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"][extra],
        *PROJECT["dependency-groups"]["dev"],
        *PROJECT["build-system"]["requires"],  # launch.sh builds without isolation
    ]
    machine = {
        **{key: str(value) for key, value in default_environment().items()},
        "python_full_version": python,
        "python_version": python.rpartition(".")[0],
        "sys_platform": "linux",
    }
    for wanted in map(Requirement, asked):
        entries = [
            item
            for item, _ in lock[canonicalize_name(wanted.name)]
            if item.marker is None or item.marker.evaluate(machine)
        ]
        assert len(entries) == 1, wanted
        assert wanted.specifier.contains(pin(entries[0])), f"{wanted}: run `./launch.sh lock`"


def test_locks_differ_in_dali_alone():
    locks = {extra: read_lock(extra) for extra in EXTRAS}
    for extra in EXTRAS:
        assert [name for name in DALI.values() if name in locks[extra]] == [DALI[extra]]
    pins = [
        {(name, str(item)) for name, entries in lock.items() for item, _ in entries}
        for lock in locks.values()
    ]
    assert {name for name, _ in pins[0] ^ pins[1] if not name.startswith("nvidia-")} == set()


def test_the_files_beside_the_code_are_package_data():
    """An installed package holds the templates, and the shipped weights with their cards and registry."""
    patterns = PROJECT["tool"]["setuptools"]["package-data"]
    packaged = {
        path
        for package, names in patterns.items()
        if package != "*"
        for name in names
        for path in ROOT.joinpath(*package.split(".")).glob(name)
    }
    data = {
        path
        for folder in ("templates", "pretrained")
        for path in (ROOT / "pipeline" / folder).iterdir()
        if path.suffix not in ("", ".py")
    }
    assert data and data <= packaged


def test_no_file_names_a_package_index():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("which files are the project's own, git tells")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    assert ROOT / "requirements-cuda120.lock" in files
    for path in files:
        if path.is_file():
            text = path.read_text(errors="replace")
            assert not (found := INDEX_HOST.search(text)), f"{path}: {found}"
            assert path.suffix != ".lock" or not (found := INDEX_OPTION.search(text)), f"{path}: {found}"


@pytest.mark.parametrize("name", ["cpu1", "cpu2", "gpu1", "gpu2", "gpu8", "two_nodes"])
def test_accelerate_files(name: str):
    values = yaml.safe_load((ROOT / f"configs/accelerate/{name}.yaml").read_text())
    # the words, in quotes: YAML reads a bare `no` as false
    assert values["mixed_precision"] == "no"
    assert values["dynamo_config"] == {"dynamo_backend": "no"}
    assert values["distributed_type"] == ("NO" if name.endswith("1") else "MULTI_GPU")
    assert values["use_cpu"] is (name == "cpu1")


def test_pre_commit_downloads_nothing():
    hooks = [
        (repo["repo"], hook["language"])
        for repo in load_config(ROOT / ".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    ]
    assert hooks == [("local", "unsupported")] * len(hooks)
    assert hooks


@pytest.mark.parametrize("name", ["launch.sh", ".ci/run", "configs/accelerate/slurm.sh"])
def test_scripts_run(name: str):
    assert os.access(ROOT / name, os.X_OK)
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_ci_runs_the_documented_command():
    assert "./launch.sh test" in (ROOT / ".ci/run").read_text()
