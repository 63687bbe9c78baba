"""Time each Triton kernel and torch.compile of its reference in turn.

Each is replayed from a CUDA graph, so the time is that of the device without the host.
"""

import importlib
from collections.abc import Callable

import torch

from benchmarks.arguments import OPS
from benchmarks.kernels.case import Case
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Timing, Workload
from pipeline.training.capture import new_graph

_CALLS = 20  # in one graph, on different inputs, so that the caches hold no more than in training


class CallWorkload(Workload):
    """Call a function repeatedly. On a GPU `_CALLS` calls are captured in one graph, which is replayed."""

    def __init__(self, name: str, call: Callable[[int], object], images: int, captured: bool):
        super().__init__(name, images, lead_in=1)
        self._call = call
        self._graph: torch.cuda.CUDAGraph | None = None
        for turn in range(3):  # compiles, and chooses algorithms
            call(turn)
        if captured:
            torch.cuda.synchronize()
            with new_graph() as self._graph:
                for turn in range(_CALLS):
                    call(turn)

    @property
    def calls_per_step(self) -> int:
        return _CALLS if self._graph is not None else 1

    def run(self, steps: int) -> None:
        for turn in range(steps):
            if self._graph is not None:
                self._graph.replay()
            else:
                self._call(turn)


def _cases(op: str, device: torch.device, quick: bool) -> list[Case]:
    """Return the cases of an op, from the module of its name in this folder."""
    return importlib.import_module(f"benchmarks.kernels.{op}").cases(device, quick)


def run(session: Session) -> None:
    if not session.on_gpu:
        session.say("no GPU: the references run without the Triton kernels")
    for name in session.options.ops or OPS:
        for case in _cases(name, session.device, session.quick):
            session.show(f"{name}: {case.label}")
            _time(session, name, case)
    session.print_tables()


def _time(session: Session, name: str, case: Case) -> None:
    workloads = _workloads(session, name, case)
    timings = [
        _per_call(timing, workload)
        for timing, workload in zip(session.time(workloads), workloads, strict=True)
    ]
    # A kernel does not depend on the recipe: the record holds the arguments of the call.
    config = session.config("data.loader=synthetic", f"data.batch_size={case.batch_size}")
    for timing in timings:
        session.record(
            "kernel",
            timing.name,
            config,
            timing,
            timing.against(timings[0]) if timing is not timings[0] else None,
            model=None,
            loader=None,
            dataset="synthetic",
            image_size=case.image_size,
            precision=case.precision,
            num_classes=case.num_classes,
            channels_last=True,
            compile_mode="default" if timing.name.startswith("compiled") else "none",
        )


def _workloads(session: Session, name: str, case: Case) -> list[CallWorkload]:
    """Return the reference, compiled unless it works on the host, others, and on a GPU the kernel."""
    captured = session.on_gpu and not case.on_host
    reference, title = case.reference, case.reference_name
    if not case.on_host:
        torch._dynamo.reset()  # else one function would be compiled at many sizes
        backend = "inductor" if session.on_gpu else "aot_eager"
        reference = torch.compile(reference, backend=backend, dynamic=False, fullgraph=True)
        title = f"compiled {title}"
    functions = [(title, reference), *case.others] + ([(name, case.kernel)] if session.on_gpu else [])
    return [
        CallWorkload(f"{title} {case.variant}".strip(), case.caller(function), case.batch_size, captured)
        for title, function in functions
    ]


def _per_call(timing: Timing, workload: CallWorkload) -> Timing:
    return Timing(
        timing.name,
        timing.images_per_step,
        tuple(seconds / workload.calls_per_step for seconds in timing.step_s),
    )
