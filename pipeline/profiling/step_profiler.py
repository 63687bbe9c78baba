"""Profiles steps of a run: a trace for Perfetto, and a table of GPU time by kind of kernel."""

import gzip
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.atomic_io import write_whole
from pipeline.profiling.kernel_kinds import Share, new_profiler, shares
from pipeline.profiling.roofline import Work, measure_best

STEPS = 10


def table(rows: list[Share], work: Mapping[str, Work], best: Work) -> str:
    """Write the rows as a Markdown table.

    Args:
        rows: from `shares`.
        work: of each kind, in a step.
        best: the most that this device reaches in a second.
    """
    lines = ["| kind | µs a step | share | launches a step | achieved |", "|---|---:|---:|---:|---:|"]
    for row in rows:
        numbers = f"{row.microseconds:,.1f} | {row.fraction:.1%} | {row.launches:.0f}"
        lines.append(f"| {row.kind} | {numbers} | {achieved(row, work, best)} |")
    if best.flops and best.num_bytes:
        lines += [
            "",
            f"In brackets: fraction of this device's best rate, {best.flops / 1e12:,.0f} TFLOP/s in a large "
            f"matrix product and {best.num_bytes / 1e12:.2f} TB/s in a large copy.",
        ]
    named = [(kernel, row) for row in rows for kernel in row.largest]
    if named:
        lines += ["", "| largest kernels | kind | µs a step | launches a step |", "|---|---|---:|---:|"]
    for kernel, row in named:
        lines.append(f"| `{kernel.name}` | {row.kind} | {kernel.microseconds:,.1f} | {kernel.launches:.0f} |")
    return "\n".join(lines) + "\n"


def achieved(row: Share, work: Mapping[str, Work], best: Work) -> str:
    """Return the rate of a kind of kernel, with its fraction of the best rate; empty if it is not known."""
    done, seconds = work.get(row.kind, Work()), row.microseconds / 1e6
    rates = [
        f"{amount / seconds / 1e12:,.{digits}f} {unit} ({amount / seconds / most:.0%})"
        for amount, most, unit, digits in (
            (done.flops, best.flops, "TFLOP/s", 0),
            (done.num_bytes, best.num_bytes, "TB/s", 2),
        )
        if amount and most and seconds
    ]
    return ", ".join(rates)


class StepProfiler:
    """Profiles some steps of a run, once, after warm-up.

    Args:
        folder: `trace.json.gz` (for Perfetto) and `kernels.md` are written here.
        device: of the steps.
        work: of a step of this process, by kind of kernel.
        steps: number of steps to profile.
    """

    def __init__(self, folder: Path, device: torch.device, work: Mapping[str, Work], steps: int = STEPS):
        self._folder, self._device, self._work, self._steps = folder, device, work, steps
        self._profiler: torch.profiler.profile | None = None
        self._left = steps
        self.table: str | None = None

    def after_step(self, settled: bool) -> bool:
        """Start, continue or end the profile; called after every step.

        Args:
            settled: True once warm-up is over.

        Returns:
            True if the step was profiled, which makes it slow.
        """
        if self._profiler is None and settled and self._left:
            self._profiler = new_profiler(self._device)
            self._profiler.start()
        elif self._profiler is not None and self._left:
            self._left -= 1
            if not self._left:
                self._finish(self._profiler)
            return True
        return False

    def close(self) -> None:
        """Stop without a table if the run ends before all steps are profiled."""
        if self._profiler is not None and self._left:
            self._left = 0
            self._profiler.stop()

    def _finish(self, profiler: torch.profiler.profile) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        profiler.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / "trace.json"
        profiler.export_chrome_trace(str(trace))
        write_whole(self._folder / "trace.json.gz", gzip.compress(trace.read_bytes(), compresslevel=5))
        trace.unlink()
        rows = shares(profiler, self._steps)
        best = measure_best(self._device) if rows else Work()
        self.table = (
            table(rows, self._work, best)
            if rows
            else profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
        )
        write_whole(self._folder / "kernels.md", self.table)
