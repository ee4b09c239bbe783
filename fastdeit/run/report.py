"""The predictions of each evaluation of a run, and its report.

The report is written by a child process while the run trains, so that no step waits for it, and by
this process at the end of the run, whatever ends it. No fault of a report can end the run.
"""

import contextlib
import resource
import tempfile
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastdeit.display.terminal import note_failure
from fastdeit.display.text import printable
from fastdeit.distributed.errors import RunError
from fastdeit.distributed.exits import wait_for_rank0
from fastdeit.mirror.mirror import RunMirror
from fastdeit.report.build import name_missing, write_report
from fastdeit.report.child import start_child
from fastdeit.report.predictions import RecordedPredictions, write_predictions
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.evaluation import ClassRecorder

if TYPE_CHECKING:
    from fastdeit.run.state import Run

FIRST_S = 60.0
"""Seconds that a run trains before its first report."""
SHARE = 20
"""The shortest time from the start of a report to that of the next one, in multiples of the first
one's CPU time."""
LIMIT_S = 60.0
"""Seconds that the end of a run waits for its report."""


def save_predictions(run: "Run", recorder: ClassRecorder) -> None:
    """Write the predictions of an evaluation, on rank 0; a disk that refuses is a note. A
    collective."""
    columns = recorder.gather()
    if not columns:
        return
    index = run.data.val_index
    predictions = RecordedPredictions(
        step=run.trainer.step,
        images=index.fingerprint(),
        classes=index.classes,
        rows=columns.pop("row"),
        labels=columns.pop("label"),
        answers=columns,
    )
    with note_failure(str(run.folder.predictions), run.console.note):
        write_predictions(run.folder.predictions, predictions)


def report_failure(run: "Run", error: RunError, mirror: RunMirror) -> None:
    """Write the report of a run that has failed, and upload what it has. The other ranks that have
    the error wait for it: a launcher ends all ranks when one has ended."""
    run.report.finish()
    mirror.finish(LIMIT_S)
    mirror.close()
    if error.heard_by_all:
        wait_for_rank0(2 * LIMIT_S)


class ReportWriter:
    """The report of a run, in its folder. enabled: False on all ranks but 0, which then do nothing;
    note: called with a line for the user. Attributes: missing, a line on the packages that a report
    needs and that are not installed, without which none is written; "" if there are none."""

    def __init__(self, folder: RunFolder, enabled: bool, note: Callable[[str], None]) -> None:
        self.missing = name_missing() if enabled else ""
        self._enabled = enabled and not self.missing
        self._folder = folder
        self._note = note
        self._began = time.monotonic()
        self._child: _Child | None = None
        self._noted = ""

    def start(self) -> None:
        """Start to write the report in a child process, unless the one before still runs, or took
        more than its share of the time."""
        if self._enabled and self._is_due():
            self.close()
            with note_failure(str(self._folder.report), self._note):
                self._child = _Child(self._folder)

    def _is_due(self) -> bool:
        now = time.monotonic()
        if self._child is None:
            return now - self._began >= FIRST_S
        if self._child.is_running():
            return False
        return now - self._child.started >= SHARE * self._child.cpu_s

    def finish(self) -> None:
        """Write the report of a run that ends here, in this process; a note if that fails, or takes
        longer than `LIMIT_S`."""
        self.close()
        # a run that stops before its first step has written nothing
        if not (self._enabled and self._folder.config.is_file()):
            return
        self._remove_unfinished()
        folder = self._folder
        with note_failure(str(folder.report), self._note):
            _call_within(LIMIT_S, lambda: write_report([folder.path], folder.report))

    def close(self) -> None:
        """End the child process, if there is one; a note if it has failed."""
        if self._child is None:
            return
        fault = self._child.end()
        self._child = None
        self._remove_unfinished()
        if fault and fault != self._noted:
            self._note(f"{self._folder.report} could not be made: {fault}")
            self._noted = fault

    def _remove_unfinished(self) -> None:
        """Remove the files of an `atomic_open` whose process was killed, in this start of the run
        or one before."""
        with contextlib.suppress(OSError):
            for work in self._folder.path.glob(f".{self._folder.report.name}.*.tmp"):
                work.unlink()


class _Child:
    """A process that writes a report. Attributes: started, by `time.monotonic`; cpu_s, its CPU time
    once it has ended. Raises OSError."""

    def __init__(self, folder: RunFolder) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = start_child(folder, self._output)
        self.started = time.monotonic()
        self.cpu_s = 0.0

    def is_running(self) -> bool:
        before = _read_children_cpu()
        is_running = self._process.poll() is None
        self.cpu_s += _read_children_cpu() - before
        return is_running

    def end(self) -> str:
        """End the process; return how it failed, "" if it did not, or was still running."""
        was_running = self.is_running()
        if was_running:
            self._process.kill()
            self._process.wait()
        code = self._process.returncode
        fault = "" if was_running or not code else self._read_fault(code)
        self._output.close()
        return fault

    def _read_fault(self, code: int) -> str:
        """Return the last line that it printed, or its exit code."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1]) if lines else f"its process ended with {code}"


def _read_children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _call_within(limit_s: float, call: Callable[[], None]) -> None:
    """Call a function in a thread; raise what it raises, or TimeoutError if it takes longer."""
    errors: list[Exception] = []

    def work() -> None:
        try:
            call()
        # raised below, outside of the thread
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="report", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"it takes more than {limit_s:g} s")
    if errors:
        raise errors[0]
