"""A run folder as a run leaves it, without a training: settings, images, weights, predictions."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fastdeit.config.schema import Config
from fastdeit.data.build import build_train_index
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.snapshot import keep_images
from fastdeit.report.predictions import RecordedPredictions, write_predictions
from fastdeit.storage.attempts import Attempt, add_attempt
from fastdeit.storage.jsonl import replace_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.trained import VIEW, write_student

STEP = 4
_ATTEMPT = Attempt(
    step=0,
    world_size=1,
    micro_batch=4,
    zero_stage=1,
    offload_optimizer=False,
    precision="fp32",
    augment_backend="exact",
    decoder="cpu",
)


def write_run(path: Path, root: Path, **changes: Any) -> RunFolder:
    """Write a run on a data set, with a small student; every second answer of its predictions is
    the class after the right one.

    changes: fields of `Config` by section.
    """
    folder = RunFolder(path)
    config = configure(path, root, **changes)
    train = build_train_index(config)
    write_student(path, train.classes)
    folder.config.write_text(yaml.safe_dump(config.to_dict()))
    keep_images(train, folder.train_images)
    add_attempt(folder, _ATTEMPT)
    replace_lines(folder.metrics, [{"step": STEP, "model/both/top1": 50.0}])
    index = build_index(root.absolute(), config.data.val_split, classes=train.classes)
    write_predictions(folder.predictions, predict(index))
    return folder


def configure(path: Path, root: Path, **changes: Any) -> Config:
    """Return the settings of the run."""
    sizes = {"data_path": str(root), "input_size": VIEW.size, "mean": VIEW.mean, "std": VIEW.std}
    config = Config().replace(data=sizes, run={"output_dir": str(path)}, optim={"batch_size": 4})
    return config.replace(**changes)


def predict(index: Index) -> RecordedPredictions:
    """Return predictions for all images of an index."""
    labels = index.labels.astype(np.int32)
    wrong = (labels + np.arange(len(labels)) % 2) % len(index.classes)
    return RecordedPredictions(
        step=STEP,
        images=index.fingerprint(),
        classes=index.classes,
        rows=np.arange(len(labels), dtype=np.int32),
        labels=labels,
        answers={"model/cls": labels, "model/both": wrong.astype(np.int32)},
    )
