"""What a run writes for its report: the predictions of each evaluation."""

from fastdeit.display.terminal import note_failure
from fastdeit.report.predictions import Predictions, write_predictions
from fastdeit.run.state import Run
from fastdeit.training.evaluation import ClassRecorder


def save_predictions(run: Run, recorder: ClassRecorder) -> None:
    """Write the predictions of an evaluation, on rank 0; a disk that refuses is a note. A
    collective."""
    columns = recorder.gather()
    if not columns:
        return
    index = run.data.val_index
    predictions = Predictions(
        step=run.trainer.step,
        images=index.fingerprint(),
        classes=index.classes,
        rows=columns.pop("row"),
        labels=columns.pop("label"),
        answers=columns,
    )
    with note_failure(str(run.folder.predictions), run.console.note):
        write_predictions(run.folder.predictions, predictions)
