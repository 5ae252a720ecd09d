"""The options of a run: data, network, head, optimizer, length. Frozen, validated, saved as YAML.

Every field can be set in a preset and overridden on the command line: `--head.sample_rate 0.1`.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from facescale.config.data import AugmentConfig, DataConfig, EvaluationConfig
from facescale.config.intervals import Count, Positive, Section, Whole, require
from facescale.config.model import BackboneConfig, HeadConfig, MarginConfig
from facescale.config.training import (
    CheckpointConfig,
    OptimConfig,
    ScheduleConfig,
    StartConfig,
    TrainConfig,
)

__all__ = [
    "PRESETS",
    "AugmentConfig",
    "BackboneConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "HeadConfig",
    "MarginConfig",
    "OptimConfig",
    "ScheduleConfig",
    "Section",
    "StartConfig",
    "TrainConfig",
]

PRESETS = Path(__file__).parents[1] / "presets"


@dataclass(frozen=True, kw_only=True)
class Config(Section):
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    start: StartConfig = field(default_factory=StartConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is CUDA where there is one."""
    timeout_s: Positive = 600.0
    """Seconds that a rank waits for the others before the run fails."""
    seed: Whole = 0
    """Of all random numbers."""
    log_every: Count = 10
    """Steps between log lines."""
    trackers: list[str] = field(default_factory=lambda: ["console", "jsonl"])
    """Where metrics go: console, jsonl, tensorboard, wandb, or one that you registered."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.evaluation.patience is not None:
            require(
                self.evaluation.every is not None and self.checkpoint.best is not None,
                "evaluation.patience needs evaluation.every and checkpoint.best",
            )

    def to_yaml(self) -> str:
        """All fields as YAML; what `facescale train FILE` reads back."""
        return str(yaml.safe_dump(asdict(self), sort_keys=False))
