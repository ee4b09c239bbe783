"""Files at the stores of fsspec: S3 (a local server), the Hub (another one), memory."""

import builtins
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from s3fs import S3FileSystem

from fastdeit.data.remote.fetch import open_source
from fastdeit.data.remote.source import FetchError, RemoteFile, Unreachable
from fastdeit.data.remote.sources.store import StoreSource
from tests.data.remote.conftest import BLOCK
from tests.support.fetching import fetch_quietly, make_bytes, read_folder
from tests.support.hub_server import HubServer, use_hub_server
from tests.support.s3_server import BUCKET, Fault, S3Server, refuse, use_s3

SIZE = 5 * BLOCK + 100


@pytest.fixture(scope="module")
def s3_server() -> Iterator[S3Server]:
    with S3Server().running() as server, pytest.MonkeyPatch.context() as patch:
        use_s3(patch, server)
        yield server


@pytest.fixture
def s3(s3_server: S3Server) -> S3Server:
    for found in s3_server.client.list_objects_v2(Bucket=BUCKET).get("Contents", ()):
        s3_server.client.delete_object(Bucket=BUCKET, Key=found["Key"])
    s3_server.faults.clear()
    return s3_server


def list_files(url: str) -> list[RemoteFile]:
    with open_source(url) as source:
        return source.list_files(())


def test_a_folder_of_s3_is_fetched_with_all_below_it(s3: S3Server, tmp_path: Path) -> None:
    contents = {"train/a.tar": make_bytes(SIZE), "val/b c+ü.tar": b"b", "empty": b""}
    for name, data in contents.items():
        s3.put(f"set/{name}", data)
    s3.put("set/folder/", b"")  # as S3's console marks a folder
    s3.put("set/.fastdeit/train.parquet", b"x")
    s3.put("settings", b"beside it")
    fetch_quietly("s3://images/set", tmp_path / "out")
    assert read_folder(tmp_path / "out") == contents
    assert not fetch_quietly("s3://images/set/", tmp_path / "out").missing


def test_patterns_of_s3_choose_files(s3: S3Server) -> None:
    for name in ("train/a-0.tar", "train/a-1.tar", "val/a-0.tar", "val/a.txt"):
        s3.put(f"set/{name}", b"1")

    def names(pattern: str) -> list[str]:
        return [file.name for file in list_files(f"s3://images/{pattern}")]

    assert names("set/train/a-{0..1}.tar") == ["a-0.tar", "a-1.tar"]
    assert names("set/{train,val}/*.tar") == ["train/a-0.tar", "train/a-1.tar", "val/a-0.tar"]
    assert names("set/*/a-0.tar") == ["train/a-0.tar", "val/a-0.tar"]
    assert names("set/val/a.txt") == ["a.txt"]
    with pytest.raises(FetchError, match=r"there is no train/a-2\.tar|there is no a-2\.tar"):
        names("set/train/a-{1..2}.tar")


S3_FAULTS = {
    "slow down": refuse("503 Slow Down", "SlowDown"),
    "an internal error": refuse("500 Internal Server Error", "InternalError"),
    "too many requests": refuse("429 Too Many Requests", "TooManyRequests"),
}


@pytest.mark.parametrize("name", S3_FAULTS)
def test_a_fault_of_s3_that_passes_changes_nothing(name: str, s3: S3Server, tmp_path: Path) -> None:
    s3.put("a.tar", make_bytes(SIZE))
    s3.faults["a.tar"] = [S3_FAULTS[name]] * 2
    fetch_quietly("s3://images/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": make_bytes(SIZE)}


