"""Time one config: its loader alone, its step alone, and both together; and name the bottleneck."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.measure import cells
from benchmarks.measure.bottleneck import Measured, name_bottleneck
from benchmarks.measure.ceiling import flops_per_image
from benchmarks.measure.describe import describe_loader
from benchmarks.measure.session import Session
from benchmarks.measure.timing import Stopwatch, Timing, Workload, steps_lasting
from benchmarks.measure.workloads import LoaderWorkload, Rig, StepWorkload, batches_ahead, build_train_loader
from benchmarks.publish.columns import Column, make_table
from benchmarks.publish.records import Benchmark
from pipeline.config import Config
from pipeline.data.loaders.decoder import choose_decoder
from pipeline.data.sampling.batch_plan import Shard
from pipeline.profiling.roofline import matmul_flops_per_s
from pipeline.training.build import compile_mode

_LOADER_WINDOW_S = 0.3


@dataclass(frozen=True)
class _Arithmetic:
    """Floating-point operations of one image, and per second of a large matrix product on all devices."""

    flops: float
    peak: float

    def achieved(self, images_per_sec: float) -> float:
        return self.flops * images_per_sec

    def peak_share(self, images_per_sec: float) -> float:
        return self.flops * images_per_sec / self.peak


@dataclass(frozen=True)
class _Workloads:
    """The workloads that are timed in turn; `silent` is the step without communication, if there is any."""

    loader: LoaderWorkload
    step: StepWorkload
    together: StepWorkload
    silent: StepWorkload | None

    def listed(self) -> list[Workload]:
        return [self.loader, self.step, self.together, *([self.silent] if self.silent else [])]


def run(session: Session) -> None:
    config = session.config()
    session.show("measuring the arithmetic of this machine")
    arithmetic = _measure_arithmetic(session, config)
    workloads = _build(session, config)
    timings = session.time(workloads.listed(), _window_steps(session, workloads))
    step, together = timings[1:3]
    compared = together.against(step)
    mode = compile_mode(config.compile, session.device)
    measured = Measured(
        loader=timings[0].images_per_sec.median,
        step=step.images_per_sec.median,
        end_to_end=together.images_per_sec.median,
        ratio=compared.ratio,
        alone=timings[-1 if workloads.silent else 1].images_per_sec.median,
        host_ms=workloads.step.host_ms() if session.on_gpu else 0.0,
        step_ms=step.step_ms,
        peak_share=arithmetic.peak_share(step.images_per_sec.median),
        compile_mode=mode,
        on_gpu=session.on_gpu,
        streamed=session.streams(config),
    )
    setting = f"{config.model.name}, batch {config.data.batch_size}, {config.precision.mode}, compile {mode}"
    rows = list(zip(timings, workloads.listed(), strict=True))
    session.print(make_table(f"{session.recipe}: {setting}", _columns(arithmetic), rows))
    _record(session, timings, workloads, arithmetic)
    peak = f"{arithmetic.peak / 1e12:.3g} TFLOP/s, by a large matrix product"
    session.say(f"end to end is {cells.comparison(compared)}; peak: {peak}")
    if session.streams(config) and config.data.loader == "dali":
        decoder = choose_decoder(config, session.device)
        session.say(f"{decoder.describe()}; `bench decoders` measures the others")
    session.say(name_bottleneck(measured, config))


def _measure_arithmetic(session: Session, config: Config) -> _Arithmetic:
    splits = session.splits(config)
    flops = flops_per_image(config.model, splits.num_classes, splits.image_size, splits.num_channels)
    return _Arithmetic(flops, matmul_flops_per_s(session.device) * session.processes.shard.world_size)


def _build(session: Session, config: Config) -> _Workloads:
    splits, processes = session.splits(config), session.processes
    session.show("building and compiling the step")
    rig = Rig(config, splits, processes)
    loader = build_train_loader(config, splits, processes)
    ahead = 1 if session.quick else batches_ahead(config)
    silent = None
    if processes.shard.world_size > 1:
        session.show("building the step without communication")
        silent = _build_silent(session, config)
    return _Workloads(
        LoaderWorkload("loader alone", loader, config.data.batch_size, ahead),
        StepWorkload("step alone", rig, rig.synthetic(), lead_in=1),
        StepWorkload("end to end", rig, loader, session.lead_in(config)),
        silent,
    )


def _build_silent(session: Session, config: Config) -> StepWorkload:
    """Return the step on the share of one process, which takes itself for the only one."""
    share = config.data.batch_size // session.processes.shard.world_size
    alone = session.config(f"data.batch_size={share}", "model.sync_batchnorm=false")
    rig = Rig(alone, session.splits(config), replace(session.processes, shard=Shard(0, 1)))
    silent = StepWorkload("step, no communication", rig, rig.synthetic(), lead_in=1)
    silent.images_per_step = config.data.batch_size  # all processes run it at the same time
    return silent


def _window_steps(session: Session, workloads: _Workloads) -> list[int]:
    """Return the steps of each window; a loader delivers in bursts, so its window holds many of them."""
    steps = [session.steps for _ in workloads.listed()]
    if not session.quick:
        lasting = steps_lasting(workloads.loader, _LOADER_WINDOW_S, Stopwatch(session.device))
        steps[0] = max(session.steps, lasting)
    return steps


_Row = tuple[Timing, Workload]
_TextOfStep = Callable[[Timing, StepWorkload], str]


def _columns(arithmetic: _Arithmetic) -> list[Column[_Row]]:
    def of_step(name: str, text: _TextOfStep) -> Column[_Row]:
        """Return a column that is empty for the loader alone."""
        return Column(
            name, "right", lambda row: text(row[0], row[1]) if isinstance(row[1], StepWorkload) else ""
        )

    return [
        Column("", "left", lambda row: row[0].name),
        Column("images/sec", "right", lambda row: cells.count(row[0].images_per_sec.median)),
        Column("p10–p90 (n)", "right", lambda row: cells.spread(row[0].images_per_sec)),
        Column("step ms", "right", lambda row: cells.number(row[0].step_ms)),
        of_step(
            "TFLOP/s", lambda t, _: cells.significant(arithmetic.achieved(t.images_per_sec.median) / 1e12)
        ),
        of_step("of peak", lambda t, _: cells.percent(arithmetic.peak_share(t.images_per_sec.median))),
        of_step("peak memory", lambda _, workload: cells.memory(workload.rig.peak_memory_bytes)),
        of_step("data wait", lambda _, workload: cells.percent(workload.data_wait_fraction)),
        of_step("compile s", lambda _, workload: cells.number(workload.rig.compile_s, 1)),
    ]


def _record(
    session: Session, timings: Sequence[Timing], workloads: _Workloads, arithmetic: _Arithmetic
) -> None:
    """Keep three records: of the loader, the step, and both."""
    config, rig = session.config(), workloads.step.rig
    loader, step, together = timings[:3]

    def record_step(
        benchmark: Benchmark, variant: str, config: Config, timing: Timing, wait: float | None
    ) -> None:
        rate = timing.images_per_sec.median
        session.record(
            benchmark,
            variant,
            config,
            timing,
            None if timing is step else timing.against(step),
            peak_memory_bytes=rig.peak_memory_bytes,
            compile_s=rig.compile_s,
            tflops=arithmetic.achieved(rate) / 1e12,
            peak_share=arithmetic.peak_share(rate),
            data_wait_fraction=wait,
        )

    session.record("loader", describe_loader(config), config, loader, model=None, compile_mode="none")
    record_step("step", "step", session.config("data.loader=synthetic"), step, None)
    wait = workloads.together.data_wait_fraction
    record_step("end_to_end", config.data.loader, config, together, wait)
