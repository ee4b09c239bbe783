"""Weights by name: paths, a local Hub (its cache, and a server), addresses, timm's models."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastdeit.models.sizes import suggest_names
from fastdeit.models.sources import (
    fetch_weights,
    find_remote,
    find_run,
    find_weights,
    locate_weights,
    name_revision,
)
from fastdeit.models.weights import read_weights
from tests.support.servers import COMMIT, FileServer, fill_hub_cache, use_caches, use_hub

WEIGHTS = {"a": torch.ones(3)}


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each test empty caches, and no network; return that of the Hub."""
    return use_caches(monkeypatch, tmp_path)


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    folder = tmp_path / "served"
    (folder / "me" / "deit").mkdir(parents=True)
    with FileServer(folder).running() as server:
        use_hub(monkeypatch, server)
        yield server


def fill(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        save_file(WEIGHTS, folder / name)
    return folder


@pytest.mark.parametrize(
    ("files", "ema", "found"),
    [
        (("model.safetensors", "model_ema.safetensors"), False, "model.safetensors"),
        (("model.safetensors", "model_ema.safetensors"), True, "model_ema.safetensors"),
        (("model.safetensors", "ema.safetensors"), True, "ema.safetensors"),
        (("student.safetensors", "student_ema.safetensors"), True, "student_ema.safetensors"),
        (("student.safetensors",), False, "student.safetensors"),
        (("pytorch_model.bin", "model.pth"), False, "pytorch_model.bin"),
        ((), False, "model.safetensors"),
    ],
)
@pytest.mark.parametrize("form", ["{}", "local-dir:{}"])
def test_a_folder_has_weights_by_known_names(
    form: str, files: tuple[str, ...], ema: bool, found: str, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "run", *files)
    assert locate_weights(form.format(folder), ema=ema) == folder / found


def test_the_run_of_weights_is_found_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fill(tmp_path / "run", "config.yaml", "model.safetensors")
    step = fill(run / "checkpoints" / "step-1", "model.safetensors")
    sources: list[str | Path] = [run, f"local-dir:{run}", run / "model.safetensors", step]
    for source in [*sources, step / "model.safetensors"]:
        found = find_run(source)
        assert found is not None and found.path == run
    other = fill(run / "others", "resnet.pth")
    monkeypatch.chdir(run)
    address = f"https://me/x.pth?signature={'0' * 5000}"
    for absent in ("resnet18", "hf-hub:timm/deit", address, str(other), str(other / "resnet.pth")):
        assert find_run(absent) is None


def test_near_names_are_different_names() -> None:
    """Ours and timm's models share names."""
    near = suggest_names("deit_smal_distilled_patch16_224").removeprefix("; near: ").split(", ")
    assert near[0] == "deit_small_distilled_patch16_224" and len(set(near)) == len(near) == 3


def test_a_path_that_does_not_exist_is_named_with_what_may_be_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hf-hub:OWNER/NAME") as caught:
        fetch_weights("resnet81")
    assert "near: resnet" in str(caught.value)
    with pytest.raises(ValueError, match=f"no checkpoint at {tmp_path}/model.safetensors"):
        fetch_weights(tmp_path)


def test_a_file_that_is_named_like_a_model_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_remote("resnet18") is not None
    assert find_remote("resnet18.safetensors") is None
    fill(tmp_path / "resnet18", "model.safetensors")
    assert fetch_weights("resnet18") == Path("resnet18/model.safetensors")


@pytest.mark.parametrize(
    "name", ["hf-hub:", "hf-hub:a", "hf-hub:a/b/c", "hf-hub:a/../b", "hf-hub:a b/c"]
)
def test_a_repository_has_an_owner_and_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="a repository must be hf-hub:OWNER/NAME"):
        fetch_weights(name)


@pytest.mark.parametrize("revision", ["", "@main", f"@{COMMIT}"])
def test_a_repository_in_the_cache_needs_no_network(
    revision: str, caches: Path, tmp_path: Path
) -> None:
    files = fill(tmp_path / "files", "model.safetensors")
    snapshot = fill_hub_cache(caches, "me/deit", files)
    source = f"hf-hub:me/deit{revision}"
    for found in (locate_weights(source), find_weights(source), fetch_weights(source)):
        assert found == snapshot / "model.safetensors"
    assert name_revision(source) == f"hf-hub:me/deit@{COMMIT}"
    assert torch.equal(read_weights(source)[0]["a"], WEIGHTS["a"])


def test_pretrained_weights_of_timm_are_a_repository(caches: Path, tmp_path: Path) -> None:
    known = timm.get_pretrained_cfg("test_resnet")
    files = fill(tmp_path / "files", "model.safetensors")
    snapshot = fill_hub_cache(caches, known.hf_hub_id, files)
    for name in ("test_resnet", f"test_resnet.{known.tag or 'r160_in1k'}"):
        assert fetch_weights(name) == snapshot / "model.safetensors"
    assert name_revision("test_resnet") == f"hf-hub:{known.hf_hub_id}@{COMMIT}"


def test_without_a_network_the_files_to_bring_are_named() -> None:
    with pytest.raises(ValueError, match="no network") as caught:
        fetch_weights("hf-hub:me/deit")
    error = str(caught.value)
    assert "download model.safetensors and config.json from https://huggingface.co/me/deit" in error
    assert "\n" not in error
    place = locate_weights("hf-hub:me/deit")
    assert not place.exists()


def test_a_repository_is_downloaded_with_its_config(hub_server: FileServer) -> None:
    folder = fill(hub_server.folder / "me" / "deit", "pytorch_model.bin")
    (folder / "config.json").write_text('{"architecture": "test_resnet"}')
    path = fetch_weights("hf-hub:me/deit")
    assert path.name == "pytorch_model.bin" and path.with_name("config.json").is_file()
    assert locate_weights("hf-hub:me/deit") == path
    # a later start asks for nothing
    asked = len(hub_server.asked)
    assert fetch_weights("hf-hub:me/deit") == path and len(hub_server.asked) == asked


def test_a_repository_without_weights_is_refused(hub_server: FileServer) -> None:
    (hub_server.folder / "me" / "deit" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="hf-hub:me/deit: has no weights, none of model.safetens"):
        fetch_weights("hf-hub:me/deit")


def test_an_address_is_downloaded_once(hub_server: FileServer) -> None:
    fill(hub_server.folder, "deit.safetensors")
    source = f"{hub_server.address}/deit.safetensors"
    assert not locate_weights(source).exists()
    assert find_weights(source) == fetch_weights(source) == locate_weights(source)
    assert hub_server.asked == ["GET deit.safetensors"]
    assert name_revision(source) == source
