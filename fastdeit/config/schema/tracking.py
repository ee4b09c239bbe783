"""The settings of a run's trackers, beside metrics.jsonl and TensorBoard, which every run has."""

from dataclasses import dataclass

from fastdeit.config.parse import Section


@dataclass(frozen=True)
class TrackingConfig(Section):
    log_wandb: bool = False
    """Send the log to Weights & Biases, too; WANDB_MODE=offline writes it to the run folder."""
    wandb_project: str = ""
    """The project there; empty: wandb's default."""
    wandb_tags: tuple[str, ...] = ()
    """Tags of the run there."""
    prometheus: str = ""
    """A text file FILE.prom with the newest numbers, for node_exporter's textfile collector."""
    callback: tuple[str, ...] = ()
    """Callbacks, MODULE:CLASS each, which run code: classes that extend `fastdeit.Callback`
    (docs/tracking.md)."""

    def check(self) -> None:
        alone = self.log_wandb or not self.wandb_project
        self._require("wandb_project", alone, "given with --log-wandb")
        self._require("wandb_tags", self.log_wandb or not self.wandb_tags, "given with --log-wandb")
        for name in self.callback:
            module, _, attribute = name.partition(":")
            self._require("callback", bool(module and attribute), "MODULE:CLASS")
