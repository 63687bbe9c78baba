"""Every key of the config, when changed, changes what is built from it.

The table holds one row per key: another valid value, and a probe that builds something real and returns
values that can be compared.
A key without a row fails the test, and so does a key whose change leaves its probe's result the same.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import DEFAULT, patch

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pipeline import api
from pipeline import finalize as finish
from pipeline.config import Config, leaf_fields
from pipeline.data import build_loaders, load_splits
from pipeline.data.loaders.dali_arrays import DaliArrayLoader
from pipeline.data.loaders.decoder import choose_decoder
from pipeline.data.loaders.reference import ReferenceLoader
from pipeline.distributed.processes import pick_device
from pipeline.errors import TrainingError, UserError
from pipeline.models import build_model
from pipeline.models.layers import NormAct, StemConv
from pipeline.run.trackers import Trackers
from pipeline.training.build import compile_in_place, compile_mode
from pipeline.training.plan import Plan
from tests.pictures import encoded, make_folder, picture
from tests.shards import write_tar
from tests.tiny import a_train_record, open_and_release, tiny_config, tiny_splits, tiny_trainer, train_steps

CPU = torch.device("cpu")


def plan_of(config: Config) -> Plan:
    return Plan.of(config, steps_per_epoch=20)


def schedule(config: Config) -> list[float]:
    plan = plan_of(config)
    return [plan.lr_at(step) for step in range(plan.total_steps)]


def first_batch(config: Config) -> list[Any]:
    batch = next(iter(build_loaders(config, tiny_splits(config), CPU).train))
    return [batch.images.float().sum(1).flatten().tolist(), batch.labels.tolist()]


def loader_of(config: Config, split: str = "train") -> Any:
    return getattr(build_loaders(config, tiny_splits(config), CPU), split)


def num_threads(config: Config) -> object:
    reference_data = config.data.model_copy(update={"loader": "reference"})
    dali, reference = loader_of(config), loader_of(config.model_copy(update={"data": reference_data}))
    assert isinstance(dali, DaliArrayLoader) and isinstance(reference, ReferenceLoader)
    next(iter(dali))
    return dali._pipe.num_threads, reference._num_workers


def prefetched(config: Config) -> int:
    loader = loader_of(config)
    next(iter(loader))
    return len(loader._in_flight)


def images_live_on(config: Config) -> str:
    """Return the device of a training set of 7,680 bytes for a device that is neither host nor hardware."""
    loader = build_loaders(config, tiny_splits(config), torch.device("meta")).train
    assert isinstance(loader, DaliArrayLoader)
    return loader._images.device.type


def folder_images(config: Config) -> object:
    train = load_splits(config.data, config.seed).train
    return train.pixels(np.arange(len(train))).tolist(), sorted(
        path.parent for path in Path(config.data.root).parent.rglob("*.npy")
    )


def streamed(config: Config) -> Any:
    """The files of a streamed folder, or why there are none."""
    try:
        return load_splits(config.data, config.seed)
    except UserError as error:
        return str(error)


def sizes(config: Config, split: str = "train") -> list[int]:
    return [batch.images.shape[-1] for batch in loader_of(config, split)]


def sums(module: nn.Module) -> list[float]:
    return [parameter.detach().double().sum().item() for parameter in module.parameters()]


def tiny_model(config: Config) -> nn.Module:
    return tiny_trainer(config).state.model


def initial_weights(config: Config) -> list[float]:
    torch.manual_seed(config.seed)
    return sums(build_model(config.model, 4))


def trained_weights(config: Config) -> list[float]:
    trainer = tiny_trainer(config)
    train_steps(trainer, 3)
    return sums(trainer.state.model)


def loss_scale(config: Config) -> float:
    trainer = tiny_trainer(config)
    train_steps(trainer, 2)
    return trainer.state.precision.loss_scale()


def names_of_figures(config: Config) -> list[str]:
    return list(tiny_trainer(config).fit().figures().to_json())


def end_of_run(config: Config) -> str:
    trainer = tiny_trainer(config)
    try:
        trainer.fit()
    except TrainingError as error:
        return str(error).split(":")[0]
    return "done"


def compiled_modules(config: Config) -> int:
    """How many modules of a network are compiled by themselves."""
    with patch.object(nn.Module, "compile", autospec=True) as compile_module:
        compile_in_place(build_model(config.model, 10), config.compile, CPU)
    return compile_module.call_count


def compiler_arguments(config: Config) -> object:
    with patch.object(nn.Module, "compile", autospec=True) as compile_module:
        compile_in_place(nn.Identity(), config.compile, CPU)
    return [call.kwargs for call in compile_module.call_args_list], compile_mode(
        config.compile, torch.device("cuda")
    )


def device_found(config: Config) -> str:
    try:
        return pick_device(config).type
    except UserError:
        return "none"


def memory_layout(config: Config) -> object:
    trainer = tiny_trainer(config)
    batch = next(iter(trainer.loaders.train))
    weight = trainer.state.model.stem[0].weight  # type: ignore[index]
    return [value.is_contiguous(memory_format=torch.channels_last) for value in (batch.images, weight)]


def backends(config: Config) -> object:
    tiny_trainer(config)
    switches = (
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
    )
    return torch.are_deterministic_algorithms_enabled(), *switches


def run_folder(config: Config) -> object:
    try:
        return open_and_release(config).path.parent.name, open_and_release(config).path.name.partition("-")[0]
    except UserError as error:
        return str(error)


def hang_timeout(config: Config) -> object:
    """The seconds that a run is watched with."""
    splits = tiny_splits(config)
    with patch("pipeline.api.Watch") as watch:
        api.fit(config, api.build_model(config, splits), api.build_loaders(config, splits), quiet=True)
    return watch.call_args.args[1]


def event_files(config: Config) -> int:
    run = open_and_release(config)
    trackers = Trackers(config, run, True, 0, print)
    trackers.write(a_train_record(1))
    trackers.close()
    return len(list(run.path.glob("tb/*")))


def project_in_trackio(config: Config) -> str:
    """The project that accelerate is told of."""
    with patch("accelerate.Accelerator.init_trackers") as started:
        trackers = Trackers(config, open_and_release(config), True, 0, print)
        trackers.write(a_train_record(1))
        trackers.close()
    return started.call_args.args[0]


def left_at_the_end(config: Config) -> list[int]:
    """How often the contact sheet and the report are made."""
    trainer = tiny_trainer(config)
    evaluation = trainer.fit()
    trainer.run = open_and_release(config)
    names = ("_draw_curves", "_load", "_examine", "_write_tensorboard", "_draw_sheet", "_write_report")
    with patch.multiple(finish, **dict.fromkeys(names, DEFAULT)) as made:
        made["_examine"].return_value.maps = ["a map"]
        finish.finish(trainer, evaluation)
    return [made[name].call_count for name in ("_draw_sheet", "_write_report")]


@dataclasses.dataclass
class Row:
    """Another value of a key, the probe, and the overrides, on both sides, under which the key matters."""

    value: str
    probe: Callable[[Config], object]
    given: tuple[str, ...] = ()


STEP = ("schedule.name=step", "schedule.milestones=[1ep]")
ADAMW, MUON = ("optimizer.name=adamw",), ("optimizer.name=muon",)
MIXUP = ("augment.mix=mixup",)
COSINE = ("schedule.name=cosine",)
FOLDER = ("data.dataset=folder", "data.root={tmp}/one")
STREAMED = ("data.dataset=folder", "data.root={tmp}/streamed", "data.image_size=16")
LISTS = (*STREAMED, "data.train_list={tmp}/train.txt", "data.test_list={tmp}/test.txt")
SHARDS = ("data.dataset=shards", "data.root={tmp}/shards", "data.image_size=16", "data.cache_below=8")
FP16 = ("precision.mode=fp16", "duration=4st", "log.eval_every=100st", "log.log_every=1st")
COMPILED = ("compile.mode=default",)

KEYS = {
    "seed": Row("4", lambda config: [initial_weights(config), first_batch(config)]),
    "duration": Row("2ep", lambda config: plan_of(config).total_steps),
    "resume": Row("nowhere", run_folder),
    "data.dataset": Row("digits", first_batch),
    "data.root": Row("{tmp}/two", lambda config: folder_images(config)[0], FOLDER),  # type: ignore[index]
    "data.train_folder": Row("val", lambda config: list(streamed(config).train.sample_paths), STREAMED),
    "data.test_folder": Row("train", lambda config: list(streamed(config).test.sample_paths), STREAMED),
    "data.classes": Row("[a]", lambda config: type(streamed(config)), STREAMED),  # one is too few
    "data.train_list": Row("{tmp}/test.txt", lambda config: list(streamed(config).train.sample_paths), LISTS),
    "data.test_list": Row("{tmp}/train.txt", lambda config: list(streamed(config).test.sample_paths), LISTS),
    "data.train_shards": Row("val-*", lambda config: list(streamed(config).train.sample_paths), SHARDS),
    "data.test_shards": Row("train-0.tar", lambda config: list(streamed(config).test.sample_paths), SHARDS),
    "data.image_key": Row("thumb.jpg", lambda config: streamed(config).train.sizes.tolist(), SHARDS),
    "data.label_key": Row("json.other", lambda config: streamed(config).train.labels.tolist(), SHARDS),
    "data.class_names": Row("{tmp}/names.txt", lambda config: streamed(config).class_names, STREAMED),
    "data.on_bad_image": Row(
        "skip", lambda config: type(streamed(config)), ("data.dataset=folder", "data.root={tmp}/bad")
    ),
    "data.cache_below": Row("1024", lambda config: type(streamed(config).train), STREAMED),
    "data.cache_dir": Row("{tmp}/cache", folder_images, FOLDER),
    "data.loader": Row("reference", lambda config: type(loader_of(config))),
    "data.batch_size": Row("10", first_batch),
    "data.sampler": Row("balanced", first_batch),
    "data.eval_batch_size": Row("3", lambda config: loader_of(config, "test").steps_per_epoch),
    "data.holdout": Row("8", lambda config: loader_of(config).num_samples),
    "data.mean": Row("[0.1, 0.2, 0.3]", first_batch),
    "data.std": Row("[0.1, 0.2, 0.3]", first_batch),
    "data.resident_limit": Row("1KiB", images_live_on),
    "data.num_threads": Row("2", num_threads),
    "data.prefetch": Row("1", prefetched),
    "data.image_size": Row("9", first_batch),
    "data.eval_image_size": Row("24", lambda config: sizes(config, "test"), STREAMED),
    "data.eval_crop": Row(
        "1.0", lambda config: next(iter(loader_of(config, "test"))).images.tolist(), STREAMED
    ),
    "data.decoder": Row(
        "gpu", lambda config: choose_decoder(config, torch.device("cuda", 0)).reason, STREAMED
    ),
    "data.gpu_share": Row("0.5", lambda config: loader_of(config)._decoding.gpu_share, STREAMED),
    "data.hw_decoder_load": Row("0.5", lambda config: loader_of(config)._decoding.hw_load, STREAMED),
    "data.num_classes": Row("5", lambda config: len(tiny_splits(config).class_names)),
    "data.num_samples": Row("41", lambda config: loader_of(config).num_samples),
    "augment.crop_padding": Row("2", first_batch),
    "augment.crop_border": Row("reflect", first_batch),
    "augment.crop_scale": Row("[0.9, 1.0]", first_batch, STREAMED),
    "augment.crop_ratio": Row("[1.0, 1.1]", first_batch, STREAMED),
    "augment.flip": Row("false", first_batch),
    "augment.cutout": Row("3", first_batch),
    "augment.cutout_mode": Row("inside", first_batch),
    "augment.erasing": Row("1.0", first_batch),
    "augment.trivial_augment": Row("true", first_batch),
    "augment.repeats": Row("2", first_batch),
    "augment.brightness": Row("0.5", first_batch),
    "augment.contrast": Row("0.5", first_batch),
    "augment.mix": Row("cutmix", trained_weights),
    "augment.mix_alpha": Row("0.1", trained_weights, MIXUP),
    "augment.mix_probability": Row("0.5", trained_weights, MIXUP),
    "augment.cutmix_alpha": Row("0.1", trained_weights, ("augment.mix=mixup_or_cutmix",)),
    "augment.cutmix_share": Row("0.01", trained_weights, ("augment.mix=mixup_or_cutmix",)),
    "augment.progressive": Row("[[0st, 8], [1st, 16]]", sizes, STREAMED),
    "augment.color_jitter": Row("0.5", first_batch, STREAMED),
    "augment.randaugment": Row("2", first_batch, STREAMED),
    "augment.randaugment_magnitude": Row("25", first_batch, (*STREAMED, "augment.randaugment=2")),
    "model.name": Row("resnet18", lambda config: len(initial_weights(config))),
    "model.stem": Row("imagenet", initial_weights),
    "model.shortcut": Row("B", lambda config: len(initial_weights(config))),
    "model.width": Row("2", initial_weights),
    "model.groups": Row("2", initial_weights, ("model.name=resnet50",)),
    "model.squeeze_excitation": Row("4", initial_weights),
    "model.preactivation": Row("true", initial_weights),
    "model.zero_init_residual": Row("false", initial_weights),
    "model.stochastic_depth": Row("0.9", trained_weights),
    "model.blur_pool": Row("true", trained_weights),
    "model.fused_norm": Row(
        "true",
        lambda config: [
            module.fused for module in tiny_model(config).modules() if isinstance(module, NormAct)
        ],
    ),
    "model.fused_stem": Row(
        "true",
        lambda config: [
            module.fused for module in tiny_model(config).modules() if isinstance(module, StemConv)
        ],
    ),
    "model.activation": Row("silu", trained_weights, ("model.name=speednet94", "data.image_size=9")),
    "model.sync_batchnorm": Row(
        "true",
        lambda config: [
            module.sync for module in tiny_model(config).modules() if isinstance(module, NormAct)
        ],
    ),
    "model.weights": Row("{tmp}/weights.pth", lambda config: sums(tiny_trainer(config).state.model)),
    "model.reset_head": Row(
        "true",
        lambda config: sums(tiny_trainer(config).state.model.head),  # type: ignore[arg-type]
        ("model.weights={tmp}/weights.pth",),
    ),
    "model.freeze": Row("[stem.*]", trained_weights),
    "loss.name": Row("bce", trained_weights),
    "loss.label_smoothing": Row("0.1", trained_weights),
    "loss.class_weights": Row("[1.0, 0.5, 2.0, 1.5]", trained_weights),
    "optimizer.name": Row("adamw", trained_weights),
    "optimizer.lr": Row("0.2", trained_weights),
    "optimizer.momentum": Row("0.8", trained_weights),
    "optimizer.nesterov": Row("false", trained_weights),
    "optimizer.betas": Row("[0.5, 0.9]", trained_weights, ADAMW),
    "optimizer.weight_decay": Row("0.1", trained_weights),
    "optimizer.decay_norm_and_bias": Row("false", trained_weights),
    "optimizer.sgd_lr_ratio": Row("0.5", trained_weights, MUON),
    "optimizer.sgd_weight_decay": Row("0.1", trained_weights, MUON),
    "optimizer.clip_norm": Row("0.01", trained_weights),
    "optimizer.sgd_momentum": Row("0.5", trained_weights, MUON),
    "optimizer.newton_schulz_steps": Row("2", trained_weights, MUON),
    "optimizer.newton_schulz_coefficients": Row("[3.0, -3.2, 1.2]", trained_weights, MUON),
    "optimizer.renormalise_every": Row("2st", trained_weights, MUON),
    "optimizer.groups": Row("[{match: head.*, lr_ratio: 0.5}]", trained_weights),
    "optimizer.layer_decay": Row("0.5", trained_weights),
    "optimizer.accumulate": Row("2", trained_weights),
    "schedule.name": Row("cosine", schedule),
    "schedule.warmup": Row("10%", schedule),
    "schedule.start_fraction": Row("0.5", schedule),
    "schedule.final_fraction": Row("0.5", schedule, COSINE),
    "schedule.milestones": Row("[1ep, 2ep]", schedule, STEP),
    "schedule.gamma": Row("0.5", schedule, STEP),
    "lookahead.every": Row("2st", trained_weights),
    "lookahead.decay": Row("0.5", trained_weights, ("lookahead.every=2st",)),
    "lookahead.power": Row("0.0", trained_weights, ("lookahead.every=2st",)),
    "ema.decay": Row("0.9", lambda config: tiny_trainer(config).state.ema is None),
    "ema.every": Row("2st", lambda config: plan_of(config).ema_every, ("ema.decay=0.9",)),
    "evaluation.flip_tta": Row("true", names_of_figures, ("duration=1st",)),
    "evaluation.views": Row("mirror_shift", names_of_figures, ("duration=1st",)),
    "evaluation.views_share": Row("0.5", names_of_figures, ("duration=1st", "evaluation.views=mirror_shift")),
    "precision.mode": Row("bf16", trained_weights),
    "precision.init_scale": Row("128.0", loss_scale, FP16),
    "precision.growth_interval": Row("2", loss_scale, FP16),
    "precision.max_consecutive_skips": Row("2", end_of_run, (*FP16, "precision.init_scale=1.0e+12")),
    "compile.mode": Row("default", compiler_arguments),
    "compile.drop_ended": Row(
        "true",
        lambda config: [phase.first_step for phase in tiny_trainer(config).step.phases],
        ("optimizer.groups=[{match: head.bias, until: 2st}]",),
    ),
    "compile.backend": Row("aot_eager", compiler_arguments, COMPILED),
    "compile.scope": Row("blocks", compiled_modules, COMPILED),
    "runtime.device": Row("gpu", device_found),
    "runtime.channels_last": Row("false", memory_layout),
    "runtime.deterministic": Row("true", backends),
    "runtime.tf32": Row("false", backends),
    "runtime.cudnn_benchmark": Row("false", backends),
    "runtime.hang_timeout_s": Row("60.0", hang_timeout),
    "log.dir": Row("{tmp}/elsewhere", run_folder),
    "log.name": Row("other", run_folder),
    "log.log_every": Row("7st", lambda config: plan_of(config).log_every),
    "log.eval_every": Row("10%", lambda config: plan_of(config).eval_every),
    "log.checkpoint_every": Row("2ep", lambda config: plan_of(config).checkpoint_every),
    "log.tensorboard": Row("false", event_files),
    "log.trackers": Row("[]", event_files),
    "log.project": Row("other", project_in_trackio, ("log.trackers=[trackio]",)),
    "log.explain": Row("true", left_at_the_end, ("duration=1st",)),
    "log.report": Row("true", left_at_the_end, ("duration=1st",)),
}


def test_every_key_has_a_row_and_every_row_a_key():
    assert sorted(KEYS) == sorted(key for key, _ in leaf_fields())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make two folders of one image a class, one of larger images with lists, one bad; and weights."""
    root = tmp_path_factory.mktemp("folders")
    generator = np.random.default_rng(0)
    for path in (
        root / name / split / label / "0.png"
        for name in ("one", "two")
        for split in ("train", "test")
        for label in "ab"
    ):
        path.parent.mkdir(parents=True)
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    for name in ("streamed", "bad"):
        make_folder(root / name, train=8, test=2)
    (root / "bad/train/a/bad.jpg").write_bytes(b"")
    for name, number in (("train", 0), ("test", 1)):
        (root / f"{name}.txt").write_text(f"train/a/{number}.jpg a\ntrain/b/{number}.jpg b\n")
    (root / "names.txt").write_text("a first\nb second\n")
    for part, seed in (("train", 0), ("val", 5)):
        members = [
            (f"{number}.{key}", content)
            for number in range(4)
            for key, content in (
                ("jpg", encoded(picture(40, 50, seed + number))),
                ("thumb.jpg", encoded(picture(20, 25, seed + number))),
                ("cls", str(number % 2).encode()),
                ("json", b'{"other": %d}' % (number // 2)),
            )
        ]
        write_tar(root / "shards" / f"{part}-0.tar", members)
    torch.manual_seed(1)  # not the one of the recipe
    torch.save(build_model(tiny_config().model, 4).state_dict(), root / "weights.pth")
    return root


@pytest.mark.usefixtures("process_state")
@pytest.mark.parametrize("key", KEYS)
def test_every_key_changes_what_is_built(key: str, folders: Path, tmp_path: Path):
    row = KEYS[key]
    given = [f"log.dir={tmp_path}", *(item.replace("{tmp}", str(folders)) for item in row.given)]
    changed = f"{key}={row.value.replace('{tmp}', str(folders))}"
    before = tiny_config(*given)
    after = tiny_config(*(item for item in given if not item.startswith(f"{key}=")), changed)
    assert before != after
    assert row.probe(before) != row.probe(after)
