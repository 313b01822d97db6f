"""The YAML files as typed, validated objects."""

from svitlo.config.data import (
    DATA_FILE,
    UNPINNED,
    ConversationData,
    DataConfig,
    PhaseData,
    Source,
    TextData,
    load_data_config,
)
from svitlo.config.training import (
    CheckpointConfig,
    EvaluationConfig,
    HeadConfig,
    InstructionTuningConfig,
    ModelConfig,
    NumericsConfig,
    PhaseConfig,
    PretrainingConfig,
    ReportingConfig,
    TrainingConfig,
    load_phase_config,
)

__all__ = [
    "DATA_FILE",
    "UNPINNED",
    "CheckpointConfig",
    "ConversationData",
    "DataConfig",
    "EvaluationConfig",
    "HeadConfig",
    "InstructionTuningConfig",
    "ModelConfig",
    "NumericsConfig",
    "PhaseConfig",
    "PhaseData",
    "PretrainingConfig",
    "ReportingConfig",
    "Source",
    "TextData",
    "TrainingConfig",
    "load_data_config",
    "load_phase_config",
]
