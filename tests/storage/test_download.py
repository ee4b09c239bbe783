"""Files at an address: whole or absent, and those that the address names."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastdeit.storage.download import cache_place, download
from tests.support.servers import FileServer

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    for folder in ("one", "two"):
        (tmp_path / "files" / folder).mkdir(parents=True)
        (tmp_path / "files" / folder / "model.pth").write_bytes(folder.encode() + CONTENT)
    with FileServer(tmp_path / "files").running() as server:
        yield server


def list_cache(folder: Path) -> list[Path]:
    return [path for path in (folder / "torch").rglob("*") if path.is_file()]


def test_a_file_is_downloaded_once(server: FileServer, tmp_path: Path) -> None:
    address = f"{server.address}/one/model.pth"
    assert download(address) == cache_place(address)
    assert download(address).read_bytes() == b"one" + CONTENT
    assert server.asked == ["GET one/model.pth"]
    assert list_cache(tmp_path) == [cache_place(address)]


def test_the_same_name_at_two_addresses_is_two_files(server: FileServer) -> None:
    files = [download(f"{server.address}/{folder}/model.pth") for folder in ("one", "two")]
    assert [file.read_bytes()[:3] for file in files] == [b"one", b"two"]


def test_a_name_with_a_hash_is_that_of_torch_hub(server: FileServer, tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "state.pth")
    digest = hashlib.sha256((tmp_path / "state.pth").read_bytes()).hexdigest()
    name = f"deit-{digest[:8]}.pth"
    (tmp_path / "state.pth").rename(tmp_path / "files" / name)
    download(f"{server.address}/{name}?download=true")
    found = torch.hub.load_state_dict_from_url(f"{server.address}/{name}", check_hash=True)
    assert torch.equal(found["a"], torch.ones(3)) and server.asked == [f"GET {name}"]


@pytest.mark.parametrize(
    ("name", "cut", "message"),
    [
        ("deit-0123abcd.pth", None, "its name has the SHA-256 0123abcd..., its content "),
        ("one/model.pth", 70_000, "the connection broke after 70,000 of 1,280,003 bytes"),
        ("one/other.pth", None, "HTTP Error 404: "),
    ],
)
def test_what_is_not_the_file_is_refused_and_leaves_nothing(
    name: str, cut: int | None, message: str, server: FileServer, tmp_path: Path
) -> None:
    (tmp_path / "files" / "deit-0123abcd.pth").write_bytes(CONTENT)
    server.cut = cut
    address = f"{server.address}/{name}"
    with pytest.raises(ValueError, match="cannot be downloaded") as caught:
        download(address)
    error = str(caught.value)
    assert error.startswith(f"{address}: ") and message in error and "\n" not in error
    assert f"download {name.rpartition('/')[2]} elsewhere" in error
    assert error.endswith(f"or put it at {cache_place(address)}")
    assert list_cache(tmp_path) == []


def test_without_a_network_the_file_to_bring_is_named(tmp_path: Path, server: FileServer) -> None:
    address = "http://127.0.0.1:9/deit.pth"
    with pytest.raises(ValueError, match="Connection refused.*: download deit.pth elsewhere"):
        download(address)
    place = cache_place(address)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(CONTENT)
    assert download(address).read_bytes() == CONTENT


def test_a_server_that_does_not_end_is_left(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastdeit.storage.download._MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match="it has more than 1,048,576 bytes"):
        download(f"{server.address}/one/model.pth?token=secret")
    assert list_cache(tmp_path) == []


def test_a_token_is_in_no_message(server: FileServer) -> None:
    with pytest.raises(ValueError, match="404") as caught:
        download(f"{server.address}/one/other.pth?token=secret")
    assert "secret" not in str(caught.value)
