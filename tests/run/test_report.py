"""The report of a run: its child process, when it starts, and that nothing of it ends a run."""

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from fastdeit.commands.runs.train import train_command
from fastdeit.distributed import environment
from fastdeit.run import report
from fastdeit.run.report import ReportWriter
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, ROOT

PLACE = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.config.write_text("")
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `fastdeit.report.child` that does what a test writes into it, in the place of
    ours: it imports nothing, so it starts at once."""
    place = tmp_path / "place"
    (place / "fastdeit" / "report").mkdir(parents=True)
    for part in ("fastdeit", "fastdeit/report"):
        (place / part / "__init__.py").touch()
    monkeypatch.setattr(environment.fastdeit, "__file__", str(place / "fastdeit" / "__init__.py"))
    monkeypatch.chdir(tmp_path)
    return place / "fastdeit" / "report" / "child.py"


def write_child(file: Path, code: str) -> None:
    file.write_text(f"import os, sys, time\nfolder = sys.argv[1]\n{textwrap.dedent(code)}")


@contextlib.contextmanager
def writing(folder: RunFolder, notes: list[str], first_s: float = 0) -> Iterator[ReportWriter]:
    before = psutil.Process().children()
    writer = ReportWriter(folder, True, notes.append)
    writer._began -= report.FIRST_S - first_s
    try:
        yield writer
    finally:
        writer.close()
        assert not set(psutil.Process().children()) - set(before)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.02)


def wait_for_end(writer: ReportWriter) -> None:
    assert writer._child is not None
    while writer._child.is_running():
        time.sleep(0.02)


def test_the_child_sees_neither_a_gpu_nor_the_other_ranks(
    folder: RunFolder, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    write_child(
        package,
        """
        import json
        facts = {"session": os.getsid(0), "parent": sys.argv[2]} | dict(os.environ)
        open(folder + "/seen", "w").write(json.dumps(facts))
        """,
    )
    with writing(folder, []) as writer:
        writer.start()
        wait_for(folder.path / "seen")
        wait_for_end(writer)
    seen = json.loads((folder.path / "seen").read_text())
    assert not PLACE.keys() & seen.keys()
    assert seen["CUDA_VISIBLE_DEVICES"] == "" and seen["OMP_NUM_THREADS"] == "1"
    assert seen["session"] != os.getsid(0) and seen["parent"] == str(os.getpid())


def test_no_child_starts_in_the_first_minute_nor_while_one_runs(
    folder: RunFolder, package: Path
) -> None:
    write_child(package, "open(f'{folder}/{os.getpid()}', 'w'); time.sleep(99)")
    with writing(folder, [], first_s=5) as writer:
        writer.start()
        assert writer._child is None
        writer._began -= 5
        writer.start()
        first = writer._child
        writer.start()
        assert writer._child is first is not None


def test_the_next_child_waits_for_twenty_times_the_cpu_time_of_the_last(
    folder: RunFolder, package: Path
) -> None:
    write_child(package, "while time.process_time() < 0.2: pass")
    with writing(folder, []) as writer:
        writer.start()
        first = writer._child
        assert first is not None
        wait_for_end(writer)
        assert first.cpu_s >= 0.2
        writer.start()
        assert writer._child is first
        first.started -= report.SHARE * first.cpu_s
        writer.start()
        assert writer._child is not first


def test_a_child_that_hangs_is_killed_at_the_end_with_what_it_was_writing(
    folder: RunFolder, package: Path
) -> None:
    write_child(
        package, "open(folder + '/.report.html.1234abcd.tmp', 'w').write('x'); time.sleep(99)"
    )
    notes: list[str] = []
    with writing(folder, notes) as writer:
        writer.start()
        wait_for(folder.path / ".report.html.1234abcd.tmp")
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"] and notes == []


def test_a_child_that_fails_is_a_note(folder: RunFolder, package: Path) -> None:
    write_child(package, "sys.exit('No space left on \\x1b device')")
    notes: list[str] = []
    with writing(folder, notes) as writer:
        for _ in range(2):  # the same fault is noted once
            writer.start()
            wait_for_end(writer)
            writer.close()
    assert notes == [f"{folder.report} could not be made: No space left on \\x1b device"]


def test_a_child_that_cannot_start_is_a_note(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with writing(folder, notes) as writer:
        writer.start()
    assert "report.html could not be made: FileNotFoundError" in notes[0]


def test_the_child_ends_with_its_parent_and_writes_a_note_of_what_is_wrong(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "fastdeit.report.child", str(tmp_path)]
    orphan = subprocess.run([*command, "1"], cwd=ROOT, capture_output=True, text=True)
    assert (orphan.returncode, orphan.stderr) == (0, "")
    done = subprocess.run([*command, str(os.getpid())], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith(
        "RUN must be a run folder on this machine"
    )


def test_a_stopped_child_ends_with_its_parent_too() -> None:
    child = textwrap.dedent(
        """
        import os, signal, sys, types
        from fastdeit.report.child import main
        stop = lambda *_: os.kill(os.getpid(), signal.SIGSTOP)
        sys.modules["fastdeit.report.build"] = types.SimpleNamespace(write_report=stop)
        main("run", str(os.getppid()))
        """
    )
    parent = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    command = [sys.executable, "-c", parent, child]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        children: list[psutil.Process] = []
        while not (children and children[0].status() == psutil.STATUS_STOPPED):
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
            children = psutil.Process(process.pid).children()
        process.kill()
        try:
            process.communicate(timeout=10)  # until both have closed their output
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                children[0].kill()


@pytest.mark.parametrize("fault", [OSError("disk full"), RuntimeError("a bug"), MemoryError()])
def test_a_report_that_fails_at_the_end_is_a_note(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    def fail(*_: object) -> None:
        raise fault

    monkeypatch.setattr(report, "write_report", fail)
    notes: list[str] = []
    (folder.path / ".report.html.0123abcd.tmp").touch()  # of a start that was killed
    ReportWriter(folder, True, notes.append).finish()
    assert [path.name for path in folder.path.iterdir()] == ["config.yaml"]
    assert len(notes) == 1 and f"report.html could not be made: {type(fault).__name__}" in notes[0]


def test_a_report_that_hangs_at_the_end_is_given_up(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()
    monkeypatch.setattr(report, "write_report", lambda *_: hang.wait())
    monkeypatch.setattr(report, "LIMIT_S", 0.05)
    notes: list[str] = []
    ReportWriter(folder, True, notes.append).finish()
    hang.set()
    assert notes == [f"{folder.report} could not be made: TimeoutError: it takes more than 0.05 s"]


def test_no_report_without_plotly_and_on_other_ranks_and_before_the_first_step(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []
    monkeypatch.setattr(report, "write_report", lambda *paths: written.append(paths))
    work = folder.path / ".report.html.0123abcd.tmp"
    work.touch()  # what rank 0 is writing
    ReportWriter(folder, False, print).finish()
    assert work.is_file()
    ReportWriter(RunFolder(folder.path / "new"), True, print).finish()
    monkeypatch.setattr(report, "name_missing", lambda: "a report needs plotly")
    assert ReportWriter(folder, True, print).missing == "a report needs plotly"
    ReportWriter(folder, True, print).finish()
    assert written == []


def test_a_run_ends_well_while_the_process_of_its_report_hangs(
    tmp_path: Path, folder: RunFolder, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_child(
        package, "open(folder + '/started', 'a').write(f'{os.getpid()}\\n'); time.sleep(99)"
    )
    monkeypatch.setattr(report, "FIRST_S", 0)
    places: list[tuple[int, bool]] = []
    start = ReportWriter.start

    def watch(self: ReportWriter) -> None:
        lines = read_json_lines(folder.metrics)
        start(self)
        if not places:
            wait_for(folder.path / "started")
        places.append((lines[-1]["step"], folder.predictions.is_file()))

    monkeypatch.setattr(ReportWriter, "start", watch)
    folder.config.unlink()
    short = [
        "--epochs",
        "2",
        "--eval-epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--output-dir",
        str(folder),
    ]
    assert train_command(["--data-path", str(write_shapes(tmp_path / "data")), *FLAGS, *short]) == 0
    assert places == [(3, True), (6, True)]
    (number,) = (folder.path / "started").read_text().split()
    assert not psutil.pid_exists(int(number))
    assert folder.report.stat().st_size > 1_000_000 and folder.is_finished
