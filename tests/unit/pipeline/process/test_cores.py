"""The CPU limits of containers, in both versions of control groups."""

import os
from pathlib import Path

import pytest

from pipeline.process import cores


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),  # one and a half
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "800000 100000\n"}, 8),  # of a parent
        ("0::/../of-the-host/c\n", {"cpu.max": "300000 100000\n"}, 3),
        ("4:memory:/m\n3:cpu,cpuacct:/j\n0::/\n", {"cpu/j/cpu.cfs_quota_us": "500000\n"}, 5),
        ("3:cpu,cpuacct:/j\n", {"cpu/j/cpu.cfs_quota_us": "-1\n"}, 64),
        ("3:cpu,cpuacct:/docker/c\n", {"cpu/cpu.cfs_quota_us": "600000\n"}, 6),  # seen from inside
        ("3:cpu,cpuacct:/a/b\n", {"cpu,cpuacct/a/cpu.cfs_quota_us": "200000\n"}, 2),  # of a parent
        ("2:cpuset:/\n", {}, 64),
        ("0::/a\x0bb\u2028c\n", {"cpu.max": "200000 100000\n"}, 2),
        (f"0::/{'a' * 300}\n", {"cpu.max": "200000 100000\n"}, 2),  # too long for a name
        ("0::/\udcff/b:c\n", {"\udcff/b:c/cpu.max": "200000 100000\n"}, 2),  # no UTF-8
        ("0::/\n", {"cpu.max": "\udcff\udcfe\n"}, 64),
        ("0::/\n", {"cpu.max": "0 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "100000 0\n"}, 64),
        ("no group\n\n1:\n", {"cpu.max": "200000 100000\n"}, 64),
        ("", {}, 64),
    ],
)
def test_the_limit_of_a_container(
    own: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "own").write_text(own, errors="surrogateescape")
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, errors="surrogateescape")
        if path.name == "cpu.cfs_quota_us":
            path.with_name("cpu.cfs_period_us").write_text("100000\n")
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    monkeypatch.setattr(cores, "_CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    assert cores.usable_cores() == expected
