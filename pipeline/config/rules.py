"""Keys that change nothing where another key has a certain value: refused, so that every key that is given has an effect. No torch."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.config.durations import to_steps

if TYPE_CHECKING:
    from pipeline.config.schema import Config


class _Rule(NamedTuple):
    """Keys; whether they have an effect; why not, in words that may name the config `c`."""

    keys: tuple[str, ...]
    matter: Callable[["Config"], bool]
    why: str


# Of folders whose images are streamed: how they are shown, and what is drawn besides.
SHOWN_FROM_FILES = (
    *("data.eval_image_size", "data.eval_crop", "data.decoder", "data.hw_decoder_load"),
    *("augment.crop_scale", "augment.crop_ratio"),
)
DRAWN_FROM_FILES = ("augment.progressive", "augment.color_jitter", "augment.randaugment")

_RULES = (
    _Rule(
        ("data.image_size",),
        lambda c: not c.data.dataset.startswith("cifar"),
        "the images of {c.data.dataset} are 32 pixels high and wide; set data.dataset=folder for others",
    ),
    _Rule(("augment.cutout_mode",), lambda c: c.augment.cutout > 0, "there is no box; set augment.cutout"),
    _Rule(
        ("augment.mix_alpha", "augment.mix_probability"),
        lambda c: c.augment.mix != "none",
        "nothing is mixed; set augment.mix",
    ),
    _Rule(
        ("augment.randaugment_magnitude",),
        lambda c: c.augment.randaugment > 0,
        "RandAugment has no operations; set augment.randaugment",
    ),
    _Rule(
        ("schedule.start_fraction",),
        lambda c: to_steps(c.schedule.warmup, steps_per_epoch=1, total_steps=1) > 0,
        "there is no warm-up; set schedule.warmup",
    ),
    _Rule(
        ("schedule.milestones", "schedule.gamma"),
        lambda c: c.schedule.name == "step",
        "only `schedule.name: step` has it, not {c.schedule.name}; set schedule.name=step",
    ),
    _Rule(
        ("schedule.final_fraction",),
        lambda c: c.schedule.name != "step",
        "`schedule.name: step` ends where its milestones lead; set schedule.gamma and schedule.milestones",
    ),
    _Rule(
        ("optimizer.betas",),
        lambda c: c.optimizer.name == "adamw",
        "only `optimizer.name: adamw` has it, not {c.optimizer.name}; set optimizer.name=adamw",
    ),
    _Rule(
        ("optimizer.sgd_lr_ratio", "optimizer.sgd_weight_decay"),
        lambda c: c.optimizer.name == "muon",
        "only `optimizer.name: muon` has it, not {c.optimizer.name}; set optimizer.name=muon",
    ),
    _Rule(
        ("optimizer.momentum", "optimizer.nesterov"),
        lambda c: c.optimizer.name != "adamw",
        "`optimizer.name: adamw` has optimizer.betas in its place; set optimizer.name=sgd",
    ),
    _Rule(
        ("precision.init_scale", "precision.growth_interval", "precision.max_consecutive_skips"),
        lambda c: c.precision.mode == "fp16",
        "only `precision.mode: fp16` scales the loss, not {c.precision.mode}; set precision.mode=fp16",
    ),
    _Rule(
        ("data.hw_decoder_load",),
        lambda c: c.data.decoder == "gpu",
        "is of data.decoder: gpu, not {c.data.decoder}; set data.decoder=gpu",
    ),
    # `synthetic` may stand in for the folder of a recipe whose files are not there, for a benchmark or a summary, and has its keys
    _Rule(
        (
            *(
                "data.train_list",
                "data.test_list",
                "data.class_names",
                "data.on_bad_image",
                "data.cache_below",
            ),
            *SHOWN_FROM_FILES,
            *DRAWN_FROM_FILES,
        ),
        lambda c: c.data.dataset in ("folder", "synthetic"),
        "is for folders of images, not for {c.data.dataset}; set data.dataset=folder",
    ),
)


def keys_without_effect(config: "Config") -> set[str]:
    """Dotted keys that may have any value without changing what this config computes."""
    return {key for keys, matter, _ in _RULES if not matter(config) for key in keys}


def check_effect(config: "Config") -> None:
    """Refuse values other than the default of keys that have no effect.

    Raises:
        ValueError: names the key and the remedy.
    """
    for keys, matter, why in _RULES:
        if matter(config):
            continue
        for key, default in changed_keys(config, keys):
            raise ValueError(
                f"{key}: {why.format(c=config)}, or remove the key ({key}={json.dumps(default)} over a recipe)"
            )


def changed_keys(config: "Config", keys: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """Those of the dotted keys that have another value than their default, each with it."""
    for key in keys:
        section, _, name = key.partition(".")
        part = getattr(config, section)
        default = type(part).model_fields[name].default
        if getattr(part, name) != default:
            yield key, default
