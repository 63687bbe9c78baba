"""Reads recipes: YAML and command-line overrides in, one frozen `Config` out. Imports no torch."""

from pipeline.config.augment import (
    MIX_SOURCES,
    AnyMixAugment,
    AugmentConfig,
    MixAugment,
    MixupOrCutmixAugment,
    PlainAugment,
)
from pipeline.config.batches import (
    check_batches,
    check_capture,
    check_class_weights,
    check_compiles,
    micro_batch_size,
    share,
)
from pipeline.config.data import (
    CifarData,
    DataConfig,
    DigitsData,
    FileData,
    FolderData,
    ShardData,
    SyntheticData,
)
from pipeline.config.durations import to_bytes, to_steps
from pipeline.config.evaluation import FLIP, VIEWS_NAME, EvaluationConfig, Views, label_of
from pipeline.config.keys import leaf_fields
from pipeline.config.kinds import without_other_kinds
from pipeline.config.load import (
    all_values,
    computed_values,
    config_hash,
    default_values,
    dump_config,
    flatten,
    hash_of_run,
    load_config,
    load_values,
)
from pipeline.config.model import ModelConfig
from pipeline.config.optimizer import AdamwConfig, MuonConfig, OptimizerConfig, ParameterGroup, SgdConfig
from pipeline.config.paths import is_utf8, name_of, path_of
from pipeline.config.precision import SLOW_ON_CPU, PrecisionConfig, ScaledPrecision, UnscaledPrecision
from pipeline.config.reference import reference_table
from pipeline.config.rules import changed_keys, exists, keys_without_effect
from pipeline.config.schedule import ScheduleConfig, SmoothSchedule, StepSchedule
from pipeline.config.schema import (
    CompileConfig,
    Config,
    EmaConfig,
    LogConfig,
    LookaheadConfig,
    LossConfig,
    RuntimeConfig,
)

__all__ = [
    "FLIP",
    "MIX_SOURCES",
    "SLOW_ON_CPU",
    "VIEWS_NAME",
    "AdamwConfig",
    "AnyMixAugment",
    "AugmentConfig",
    "CifarData",
    "CompileConfig",
    "Config",
    "DataConfig",
    "DigitsData",
    "EmaConfig",
    "EvaluationConfig",
    "FileData",
    "FolderData",
    "LogConfig",
    "LookaheadConfig",
    "LossConfig",
    "MixAugment",
    "MixupOrCutmixAugment",
    "ModelConfig",
    "MuonConfig",
    "OptimizerConfig",
    "ParameterGroup",
    "PlainAugment",
    "PrecisionConfig",
    "RuntimeConfig",
    "ScaledPrecision",
    "ScheduleConfig",
    "SgdConfig",
    "ShardData",
    "SmoothSchedule",
    "StepSchedule",
    "SyntheticData",
    "UnscaledPrecision",
    "Views",
    "all_values",
    "changed_keys",
    "check_batches",
    "check_capture",
    "check_class_weights",
    "check_compiles",
    "computed_values",
    "config_hash",
    "default_values",
    "dump_config",
    "exists",
    "flatten",
    "hash_of_run",
    "is_utf8",
    "keys_without_effect",
    "label_of",
    "leaf_fields",
    "load_config",
    "load_values",
    "micro_batch_size",
    "name_of",
    "path_of",
    "reference_table",
    "share",
    "to_bytes",
    "to_steps",
    "without_other_kinds",
]
