"""The configuration of a run: frozen dataclasses with every default.

The command line and the DeepSpeed settings are derived from them. Field names are timm's and deit's
flag names: `batch_size` is `--batch-size`. The docstring under a field is its help text, in one
line if possible, since tyro does not remove all line breaks. Only commands, the library, runs,
replays and the files called build.py read a `Config`; everything below takes the values it uses.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from fastdeit.config.parse import require
from fastdeit.config.schema.distill import DistillConfig
from fastdeit.config.schema.model import ModelConfig
from fastdeit.config.schema.optim import OptimConfig
from fastdeit.config.schema.run import CheckpointConfig, HealthConfig, LimitConfig, RunConfig
from fastdeit.config.schema.samples import SIMPLE_CROP_LEAST, AugmentConfig, DataConfig, MixConfig
from fastdeit.config.schema.tracking import TrackingConfig


@dataclass(frozen=True)
class Config:
    """The settings of a whole run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=RunConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    limits: LimitConfig = field(default_factory=LimitConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        for section in dataclasses.fields(self):
            getattr(self, section.name).check_finite()
            getattr(self, section.name).check()
        smoothed = self.distill.bce_loss and self.mix.smoothing > 0
        require(not smoothed, "smoothing", self.mix.smoothing, "0 with --bce-loss")
        rate = self.model.drop_path
        require(rate > 0 or not self.distill.cosub, "drop_path", rate, "above 0 with --cosub")
        starts = bool(self.model.finetune or self.checkpoint.resume)
        trainable = self.model.trainable
        require(starts or trainable == "all", "trainable", trainable, "all without --finetune")
        size = self.data.input_size
        padded = size >= SIMPLE_CROP_LEAST or not self.augment.src
        require(padded, "input_size", size, f"{SIMPLE_CROP_LEAST} or more with --src")

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Return the settings as plain nested dicts, as config.yaml has them."""
        return _plain(dataclasses.asdict(self))

    def replace(self, **sections: dict[str, Any]) -> "Config":
        """Return a copy with fields of sections changed: `config.replace(optim={"epochs": 3})`."""
        changed = {}
        for name, fields in sections.items():
            changed[name] = dataclasses.replace(getattr(self, name), **fields)
        return dataclasses.replace(self, **changed)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
