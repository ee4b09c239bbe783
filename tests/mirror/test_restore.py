"""The working copy: whichever of it and the URL is ahead wins, and they never mix."""

import shutil
from pathlib import Path

import pytest

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.data.remote.source import FetchError, FetchStopped, Transient
from fastdeit.mirror.contents import is_mirrored
from fastdeit.mirror.restore import restore
from fastdeit.mirror.store import RunStore
from fastdeit.mirror.upload import Uploader
from fastdeit.storage.run_folder import RunFolder
from tests.support.mirrored import save_step, start_attempt


class Place:
    """A URL and machines, each with a working copy of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bucket = path / "bucket" / "run"
        self.store = RunStore(f"file://{self.bucket}")
        self.said: list[str] = []

    def machine(self, name: str) -> RunFolder:
        return RunFolder(self.path / name)

    def upload(self, folder: RunFolder) -> None:
        Uploader(folder, self.store, self.store.list_files()).run()

    def restore(self, folder: RunFolder) -> list[str]:
        restore(folder, self.store, self.store.list_files(), self.said.append)
        return [path.name[-2:] for path in list_checkpoints(folder.checkpoints)]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path)
    first = place.machine("first")
    start_attempt(first, 1)
    save_step(first, 10)
    save_step(first, 20)
    place.upload(first)
    return place


def test_an_empty_machine_gets_everything(place: Place) -> None:
    other = place.machine("other")
    assert place.restore(other) == ["20", "10"]
    for name in ("config.yaml", "attempts.jsonl", "metrics.jsonl", "model.safetensors"):
        same = (other.path / name).read_bytes() == (place.path / "first" / name).read_bytes()
        assert same, name
    assert place.said[0].startswith("restoring file://")


def test_an_empty_url_leaves_the_copy_alone(place: Place) -> None:
    shutil.rmtree(place.bucket)
    assert place.restore(place.machine("first")) == ["20", "10"] and not place.said


def test_a_copy_with_newer_checkpoints_or_starts_is_kept(place: Place) -> None:
    first = place.machine("first")
    save_step(first, 30)
    assert place.restore(first) == ["30", "20"]
    start_attempt(first, 2)
    assert place.restore(first) == ["30", "20"] and not place.said


def test_a_run_that_was_resumed_elsewhere_replaces_the_copy(place: Place) -> None:
    first = place.machine("first")
    other = place.machine("other")
    place.restore(other)
    start_attempt(other, 2)
    save_step(other, 24)
    place.upload(other)
    for step in (15, 90):  # of the first start, never uploaded
        save_step(first, step, keep=9)
    first.failure(0).write_text("{}")
    assert place.restore(first) == ["24", "20"]
    assert first.attempts.read_text() == other.attempts.read_text()
    assert first.metrics.read_text() == other.metrics.read_text()
    assert not first.failure(0).exists()
    for step in (15, 90):  # no work is thrown away, and none is mixed with that of the other
        assert (first.checkpoints / f"step-{step:08d}.aside").is_dir()


def test_copies_that_have_gone_different_ways_are_refused(place: Place) -> None:
    first = place.machine("first")
    other = place.machine("other")
    place.restore(other)
    start_attempt(other, 2)
    place.upload(other)
    start_attempt(first, 3)
    with pytest.raises(ValueError, match=f"different ways; remove {first} to resume"):
        place.restore(first)


def test_damaged_and_incomplete_checkpoints_are_skipped_with_a_line(place: Place) -> None:
    damaged = place.bucket / "checkpoints" / "step-00000020" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    half = place.bucket / "checkpoints" / "step-00000030"
    shutil.copytree(damaged.parent, half)
    (half / "manifest.json").unlink()
    assert place.restore(place.machine("other")) == ["10"]
    skipped = [line for line in place.said if "checkpoint skipped" in line]
    assert len(skipped) == 1 and "bucket/run/checkpoints/step-00000020: damaged" in skipped[0]


def test_a_url_without_a_whole_checkpoint_is_refused(place: Place) -> None:
    for file in place.bucket.glob("checkpoints/*/state.json"):
        file.write_text("")
    with pytest.raises(ValueError, match="no whole checkpoint"):
        place.restore(place.machine("other"))


def test_a_lost_checkpoint_of_the_copy_is_restored(place: Place) -> None:
    first = place.machine("first")
    shutil.rmtree(first.checkpoints / "step-00000020")
    assert place.restore(first) == ["20", "10"]


def test_a_restore_that_is_ended_in_the_middle_is_done_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = place.machine("other")
    download = RunStore.download

    def interrupt(self: RunStore, name: str, file: Path) -> None:
        if name == "attempts.jsonl":
            raise KeyboardInterrupt
        download(self, name, file)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunStore, "download", interrupt)
        place.restore(other)
    assert other.metrics.is_file() and not other.attempts.exists(), "the starts come last"
    assert place.restore(other) == ["20", "10"] and other.attempts.is_file()


def test_names_of_the_store_that_are_not_of_a_run_are_left_alone(place: Place) -> None:
    up = "tensorboard/../events.out.tfevents.1"
    for name in ("../x", "notes.txt", "checkpoints/x/y", "tensorboard/a b", "lock", up):
        file = place.bucket / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("x")
    other = place.machine("other")
    place.restore(other)
    names = {file.name for file in other.path.rglob("*")}
    assert not names & {"x", "notes.txt", "y", "a b", "lock"}
    assert not is_mirrored(other, up)


def test_a_checkpoint_of_a_later_version_is_never_skipped(place: Place) -> None:
    manifest = place.bucket / "checkpoints" / "step-00000020" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(ValueError, match=r"file://.*written by a later version \(format 2\)"):
        place.restore(place.machine("other"))
    assert not place.machine("other").attempts.exists()


def test_a_checkpoint_that_the_store_refuses_is_not_taken_for_damaged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    download = place.store.download

    def refuse(name: str, file: Path) -> None:
        if "step-00000020" in name:
            raise FetchError(f"{name}: access is refused")
        download(name, file)

    monkeypatch.setattr(place.store, "download", refuse)
    with pytest.raises(FetchError, match="access is refused"):
        place.restore(place.machine("other"))
    assert not place.machine("other").attempts.exists()


def test_a_fault_that_passes_does_not_end_a_restore(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, faults = place.store.read, [Transient("503"), Transient("503")]

    def fail(name: str) -> bytes | None:
        if faults:
            raise faults.pop()
        return read(name)

    monkeypatch.setattr(place.store, "read", fail)
    other = place.machine("other")
    assert place.restore(other) == ["20", "10"] and other.attempts.is_file()


def test_a_restore_reports_each_file_and_stops_when_it_is_asked(place: Place) -> None:
    listed = place.store.list_files()
    asked: list[int] = []

    def proceed() -> bool:
        asked.append(1)
        return len(asked) < count

    place.store = RunStore(f"file://{place.bucket}", proceed)
    count = len(listed) - 1
    other = place.machine("other")
    with pytest.raises(FetchStopped):
        restore(other, place.store, listed, place.said.append)
    assert not other.attempts.exists()
    count = 1000
    assert place.restore(other) == ["20", "10"]
    assert other.attempts.is_file() and len(asked) > len(listed)


def test_every_file_of_a_run_is_mirrored_but_those_of_one_machine(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    files = {value for name in dir(RunFolder) if isinstance(value := getattr(folder, name), Path)}
    names = {file.relative_to(tmp_path).as_posix() for file in files}
    alone = {name for name in names if not is_mirrored(folder, name)}
    assert alone == {"checkpoints", "tensorboard", "lock", "stop"}
