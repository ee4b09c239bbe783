"""Training, evaluation and the library on a data set at a URL."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

import fastdeit
from fastdeit.commands.data.index import index_command
from fastdeit.commands.runs.train import train_command
from fastdeit.config.parse import SettingError
from fastdeit.config.schema import Config
from fastdeit.data.build import find_root
from fastdeit.data.remote.addresses import find_place
from fastdeit.data.remote.source import FetchError, Unreachable
from fastdeit.data.remote.stage import fetch_folder
from fastdeit.reliability.supervisor import Supervisor
from tests.support.cache_runs import MODEL, RUN
from tests.support.far_server import FarServer, status
from tests.support.fetching import read_folder, write_files
from tests.support.images import write_shapes

URL = "memory://shapes"
FLAGS = [*RUN, *MODEL, "--distillation-type", "none", "--epochs", "1"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FASTDEIT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shapes(tmp_path: Path) -> Iterator[Path]:
    """The folder of a data set, which is at URL, too."""
    folder = write_shapes(tmp_path / "shapes", train=16)
    memory = fsspec.filesystem("memory")
    memory.put(f"{folder}/", "/shapes/", recursive=True)
    yield folder
    memory.rm("/shapes", recursive=True)


def read_samples(run: Path) -> Any:
    return json.loads((run / "inputs.json").read_text())["samples"]


def test_a_run_on_a_url_equals_one_on_its_files(shapes: Path, tmp_path: Path) -> None:
    far, near = tmp_path / "far_run", tmp_path / "near_run"
    argv = ["--data-path", URL, *FLAGS, "--output-dir", str(far)]
    assert train_command([*argv, "--stop-after-steps", "1"]) == 0
    fsspec.filesystem("memory").mv("/shapes", "/gone", recursive=True)
    try:
        assert train_command(argv) == 0  # resumes without the source
    finally:
        fsspec.filesystem("memory").mv("/gone", "/shapes", recursive=True)
    assert train_command(["--data-path", str(shapes), *FLAGS, "--output-dir", str(near)]) == 0
    assert read_samples(far) == read_samples(near)
    assert f"data_path: {URL}\n" in (far / "config.yaml").read_text()
    weights = [(run / "model.safetensors").read_bytes() for run in (far, near)]
    assert weights[0] == weights[1]


def test_the_other_entries_fetch_a_url_too(
    shapes: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert index_command([URL]) == 0
    assert "57 files" in capsys.readouterr().out
    loader = fastdeit.create_loader(URL, batch_size=8, input_size=32, device="cpu")
    evaluation = fastdeit.create_eval_loader(URL, batch_size=8, device="cpu")
    assert (len(loader.dataset), len(evaluation.dataset)) == (48, 9)
    assert loader.dataset.root == find_place(URL, "") and loader.dataset.root.parent == cache
    loader.close()
    evaluation.close()


def test_a_stop_during_the_fetch_ends_with_exit_code_0(
    shapes: Path, tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr("fastdeit.data.remote.fetch._POLL_S", 0.0)
    proceed = Supervisor.proceed

    def stop(self: Supervisor) -> bool:
        self.requests.request("SIGTERM")
        return proceed(self)

    monkeypatch.setattr(Supervisor, "proceed", stop)
    run = tmp_path / "run"
    assert train_command(["--data-path", URL, *FLAGS, "--output-dir", str(run)]) == 0
    shown = capsys.readouterr().out
    assert "stopped before a step (SIGTERM); the same command continues" in shown
    assert not run.exists()


def test_without_a_network_a_complete_copy_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far").mkdir()
    contents = write_files(tmp_path / "far", a=100)
    with FarServer(tmp_path / "far").running() as far:
        url = f"{far.address}/a.tar"
        fetch_folder(url, (), alone=True)
    folder = fetch_folder(url, (), alone=True)
    assert "ConnectError" in capsys.readouterr().out
    assert read_folder(folder) == contents
    with pytest.raises(Unreachable, match="ConnectError"):
        fetch_folder(f"{far.address}/b.tar", (), alone=True)


def test_a_copy_that_is_not_complete_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    write_files(tmp_path / "far", a=100, b=100)
    with FarServer(tmp_path / "far").running() as far:
        far.fail_always("b.tar", status(503))
        url = f"{far.address}/{{a,b}}.tar"
        for uses_copy in (False, True):
            with pytest.raises(FetchError, match=r"b\.tar"):
                fetch_folder(url, (), uses_copy=uses_copy, alone=True)


def test_a_copy_that_has_lost_a_file_is_completed(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    contents = write_files(tmp_path / "far", a=100, b=100)
    with FarServer(tmp_path / "far").running() as far:
        url = f"{far.address}/{{a,b}}.tar"
        folder = fetch_folder(url, (), alone=True)
        (folder / "a.tar").unlink()  # as what cleans /tmp does
        far.asked.clear()
        fetch_folder(url, (), uses_copy=True, alone=True)
        assert read_folder(folder) == contents and far.asked
        far.asked.clear()
        fetch_folder(url, (), uses_copy=True, alone=True)
        assert not far.asked


def test_shards_of_a_web_server_are_named_by_the_splits(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    contents = write_files(tmp_path / "far", t0=10, t1=20, v0=30)
    with FarServer(tmp_path / "far").running() as far:
        folder = fetch_folder(far.address, ("t{0..1}.tar", "v{0..0}.tar"))
    assert read_folder(folder) == contents


def test_a_local_folder_is_itself(tmp_path: Path) -> None:
    assert fetch_folder(str(tmp_path), ()) == tmp_path
    assert fetch_folder("a/b://c", ()) == Path("a/b://c")


def test_the_digits_are_written_to_no_url() -> None:
    with pytest.raises(SettingError, match="--data-path must be a folder, in which"):
        Config().replace(data={"data_path": "s3://bucket/x", "data_set": "digits"})


@pytest.mark.parametrize("path", ["https://me:hunter2@host/x", "https://host/x?sig=hunter2"])
def test_no_setting_has_credentials(path: str) -> None:
    with pytest.raises(SettingError, match=r"--data-path must be without user, password") as caught:
        Config().replace(data={"data_path": path})
    assert "hunter2" not in str(caught.value)


def test_the_cache_is_where_a_flag_or_the_environment_says(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"data_path": "s3://bucket/some set/", "data_cache": str(tmp_path / "own")}
    own = find_root(Config().replace(data=names))
    assert own.parent == tmp_path / "own" and own.name.startswith("some-set-")
    assert find_place("s3://bucket/some set/", "").parent == cache
    monkeypatch.delenv("FASTDEIT_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert find_place("s3://bucket/x", "").parent == tmp_path / "home" / "fastdeit" / "data"
    places = {find_place(f"https://host/{name}", "") for name in ("x", "y/x", "x-{0..3}.tar", "")}
    assert len(places) == 4
