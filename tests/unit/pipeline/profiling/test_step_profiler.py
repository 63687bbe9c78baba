"""Checks the profile's table: kinds of kernels, fractions of the time, and the least work of a step."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from pipeline.config import ModelConfig, load_config
from pipeline.models import build_model
from pipeline.profiling.kernel_kinds import Share, kind_of, measure_shares, shares, short_name
from pipeline.profiling.roofline import (
    FORWARD,
    INPUT_GRADIENT,
    NORM_BACKWARD,
    NORM_FORWARD,
    OPTIMIZER,
    STEM,
    WEIGHT_GRADIENT,
    Work,
    step_work,
)
from pipeline.profiling.step_profiler import StepProfiler, table
from pipeline.run.folder import RunFolder
from pipeline.train import _profile_steps
from tests.profiles import event, profile_of

BATCH = 1024
PIXELS = 32 * 32


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sm90_xmma_fprop_implicit_gemm_f16f16_f16f32_nhwckrsc", FORWARD),
        ("sm90_xmma_dgrad_implicit_gemm_f16f16", INPUT_GRADIENT),
        ("void cutlass__5x_cudnn::Kernel<cutlass_tensorop_f16_s16816wgrad_optimized>", WEIGHT_GRADIENT),
        ("_norm_statistics_kernel", NORM_FORWARD),
        ("_norm_gradient_sums_kernel", NORM_BACKWARD),
        ("_pool_conv_weight_gradient_kernel", WEIGHT_GRADIENT),
        ("_stem_gradient_sums_kernel", STEM),
        ("_loss_gradient_kernel", "loss"),
        ("void at::native::multi_tensor_apply_kernel<FusedSgdMathFunctor>", OPTIMIZER),
        ("_muon_gram_kernel", OPTIMIZER),
        ("triton_poi_fused_copy_3", "element-wise and reduction"),
        ("void dali::kernels::SliceFlipNormalizePermutePadKernel", "loader"),
        ("void dali::kernels::warp::BatchWarpKernel<float>", "loader"),
        ("sm90_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x128x64_warpgroupsize1x1x1", "matrix product"),
        ("cutlass3x_sm90_tensorop_s64x128x16_f16_warpspecialized_pingpong", "matrix product"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNN", "matrix product"),
        ("void at::native::max_pool_backward_nhwc<float>", "pool"),
        ("_pool_norm_gradient_kernel", NORM_BACKWARD),
        ("aten::mkldnn_convolution", FORWARD),
        ("aten::convolution_backward", "convolution: both gradients"),
        ("something new", "other"),
    ],
)
def test_kinds_of_kernels(name: str, kind: str):
    assert kind_of(name) == kind


def test_shares_and_idle_time_add_up():
    profile = profile_of(
        event("dgrad", 0, 40),
        event("fprop", 50, 80),
        event("wgrad", 90, 100),
        event("aten::conv2d", 0, 900, device=DeviceType.CPU),
    )
    assert [(row.kind, row.microseconds, row.fraction, row.launches) for row in shares(profile, steps=2)] == [
        (INPUT_GRADIENT, 20, 0.4, 0.5),
        (FORWARD, 15, 0.3, 0.5),
        (WEIGHT_GRADIENT, 5, 0.1, 0.5),
        ("idle", 10, 0.2, 0.0),
    ]
    assert shares(profile_of(), 1) == []


def test_the_largest_kernels_of_a_kind_are_named():
    names = [*["void dgrad_a<4>(int)"] * 2, "dgrad_b", "dgrad_c", "dgrad_d"]
    events = [event(name, 10 * at, 10 * at + 5 - at) for at, name in enumerate(names)]
    (row, _) = shares(profile_of(*events), steps=1)
    assert [(kernel.name, kernel.microseconds, kernel.launches) for kernel in row.largest] == [
        ("dgrad_a", 9, 2),
        ("dgrad_b", 3, 1),
        ("dgrad_c", 2, 1),
    ]
    assert "| `dgrad_a` | convolution: input gradient | 9.0 | 2 |" in table([row], {}, Work())
    assert len(short_name("x" * 200)) == 72 and short_name("(anonymous namespace)::f<1>") == "f"
    assert short_name("void cutlass::Kernel2<cutlass_80_wmma_gemm>(cutlass_80_wmma_gemm::Params)") == (
        "cutlass_80_wmma_gemm"
    )


def test_instances_of_a_template_are_one_kernel():
    names = ("void at::native::elementwise_kernel<float>", "void at::native::elementwise_kernel<half>")
    profile = profile_of(*(event(name, 10 * at, 10 * at + 4) for at, name in enumerate(names)))
    (kernel,) = shares(profile, steps=2)[0].largest
    assert (kernel.name, kernel.microseconds, kernel.launches) == ("at::native::elementwise_kernel", 4.0, 1.0)


def test_steps_on_the_cpu_are_divided_by_operator():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.MaxPool2d(2))

    def run(steps: int) -> None:
        for _ in range(steps):
            network(torch.randn(2, 3, 16, 16)).sum().backward()

    rows = measure_shares(run, torch.device("cpu"), steps=3)
    by_kind = {row.kind: row for row in rows}
    assert {FORWARD, NORM_FORWARD, NORM_BACKWARD, "pool", "convolution: both gradients"} <= set(by_kind)
    assert sum(row.fraction for row in rows) == pytest.approx(1)
    assert by_kind[NORM_FORWARD].launches >= 1 and by_kind["pool"].largest[0].microseconds > 0
    assert [row.microseconds for row in rows] == sorted((row.microseconds for row in rows), reverse=True)


def test_the_table_says_what_was_achieved():
    text = table(
        [Share(FORWARD, 1000.0, 0.5, 3), Share("other", 5.0, 0.1, 1)], {FORWARD: Work(4e11)}, Work(8e14, 4e12)
    )
    assert f"| {FORWARD} | 1,000.0 | 50.0% | 3 | 400 TFLOP/s (50%) |" in text
    assert "| other | 5.0 | 10.0% | 1 |  |" in text
    assert "800 TFLOP/s in a large matrix product and 4.00 TB/s" in text


@pytest.mark.parametrize("steps", [2, 5])
def test_some_steps_after_warm_up_are_profiled(tmp_path: Path, steps: int):
    profiler = StepProfiler(tmp_path, torch.device("cpu"), {}, steps=3)
    slowed = []
    for step in range(-1, 1 + steps):
        torch.ones(8).add(step)
        slowed.append(profiler.after_step(settled=step >= 0))
    profiler.close()
    assert slowed == [False, False, *[True] * min(steps, 3), *[False] * max(steps - 3, 0)]
    if steps < 3:
        assert profiler.table is None and list(tmp_path.iterdir()) == []
        return
    events = json.loads(gzip.decompress((tmp_path / "trace.json.gz").read_bytes()))["traceEvents"]
    assert sum(event["name"] == "aten::add" for event in events) == 3
    assert profiler.table is not None and "aten::add" in profiler.table


@pytest.mark.parametrize("fused_stem", [False, True])
def test_the_work_of_a_resnet18(fused_stem: bool):
    """By hand: one 3x3 stem, four stages of four convolutions, three projections; a norm after each."""
    config = ModelConfig(name="resnet18", fused_norm=True, fused_stem=fused_stem)
    work = step_work(build_model(config, 10), (3, 32, 32), BATCH, 2, "sgd", scaled=True)
    stem = 2 * PIXELS * 27 * 64
    flops = 4 * 2 * PIXELS * 9 * 64 * 64  # first stage
    for stage in (1, 2, 3):
        pixels, channels = PIXELS / 4**stage, 64 * 2**stage
        flops += 2 * pixels * channels * (9 * channels // 2 + 3 * 9 * channels + channels // 2)
    assert work[FORWARD].flops == BATCH * (flops + (0 if fused_stem else stem))
    assert work[INPUT_GRADIENT].flops == BATCH * flops
    assert work[WEIGHT_GRADIENT].flops == work[FORWARD].flops
    assert work[OPTIMIZER].num_bytes == 24 * 11_173_962

    sizes = [64 * PIXELS / 2**stage for stage in range(4)]  # of an activation
    forward = sizes[0] * (2 * 3 + 2 * 4) + sum(size * (2 * 3 + 4 + 5) for size in sizes[1:])
    backward = sizes[0] * (2 * 5 + 2 * 6) + sum(size * (2 * 5 + 6 + 9) for size in sizes[1:])
    alone = not fused_stem
    assert work[NORM_FORWARD].num_bytes == 2 * BATCH * (forward + 3 * sizes[0] * alone)
    assert work[NORM_BACKWARD].num_bytes == 2 * BATCH * (backward + 5 * sizes[0] * alone)
    assert (STEM in work) == fused_stem
    if fused_stem:
        assert work[STEM].num_bytes == 2 * BATCH * 3 * sizes[0]


@pytest.mark.parametrize(("fused_stem", "forward", "backward"), [(False, 3.0, 5.0), (True, 2.5, 2.75)])
def test_the_work_of_a_norm_before_a_pool(fused_stem: bool, forward: float, backward: float):
    """In passes over the activation before the pool, of which that behind it is a quarter."""
    size, network = 64 * 112 * 112, ModelConfig(name="resnet18", fused_norm=True, fused_stem=fused_stem)
    work = step_work(build_model(network, 10, 3, 224), (3, 224, 224), 1, 2, "sgd", scaled=True)
    small = ModelConfig(name="resnet18", fused_norm=True, stem="cifar", fused_stem=True)
    rest = step_work(
        build_model(small, 10, 3, 56), (3, 56, 56), 1, 2, "sgd", scaled=True
    )  # a stem of its own
    for kind, passes in ((NORM_FORWARD, forward), (NORM_BACKWARD, backward)):
        assert work[kind].num_bytes == (rest[kind].num_bytes or 0) + 2 * passes * size


def test_the_work_of_a_speednet96():
    """By hand: a whitening, three groups of a pooled norm, a norm, and a norm with a residual."""
    config = ModelConfig(name="speednet96", fused_norm=True, fused_stem=True)
    work = step_work(build_model(config, 10), (3, 32, 32), BATCH, 2, "muon", scaled=True)
    inputs, channels, sizes = (24, 128, 384), (128, 384, 512), (31, 15, 7)
    flops = forward = backward = 0.0
    for before, width, size in zip(inputs, channels, sizes, strict=True):
        whole, pooled = width * size**2, width * (size // 2) ** 2
        flops += 2 * 9 * (before * whole + 2 * width * pooled)
        forward += whole + 3 * pooled + 3 * pooled + 4 * pooled
        backward += whole + 4 * pooled + 5 * pooled + 7 * pooled
    assert {work[key].flops for key in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT)} == {BATCH * flops}
    assert work[NORM_FORWARD].num_bytes == 2 * BATCH * forward
    assert work[NORM_BACKWARD].num_bytes == 2 * BATCH * backward
    assert work[STEM].num_bytes == 2 * BATCH * 2 * 24 * 31**2


def test_the_work_of_another_librarys_network():
    work = step_work(
        build_model(ModelConfig(name="torchvision/resnet18"), 10, 3, 64),
        (3, 64, 64),
        8,
        4,
        "adamw",
        scaled=False,
    )
    assert work[FORWARD].flops and NORM_FORWARD not in work
    assert work[OPTIMIZER].num_bytes == 28 * 11_181_642


@pytest.mark.parametrize(("step", "size"), [(0, 16), (75, 32)])
def test_the_profiled_steps_are_of_the_size_that_is_trained(step: int, size: int, tmp_path: Path):
    streamed = [
        "data.dataset=folder",
        "data.root=x",
        "data.image_size=32",
        "augment.progressive=[[0%,16],[75%,32]]",
        "duration=100st",
    ]
    config = load_config(
        overrides=[*streamed, "model.name=resnet20", "data.batch_size=8", "precision.mode=fp32"]
    )
    trainer: Any = SimpleNamespace(
        config=config,
        processes=SimpleNamespace(shard=SimpleNamespace(world_size=1), device=torch.device("cpu")),
        plan=SimpleNamespace(steps_per_epoch=10),
        run=RunFolder(tmp_path),
        splits=SimpleNamespace(num_channels=3),
        state=SimpleNamespace(step=step, model=build_model(config.model, 10, 3, 32)),
    )
    _profile_steps(trainer)
    profiler = trainer.profiler
    expected = step_work(trainer.state.model, (3, size, size), 8, 4, "sgd", scaled=False)
    assert profiler._work[FORWARD] == expected[FORWARD]


def test_the_work_of_muon_is_not_that_of_sgd():
    assert OPTIMIZER not in step_work(
        build_model(ModelConfig(name="resnet20"), 10), (3, 32, 32), 8, 2, "muon", scaled=True
    )
