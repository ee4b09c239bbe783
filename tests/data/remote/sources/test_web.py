"""The files of a URL of a web server: what they are, and where credentials stay."""

import hashlib
import json
import logging
import re
from pathlib import Path

import pytest

from fastdeit.data.remote.fetch import open_source
from fastdeit.data.remote.source import FetchError, RemoteFile, Unreachable
from fastdeit.display.terminal import Terminal
from tests.support.far_server import FarServer, status
from tests.support.fetching import fetch_quietly, read_folder, write_files, write_sums


def list_names(url: str, *patterns: str) -> list[str]:
    return [file.name for file in list_files(url, *patterns)]


def list_files(url: str, *patterns: str) -> list[RemoteFile]:
    with open_source(url) as source:
        return source.list_files(patterns)


def test_a_file_is_itself(far: FarServer) -> None:
    write_files(far.folder, a=10)
    (far.folder / "no_suffix").write_bytes(b"x")
    assert list_names(f"{far.address}/a.tar") == ["a.tar"]
    assert list_names(f"{far.address}/no_suffix") == ["no_suffix"]


def test_braces_name_files_below_their_folder(far: FarServer) -> None:
    for split in ("train", "val"):
        (far.folder / split).mkdir()
        write_files(far.folder / split, s00=10, s01=20)
    names = list_names(f"{far.address}/{{train,val}}/s{{00..01}}.tar")
    assert names == ["train/s00.tar", "train/s01.tar", "val/s00.tar", "val/s01.tar"]


def test_a_file_of_a_pattern_that_does_not_exist_is_named(far: FarServer) -> None:
    write_files(far.folder, s0=10)
    with pytest.raises(FetchError, match=r"/s1\.tar \(and 1 more\): does not exist there \(404\)"):
        list_names(f"{far.address}/s{{0..2}}.tar")


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_folder_has_the_files_of_its_checksums(slash: str, far: FarServer) -> None:
    write_files(far.folder, a=10, b=20)
    write_sums(far.folder, "a.tar", "b.tar")
    files = list_files(far.address + slash)
    assert [file.name for file in files] == ["a.tar", "b.tar", "SHA256SUMS"]
    digest = hashlib.sha256((far.folder / "a.tar").read_bytes()).hexdigest()
    assert files[0].checksum == f"sha256:{digest}" and files[0].size == 10


def test_a_folder_has_the_files_of_a_packed_data_set(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=5000, b=20)
    write_pack(far.folder, contents)
    far.asked.clear()
    files = list_files(f"{far.address}/")
    assert [(file.name, file.size) for file in files[:2]] == [("a.tar", 5000), ("b.tar", 20)]
    assert not any(each.name.endswith(".tar") for each in far.asked)  # the manifest has the sizes
    fetch_quietly(far.address, tmp_path / "out")
    assert read_folder(tmp_path / "out") == read_folder(far.folder)


def write_pack(folder: Path, contents: dict[str, bytes], **entry: str) -> None:
    files = [
        {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} | entry
        for name, data in contents.items()
    ]
    (folder / "pack.json").write_text(json.dumps({"version": 1, "files": files}))


def test_a_set_that_is_packed_as_a_folder_needs_a_listing(far: FarServer) -> None:
    write_pack(far.folder, {"train/0": b"x"}, split="train")
    with pytest.raises(FetchError, match="packed as a folder, which HTTP cannot list"):
        list_names(far.address)


def test_a_list_of_names_is_followed(far: FarServer) -> None:
    write_files(far.folder, a=10, b=20)
    (far.folder / "strange #1?.tar").write_bytes(b"x")
    (far.folder / "shards.txt").write_text("a.tar\n# comment\n\n./b.tar\r\nstrange #1?.tar\n")
    names = list_names(f"{far.address}/shards.txt")
    assert names == ["a.tar", "b.tar", "strange #1?.tar"]


def test_splits_with_braces_name_the_shards_of_a_folder(far: FarServer) -> None:
    write_files(far.folder, t0=1, t1=1, v0=1)
    assert list_names(far.address, "t{0..1}.tar", "v{0..0}.tar") == ["t0.tar", "t1.tar", "v0.tar"]


def test_a_folder_without_a_list_says_what_can_be_given(far: FarServer) -> None:
    with pytest.raises(FetchError, match=r"which HTTP cannot list; give a file, a brace"):
        list_names(f"{far.address}/data", "train", "val")


def test_a_page_is_no_file(far: FarServer) -> None:
    write_files(far.folder, a=10)
    far.pages.add("v1.0")
    write_sums(far.folder, "a.tar")
    (far.folder / "v1.0").mkdir()
    for name in ("a.tar", "SHA256SUMS"):
        (far.folder / name).rename(far.folder / "v1.0" / name)
    assert list_names(f"{far.address}/v1.0") == ["a.tar", "SHA256SUMS"]


