"""Reads recipes: YAML and command-line overrides in, one frozen `Config` out. Imports no torch."""

from pipeline.config.batches import check_batches, share
from pipeline.config.data import MIX_SOURCES, AugmentConfig, DataConfig
from pipeline.config.durations import to_bytes, to_steps
from pipeline.config.load import computed_values, config_hash, dump_config, load_config, reference_table
from pipeline.config.messages import leaf_fields
from pipeline.config.schema import (
    CompileConfig,
    Config,
    EmaConfig,
    EvaluationConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    PrecisionConfig,
    RuntimeConfig,
    ScheduleConfig,
)

__all__ = [
    "MIX_SOURCES",
    "AugmentConfig",
    "CompileConfig",
    "Config",
    "DataConfig",
    "EmaConfig",
    "EvaluationConfig",
    "LogConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PrecisionConfig",
    "RuntimeConfig",
    "ScheduleConfig",
    "check_batches",
    "computed_values",
    "config_hash",
    "dump_config",
    "leaf_fields",
    "load_config",
    "reference_table",
    "share",
    "to_bytes",
    "to_steps",
]
