"""Checks the table of kernels by their share of the time, on made events."""

import pytest
import torch
from torch.autograd import DeviceType

from pipeline.profiling.kernel_shares import KernelShare, kernel_shares, kernel_table
from tests.profiles import event, profile_of


def test_kernels_are_grouped_by_name():
    profile = profile_of(
        event("fprop", 0, 30),
        event("wgrad", 30, 40),
        event("fprop", 50, 80),
        event("wgrad", 80, 90),
        event("Memset (Device)", 90, 100),
        event("aten::conv2d", 0, 5_000, device=DeviceType.CPU),
        event("a range of the user", 0, 5_000, annotation=True),
    )
    rows = kernel_shares(profile, repeats=2)
    assert [(row.name, row.microseconds, row.launches) for row in rows] == [
        ("fprop", 30.0, 1.0),
        ("wgrad", 10.0, 1.0),
        ("Memset (Device)", 5.0, 0.5),
    ]
    assert [row.fraction for row in rows] == pytest.approx([6 / 9, 2 / 9, 1 / 9])


def test_work_without_a_gpu_has_no_kernels():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        torch.ones(8).add(1)
    assert kernel_shares(profile) == []


def test_the_table_ends_with_what_is_left_and_the_sum():
    rows = [
        KernelShare("first|" + "x" * 200, 1234.5, 0.5, 3.0),
        KernelShare("second", 1000.0, 0.4, 1.0),
        KernelShare("third", 200.0, 0.08, 0.5),
        KernelShare("fourth", 50.0, 0.02, 1.0),
    ]
    lines = kernel_table(rows, limit=2).splitlines()
    assert lines[2].startswith(r"| `first\|x") and lines[2].endswith("x…` | 1,234.5 | 50.0% | 3.0 |")
    assert lines[3:] == [
        "| `second` | 1,000.0 | 40.0% | 1.0 |",
        "| `2 other kernels` | 250.0 | 10.0% | 1.5 |",
        "| `all kernels` | 2,484.5 | 100.0% | 5.5 |",
    ]