BAD_LISTS = {
    "no JSON": ("pack.json", "{", "must be the pack.json"),
    "another JSON": ("pack.json", '{"a": 1}', "must be the pack.json"),
    "a size that is none": (
        "pack.json",
        '{"files": [{"name": "a", "bytes": -1, "sha256": "x"}]}',
        "must be the pack.json",
    ),
    "nothing": ("SHA256SUMS", "", "names no file"),
    "no text": ("SHA256SUMS", "\xff\xfe", "must be the pack.json"),
    "a name that leads out": ("SHA256SUMS", f"{'0' * 64}  ../../x", "leads out"),
    "an absolute name": ("SHA256SUMS", f"{'0' * 64}  /etc/passwd", "leads out"),
    "a URL": ("list.txt", "https://host/x?sig=1", "relative"),
    "a name twice": ("list.txt", "a.tar\na.tar", "is there twice"),
    "our own folder": ("list.txt", ".fastdeit/fetch.jsonl", "this program's own"),
    "a folder and a file": ("list.txt", "a.tar\na.tar/b", "of a file and of a folder"),
}


@pytest.mark.parametrize("name", BAD_LISTS)
def test_a_list_that_cannot_be_used_is_an_error(name: str, far: FarServer, tmp_path: Path) -> None:
    file, text, message = BAD_LISTS[name]
    (far.folder / file).write_bytes(text.encode("latin-1"))
    (far.folder / "a.tar").write_bytes(b"1")
    with pytest.raises(FetchError, match=message) as caught:
        fetch_quietly(f"{far.address}/{file}", tmp_path / "out")
    assert "sig" not in str(caught.value)
    assert read_folder(tmp_path).keys() == {f"far/{file}", "far/a.tar"}


def test_credentials_are_sent_and_never_written(
    far: FarServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    write_files(far.folder, a=5000)
    url = far.address.replace("//", "//user:hunter2@") + "/a.tar?X-Amz-Signature=swordfish"
    fetch_quietly(url, tmp_path / "out", terminal=Terminal())
    assert {each.query for each in far.asked} == {"X-Amz-Signature=swordfish"}
    assert all(each.auth.startswith("Basic ") for each in far.asked)
    own = (tmp_path / "out" / ".fastdeit").rglob("*")
    written = b"".join(path.read_bytes() for path in own if path.is_file())
    shown = capsys.readouterr()
    assert "GET http" in caplog.text  # httpx2's own
    for text in (written.decode(errors="replace"), shown.out, shown.err, caplog.text):
        assert not re.search("hunter2|swordfish|user:", text)
    far.fail("a.tar", status(403), times=100)
    (far.folder / "a.tar").write_bytes(b"new")
    with pytest.raises(FetchError) as caught:
        fetch_quietly(url, tmp_path / "out")
    assert not re.search("hunter2|swordfish", str(caught.value))
    assert caught.value.__cause__ is None


def test_netrc_has_the_password_of_a_host(
    far: FarServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    write_files(far.folder, a=10)
    fetch_quietly(f"{far.address}/a.tar", tmp_path / "out")
    assert all(each.auth.startswith("Basic ") for each in far.asked)


def test_a_redirect_to_another_host_gets_no_password(far: FarServer, tmp_path: Path) -> None:
    contents = write_files(far.folder, a=10)
    other = tmp_path / "other"
    other.mkdir()
    (other / "b.tar").write_bytes(contents["a.tar"])
    with FarServer(other).running() as second:
        far.fail_always("a.tar", status(302, Location=f"{second.address}/b.tar"))
        url = far.address.replace("//", "//user:hunter2@") + "/a.tar"
        fetch_quietly(url, tmp_path / "out")
        assert second.asked and not any(each.auth for each in second.asked)


def test_a_host_that_does_not_answer_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"ConnectError: .*; tried 7 times"):
        fetch_quietly("http://127.0.0.1:9/a.tar", tmp_path / "out")


@pytest.mark.parametrize("url", ["https://", "http:///a.tar", "https://?x=1"])
def test_a_url_without_a_host_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="has no host"):
        fetch_quietly(url, tmp_path / "out")


def test_wildcards_need_a_listing(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="HTTP cannot list what matches a wildcard; use braces"):
        fetch_quietly("https://host/train-*.tar", tmp_path / "out")


def test_a_host_may_be_an_address_in_brackets(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"http://\[::1\]:9/a\.tar: ConnectError"):
        fetch_quietly("http://[::1]:9/a.tar", tmp_path / "out")
