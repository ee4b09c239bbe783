"""The trackers of a run, built from its `Config`."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastdeit.config.changes import FORM, list_values
from fastdeit.config.parse import require
from fastdeit.config.schema import Config
from fastdeit.storage.run_folder import RunFolder
from fastdeit.tracking.callbacks import Callback, load_callback
from fastdeit.tracking.prometheus import PrometheusFile
from fastdeit.tracking.tensorboard import TensorBoard
from fastdeit.tracking.trackers import Trackers
from fastdeit.tracking.wandb_tracker import WandbTracker, check_wandb


def check_trackers(config: Config) -> None:
    """Raise ValueError for a tracker that cannot work with these settings."""
    if config.tracking.log_wandb:
        check_wandb()
    path = config.tracking.prometheus
    if path:
        allowed = "a file in an existing folder, with a name that ends in .prom"
        usable = Path(path).suffix == ".prom" and Path(path).parent.is_dir()
        require(usable and not Path(path).is_dir(), "prometheus", path, allowed)


def load_callbacks(config: Config) -> list[Callback]:
    """Return the callbacks that --callback names. Raises SettingError."""
    return [load_callback(name) for name in config.tracking.callback]


def build_trackers(
    config: Config, folder: RunFolder, callbacks: Sequence[Callback], note: Callable[[str], None]
) -> Trackers:
    """Return the trackers of a run, for rank 0: TensorBoard, those that the settings name, and the
    callbacks of the user. note: called with a line for the user."""
    settings = config.tracking
    trackers = Trackers()
    hparams = _list_hparams(config)
    trackers.add("TensorBoard", TensorBoard(folder.tensorboard, hparams, note), note)
    if settings.log_wandb:
        tracker = WandbTracker(
            folder.path, folder.wandb_run, settings.wandb_project, settings.wandb_tags
        )
        trackers.add("wandb", tracker, note)
    if settings.prometheus:
        file = PrometheusFile(Path(settings.prometheus), str(folder), note)
        trackers.add("Prometheus", file, note)
    for callback in callbacks:
        trackers.add(f"callback {type(callback).__qualname__}", callback, note)
    return trackers


def _list_hparams(config: Config) -> Mapping[str, object]:
    """Return the settings that decide samples and results, by name."""
    return {name: value for name, value in list_values(config).items() if name not in FORM}
