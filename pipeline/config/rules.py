"""Finds keys that change nothing while another key has a certain value: a run warns of them. No torch."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from pipeline.config.data import CifarData, FileData, FolderData
from pipeline.config.durations import to_steps
from pipeline.config.keys import all_keys, sections_of_kinds
from pipeline.config.model import (
    BOTTLENECK_NETWORKS,
    NETWORKS,
    PLAIN_NETWORKS,
    SINGLE_FORM_NETWORKS,
    SPEED_NETWORKS,
    library_of,
)
from pipeline.config.schema import Config


class NoEffect(NamedTuple):
    """Keys of one config that have no effect.

    Attributes:
        keys: dotted.
        reason: when they have none, and the remedy.
    """

    keys: list[str]
    reason: str


class _Rule(NamedTuple):
    """Keys, the condition for their effect, and the words for its absence, with a remedy."""

    keys: tuple[str, ...]
    have_effect: Callable[[Config], bool]
    reason: Callable[[Config], str]


# Keys of files that are streamed: how evaluation shows them, and how training draws them.
SHOWN_FROM_FILES = (
    *("data.eval_image_size", "data.eval_crop", "data.decoder", "data.gpu_share", "data.hw_decoder_load"),
    *("augment.crop_scale", "augment.crop_ratio"),
)
DRAWN_FROM_FILES = ("augment.progressive", "augment.color_jitter", "augment.randaugment")

# Keys of images that are kept in memory.
DRAWN_IN_MEMORY = ("augment.brightness", "augment.contrast", "augment.crop_border")

_BLOCK_KEYS = (
    *("model.stem", "model.shortcut", "model.width", "model.groups", "model.squeeze_excitation"),
    *("model.preactivation", "model.zero_init_residual", "model.stochastic_depth", "model.blur_pool"),
)
_KERNEL_KEYS = ("model.fused_norm", "model.fused_stem", "model.sync_batchnorm")

_RULES = (
    _Rule(
        ("augment.cutout_mode",),
        lambda c: c.augment.cutout > 0,
        lambda _: "while augment.cutout is 0; set augment.cutout",
    ),
    _Rule(
        ("augment.crop_border",),
        lambda c: c.augment.crop_padding > 0,
        lambda _: "while augment.crop_padding is 0; set augment.crop_padding",
    ),
    _Rule(
        ("augment.randaugment_magnitude",),
        lambda c: c.augment.randaugment > 0,
        lambda _: "while augment.randaugment is 0; set augment.randaugment",
    ),
    _Rule(
        ("schedule.start_fraction",),
        lambda c: to_steps(c.schedule.warmup, steps_per_epoch=1, total_steps=1) > 0,
        lambda c: f"while schedule.warmup is {c.schedule.warmup}; set schedule.warmup",
    ),
    _Rule(
        ("ema.every",),
        lambda c: c.ema.decay is not None,
        lambda _: "while ema.decay is null; set ema.decay",
    ),
    _Rule(
        ("lookahead.decay", "lookahead.power"),
        lambda c: c.lookahead.every is not None,
        lambda _: "while lookahead.every is null; set lookahead.every",
    ),
    _Rule(
        ("compile.drop_ended",),
        lambda c: any(group.until for group in c.optimizer.groups),
        lambda _: "while no entry of optimizer.groups has `until`; set it",
    ),
    _Rule(
        ("compile.drop_ended",),
        lambda c: c.optimizer.clip_norm is None,
        lambda _: "with optimizer.clip_norm, which needs the norm of all gradients; set that key to null",
    ),
    _Rule(
        ("evaluation.views_share",),
        lambda c: c.evaluation.views != "none",
        lambda _: "while evaluation.views is none; set evaluation.views",
    ),
    _Rule(
        ("log.project",),
        lambda c: bool({*c.log.trackers} - {"tensorboard"}),
        lambda _: "while log.trackers names none that has projects; set log.trackers=[tensorboard, wandb]",
    ),
    _Rule(
        ("data.root",),
        lambda c: isinstance(c.data, CifarData | FileData),
        lambda c: f"with data.dataset={c.data.dataset}, which needs no files; set data.dataset=folder",
    ),
    _Rule(
        ("data.cache_dir",),
        lambda c: isinstance(c.data, FileData),
        lambda c: f"with data.dataset={c.data.dataset}, which is not cached; set data.dataset=folder",
    ),
    _Rule(
        ("data.hw_decoder_load",),
        lambda c: not isinstance(c.data, FileData) or c.data.decoder != "cpu",
        lambda _: "while data.decoder is cpu; set data.decoder=gpu",
    ),
    _Rule(
        ("data.gpu_share",),
        lambda c: not isinstance(c.data, FileData) or c.data.decoder in ("auto", "both"),
        lambda c: f"while data.decoder is {c.data.decoder}; set data.decoder=both",
    ),
    _Rule(
        ("data.train_folder", "data.test_folder", "data.classes"),
        lambda c: not isinstance(c.data, FolderData) or c.data.train_list is None,
        lambda _: "while data.train_list and data.test_list name the files; remove both",
    ),
    _Rule(
        ("augment.crop_scale", "augment.crop_ratio", *DRAWN_FROM_FILES),
        lambda c: isinstance(c.data, FileData),
        lambda c: (
            f"with data.dataset={c.data.dataset}, whose images are not streamed; set data.dataset=folder"
        ),
    ),
    _Rule(
        (*_BLOCK_KEYS, *_KERNEL_KEYS),
        lambda c: library_of(c.model.name) is None,
        lambda c: f"on {c.model.name}, which {library_of(c.model.name)} builds; set model.name=resnet18",
    ),
    _Rule(
        ("model.reset_head",),
        lambda c: c.model.weights is not None,
        lambda _: "while model.weights is null; set model.weights",
    ),
    _Rule(
        _BLOCK_KEYS,
        lambda c: c.model.name not in SINGLE_FORM_NETWORKS,
        lambda c: f"on {c.model.name}, which has one form only; set model.name=resnet18",
    ),
    _Rule(
        ("model.activation",),
        lambda c: c.model.name in SPEED_NETWORKS,
        lambda c: f"on {c.model.name}, whose activation is ReLU; set model.name={SPEED_NETWORKS[0]}",
    ),
    _Rule(
        ("model.shortcut", "model.preactivation", "model.zero_init_residual", "model.stochastic_depth"),
        lambda c: c.model.name not in PLAIN_NETWORKS,
        lambda c: f"on {c.model.name}, which has no shortcuts; set model.name=resnet{c.model.name[5:]}",
    ),
    _Rule(
        ("model.groups",),
        lambda c: c.model.name in BOTTLENECK_NETWORKS or c.model.name not in NETWORKS,
        lambda c: (
            f"on {c.model.name}, which has no bottlenecks; set model.name={', '.join(BOTTLENECK_NETWORKS)}"
        ),
    ),
    _Rule(
        ("model.fused_stem",),
        lambda c: c.model.stem_for(c.image_size) == "cifar" or not c.model.has_preactivation,
        lambda c: (
            f"on {c.model.name}, which starts with a 7x7 convolution and has no norm after it here; set "
            "model.stem=cifar"
        ),
    ),
    _Rule(
        ("model.fused_stem",),
        lambda c: c.model.stem_for(c.image_size) == "cifar" or c.model.fused_norm,
        lambda c: (
            f"on {c.model.name}, which starts with a 7x7 convolution here, without model.fused_norm; set "
            "model.fused_norm=true, or model.stem=cifar"
        ),
    ),
)


def find_no_effect(config: Config) -> Iterator[NoEffect]:
    """Yield the keys that have another value than their default and no effect, each key once."""
    seen: set[str] = set()
    for keys, have_effect, reason in _RULES:
        if have_effect(config):
            continue
        changed = [key for key in changed_keys(config, keys) if key not in seen]
        seen.update(changed)
        if changed:
            yield NoEffect(changed, reason(config))


def keys_without_effect(config: Config) -> set[str]:
    """Return the dotted keys, those of other kinds too, that do not change what this config computes."""
    foreign = {key for key in all_keys() if not exists(config, key)}
    return foreign | {key for keys, have_effect, _ in _RULES if not have_effect(config) for key in keys}


def changed_keys(config: Config, keys: Iterable[str]) -> Iterator[str]:
    """Yield those of the dotted keys that have another value than their default."""
    for key in keys:
        section, _, name = key.partition(".")
        if exists(config, key) and getattr(getattr(config, section), name) != all_keys()[key].field.default:
            yield key


def exists(config: Config, key: str) -> bool:
    """Return True unless a dotted key is one of another kind than the config's."""
    section = key.partition(".")[0]
    mark = sections_of_kinds().get(section)
    return mark is None or all_keys()[key].exists_for(getattr(getattr(config, section), mark.key))
