"""Compares imagenet_resnet50_v2.yaml, part by part, with torchvision's recipe of its best ResNet-50.

The parts themselves have tests of their own: what they compute is compared with torchvision there.
"""

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torchvision.transforms import v2

from pipeline.config import Config, FolderData, MixupOrCutmixAugment, SgdConfig, load_config
from pipeline.data.sampling.batch_plan import Shard, TrainSampler
from pipeline.data.sampling.resized_crops import CentreView
from pipeline.models import build_model
from pipeline.models.pretrained import from_torchvision
from pipeline.optim.parts import partition
from pipeline.training.plan import Plan
from tests.python import ROOT

RECIPE = ROOT / "configs/imagenet_resnet50_v2.yaml"
# the arguments of `references/classification/train.py` in torchvision's blog post, for 8 GPUs
THEIRS = {
    "batch_size": 128,
    "lr": 0.5,
    "lr_warmup_epochs": 5,
    "lr_warmup_decay": 0.01,
    "epochs": 600,
    "random_erase": 0.1,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.2,
    "cutmix_alpha": 1.0,
    "weight_decay": 2e-5,
    "norm_weight_decay": 0.0,
    "train_crop_size": 176,
    "model_ema_steps": 32,
    "val_resize_size": 232,
    "val_crop_size": 224,
    "ra_reps": 4,
    "model_ema_decay": 0.99998,
    "momentum": 0.9,
    "num_gpus": 8,
}
STEPS = 1251  # of an epoch, 1,281,167 images at batch 1024


@pytest.fixture(scope="module")
def config() -> Config:
    return load_config(RECIPE)


def test_numbers_that_are_copied(config: Config):
    augment, data, optimizer = config.augment, config.data, config.optimizer
    assert isinstance(augment, MixupOrCutmixAugment) and isinstance(data, FolderData)
    assert isinstance(optimizer, SgdConfig) and not optimizer.nesterov
    ours = {
        "batch_size": data.batch_size // THEIRS["num_gpus"],
        "lr": optimizer.lr,
        "random_erase": augment.erasing,
        "label_smoothing": config.loss.label_smoothing,
        "mixup_alpha": augment.mix_alpha,
        "cutmix_alpha": augment.cutmix_alpha,
        "weight_decay": optimizer.weight_decay,
        "train_crop_size": data.image_size,
        "val_crop_size": data.eval_image_size,
        "val_resize_size": CentreView(224, data.eval_crop).resized,
        "ra_reps": augment.repeats,
        "momentum": optimizer.momentum,
    }
    assert ours == {key: THEIRS[key] for key in ours}
    assert augment.trivial_augment and augment.flip is True and augment.cutmix_share == 0.5
    crop = v2.RandomResizedCrop(176)
    assert (augment.crop_scale, pytest.approx(augment.crop_ratio)) == (crop.scale, crop.ratio)
    assert augment.mix_probability == 1 and not augment.cutout and not augment.progressive
    assert config.loss.name == "cross_entropy" and optimizer.clip_norm is None


def test_the_learning_rate_is_theirs_at_the_start_of_each_epoch(config: Config):
    plan = Plan.of(config, STEPS)
    epochs, warmup = THEIRS["epochs"], THEIRS["lr_warmup_epochs"]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=THEIRS["lr"])
    rising = LinearLR(optimizer, THEIRS["lr_warmup_decay"], total_iters=warmup)
    falling = CosineAnnealingLR(optimizer, T_max=epochs - warmup, eta_min=0.0)
    schedule = SequentialLR(optimizer, [rising, falling], milestones=[warmup])
    for epoch in range(epochs):
        expected = optimizer.param_groups[0]["lr"]
        assert plan.lr_at(epoch * STEPS) == pytest.approx(expected, rel=1e-6, abs=1e-12), epoch
        optimizer.step()
        schedule.step()
    assert plan.total_steps == epochs * STEPS


def test_weight_decay_is_theirs_for_every_parameter(config: Config):
    """`set_weight_decay` in torchvision: norms have their own, everything else the other one."""
    with torch.device("meta"):
        ours = build_model(config.model, 1000, image_size=176)
        theirs = torchvision.models.resnet50(weights=None)
    norms = {
        f"{name}.{key}"
        for name, module in theirs.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key, _ in module.named_parameters()
    }
    names = {id(parameter): name for name, parameter in ours.named_parameters()}
    found = {
        names[id(p)]: part.weight_decay for part in partition(config.optimizer, ours) for p in part.parameters
    }
    assert all(part.lr_ratio == 1 for part in partition(config.optimizer, ours))
    expected = {
        from_torchvision(key): THEIRS["norm_weight_decay" if key in norms else "weight_decay"]
        for key, _ in theirs.named_parameters()
    }
    assert found == expected


def test_weights_start_as_theirs(config: Config):
    torch.manual_seed(0)
    ours, theirs = build_model(config.model, 1000, image_size=176), torchvision.models.resnet50(weights=None)
    values = ours.state_dict()
    for key, value in theirs.state_dict().items():
        own = values[from_torchvision(key)]
        assert own.shape == value.shape
        if value.is_floating_point() and value.numel() > 10_000:
            assert own.std().item() == pytest.approx(value.std().item(), rel=0.05), key
        elif value.is_floating_point() and "fc" not in key and value.ndim == 1:
            assert torch.equal(own, value), key  # no scale starts at 0


def test_the_average_has_their_share_and_interval(config: Config):
    batch = THEIRS["batch_size"] * THEIRS["num_gpus"]
    adjust = batch * THEIRS["model_ema_steps"] / THEIRS["epochs"]
    share = min(1.0, (1 - THEIRS["model_ema_decay"]) * adjust)
    assert config.ema.decay == pytest.approx(1 - share, abs=1e-6)
    assert Plan.of(config, STEPS).ema_every == THEIRS["model_ema_steps"]


def test_an_epoch_shows_as_many_images_as_theirs(config: Config):
    """torchvision's `RASampler`: a quarter of the images, four times each, on different GPUs."""
    num_images, gpus = 20_000, THEIRS["num_gpus"]
    samplers = [
        TrainSampler(num_images, 1024, Shard(r, gpus), 0, (8, 8), config.augment) for r in range(gpus)
    ]
    steps = samplers[0].steps_per_epoch
    by_gpu = [np.concatenate([s.plan(0, step).indices for step in range(steps)]) for s in samplers]
    shown = np.concatenate(by_gpu)
    assert len(shown) == num_images // 1024 * 1024
    assert (np.unique(shown, return_counts=True)[1] == THEIRS["ra_reps"]).all()
    for of_step in by_gpu[0].reshape(steps, -1):
        assert len(set(of_step)) == len(of_step)