def cut_body(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    """Promise more bytes than are sent."""
    start("206 Partial Content", [("Content-Length", "4096"), ("ETag", '"x"')])
    return [b"x" * 100]


def test_a_body_of_s3_that_is_cut_is_asked_for_again(s3: S3Server, tmp_path: Path) -> None:
    s3.put("a.tar", make_bytes(SIZE))
    s3.faults["a.tar"] = [cut_body]
    fetch_quietly("s3://images/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": make_bytes(SIZE)}


def overwrite(server: S3Server, data: bytes) -> Fault:
    """Put another object in place, and refuse If-Match as S3 does, which moto ignores."""

    def fault(request: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        server.put("a.tar", data)
        return precondition(request, start) or []

    text = "At least one of the pre-conditions you specified did not hold"
    precondition = refuse("412 Precondition Failed", "PreconditionFailed", text)

    return fault


@pytest.mark.parametrize("size", [10, SIZE])
def test_an_object_that_changes_in_between_is_fetched_anew(
    size: int, s3: S3Server, tmp_path: Path
) -> None:
    s3.put("a.tar", make_bytes(size))
    after = make_bytes(size + 3, seed=4)
    nothing: Fault = lambda *_: None  # noqa: E731
    s3.faults["a.tar"] = [*[nothing] * (2 if size == SIZE else 0), overwrite(s3, after)]
    fetch_quietly("s3://images", tmp_path / "out", workers=1)
    assert read_folder(tmp_path / "out") == {"a.tar": after}


def test_a_wrong_md5_is_found(s3: S3Server, tmp_path: Path, monkeypatch: Any) -> None:
    s3.put("a.tar", make_bytes(SIZE))
    monkeypatch.setattr("fastdeit.data.remote.transfer.hash_content", lambda *_: "md5:0")
    with pytest.raises(FetchError, match=r"a\.tar: must be md5:\w{32} \(got md5:0\)"):
        fetch_quietly("s3://images/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {}


def test_the_etag_of_an_object_under_a_key_is_no_md5(
    s3: S3Server, tmp_path: Path, monkeypatch: Any
) -> None:
    s3.put("a.tar", make_bytes(SIZE), ServerSideEncryption="aws:kms")
    monkeypatch.setattr("fastdeit.data.remote.transfer.hash_content", lambda *_: "md5:0")
    fetch_quietly("s3://images/a.tar", tmp_path / "out")
    assert read_folder(tmp_path / "out") == {"a.tar": make_bytes(SIZE)}


def test_a_packed_set_at_s3_has_its_checksums(s3: S3Server) -> None:
    files = [{"name": "a.tar", "bytes": 1, "sha256": "0" * 64}]
    s3.put("set/pack.json", json.dumps({"files": files}).encode())
    with pytest.raises(FetchError, match=r"pack\.json names 'a\.tar', which is missing"):
        list_files("s3://images/set")
    s3.put("set/a.tar", b"1")
    sums = {file.name: file.checksum for file in list_files("s3://images/set")}
    assert sums["a.tar"] == f"sha256:{'0' * 64}"


REFUSALS = {
    "no bucket": ("s3://nothing/x", "s3://nothing/x: does not exist there"),
    "no key": ("s3://images/nothing", "does not exist there"),
    "a refused object": ("s3://images/a.tar", r"access is refused \(.*AWS_ACCESS_KEY_ID"),
    "no protocol": ("what://x/y", "Protocol not known"),
    "a chain": ("simplecache::s3://images/a.tar", "URL must be"),
    "a chain behind a protocol": ("s3://images::a.tar", "must be one URL"),
    "a key that leads out": ("s3://images/out", "leads out of the folder"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_fetched_is_one_line(name: str, s3: S3Server, tmp_path: Path) -> None:
    s3.put("a.tar", b"1")
    s3.put("out/../b", b"1")
    s3.faults["a.tar"] = [refuse("403 Forbidden", "AccessDenied")]
    url, message = REFUSALS[name]
    with pytest.raises(FetchError, match=message) as caught:
        fetch_quietly(url, tmp_path / "out")
    assert "\n" not in str(caught.value) and not isinstance(caught.value, Unreachable)


def test_without_credentials_the_cure_is_named(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(FetchError, match=r"NoCredentialsError.*FSSPEC_S3_ANON=true"):
            fetch_quietly("s3://images/a.tar", tmp_path / "out")
    finally:
        S3FileSystem.clear_instance_cache()


def test_without_the_extra_its_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = builtins.__import__

    def refuse_import(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "gcsfs":
            raise ImportError(f"No module named {name!r}")
        return original(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse_import)
    with pytest.raises(FetchError, match=r"gs://b/x: needs pip install 'fastdeit\[remote\]'"):
        fetch_quietly("gs://b/x", tmp_path / "out")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    files = {"README.md": b"# set", "train-0.tar": make_bytes(SIZE)}
    with HubServer(files).running() as server:
        use_hub_server(monkeypatch, server)
        yield server


def test_a_data_set_of_the_hub_is_fetched(hub: HubServer, tmp_path: Path) -> None:
    fetch_quietly("hf://datasets/owner/set", tmp_path / "out")
    assert read_folder(tmp_path / "out") == hub.files
    listing = fetch_quietly("hf://datasets/owner/set@main/train-*.tar", tmp_path / "one")
    kinds = [file.checksum.partition(":")[0] for file in listing.files]
    assert [file.name for file in listing.files] == ["train-0.tar"] and kinds == ["sha256"]


@pytest.mark.parametrize("name", ["README.md", "train-0.tar"])
def test_a_file_of_the_hub_that_is_not_its_hash_is_an_error(
    name: str, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {each: hub.describe(each) for each in hub.files}
    monkeypatch.setattr(hub, "describe", entry.__getitem__)
    hub.files[name] = hub.files[name][::-1]
    with pytest.raises(FetchError, match=rf"{name}: must be (git|sha256):"):
        fetch_quietly("hf://datasets/owner/set", tmp_path / "out")
    assert name not in read_folder(tmp_path / "out")


def test_a_gated_data_set_names_the_token(hub: HubServer, tmp_path: Path) -> None:
    hub.status = 403
    with pytest.raises(FetchError, match=r"access is refused .*HF_TOKEN|or it is private"):
        fetch_quietly("hf://datasets/owner/set", tmp_path / "out")


def test_a_change_that_a_protocol_does_not_show_is_found_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/far/a.tar", make_bytes(SIZE))
    after = make_bytes(SIZE, seed=1)
    read = StoreSource.open
    opened: list[Any] = []

    def overwrite_once(self: StoreSource, *what: Any) -> Any:
        opened.append(what)
        if len(opened) == 3:
            memory.pipe("/far/a.tar", after)
            memory.store["/far/a.tar"].modified += timedelta(seconds=5)
            memory.store["/far/a.tar"].created += timedelta(seconds=5)
        return read(self, *what)

    monkeypatch.setattr(StoreSource, "open", overwrite_once)
    fetch_quietly("memory://far/a.tar", tmp_path / "out", workers=1)
    memory.rm("/far", recursive=True)
    assert read_folder(tmp_path / "out") == {"a.tar": after}


def test_any_protocol_of_fsspec_works(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/far/a.tar": make_bytes(SIZE), "/far/sub/b.tar": b"2"})
    try:
        fetch_quietly("memory://far", tmp_path / "out")
        assert not fetch_quietly("memory://far", tmp_path / "out").missing
    finally:
        memory.rm("/far", recursive=True)
    expected = {"a.tar": make_bytes(SIZE), "sub/b.tar": b"2"}
    assert read_folder(tmp_path / "out") == expected
    fetch_quietly(f"file://{tmp_path}/out/sub", tmp_path / "copy")
    assert read_folder(tmp_path / "copy") == {"b.tar": b"2"}
