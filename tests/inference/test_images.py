"""Images to predict: which are found, and that they are read as training reads them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.data.formats.listing import DataError
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.evaluation import EvalLoader
from fastdeit.inference import images
from fastdeit.inference.images import choose_rows, find_images, read_image, read_rows
from fastdeit.inference.load import build_transform
from fastdeit.models.hub import EvalView
from tests.data.formats.test_check import AMBIGUOUS, REFUSED, RGB, TAKEN, encoded
from tests.support.images import write_shapes

VIEW = EvalView(24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4), 0.875)


def write(path: Path, data: bytes = TAKEN["png"]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_files_folders_and_patterns_are_found_once_in_order(tmp_path: Path) -> None:
    for name in ("b/2.png", "b/10.jpg", "a/x.JPG", "a/._x.jpg", "a/note.txt", "b/c/d.webp"):
        write(tmp_path / name)
    first = str(tmp_path / "b" / "c" / "d.webp")
    found = find_images([first, str(tmp_path), str(tmp_path / "*" / "*.png")])
    names = [os.path.relpath(path, tmp_path) for path in found]
    assert names == ["b/c/d.webp", "a/x.JPG", "b/10.jpg", "b/2.png"]
    assert find_images([str(tmp_path / "**" / "*.webp")]) == [first]
    assert find_images([str(tmp_path / "[a]*")]) == [str(tmp_path / "a" / "x.JPG")]


def test_a_name_that_looks_like_a_pattern_is_a_name(tmp_path: Path) -> None:
    odd = write(tmp_path / "a[1]*.png")
    write(tmp_path / "a1.png")
    assert find_images([odd]) == [odd]


def test_names_that_are_not_utf8_are_found(tmp_path: Path) -> None:
    odd = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/K\xe4se.png")))
    assert find_images([str(tmp_path)]) == [odd]
    assert read_image(odd, VIEW).fault == ""


def test_links_in_circles_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.png")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    assert find_images([str(tmp_path)]) == [str(tmp_path / "a" / "x.png")]


@pytest.mark.parametrize(
    ("place", "message"),
    [("gone.png", "no such file"), ("*.gone", "no image is here"), ("empty", "no image is here")],
)
def test_a_place_without_images_is_named(tmp_path: Path, place: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError) as error:
        find_images([write(tmp_path / "x.png"), str(tmp_path / place)])
    assert str(error.value).startswith(f"{tmp_path / place}: {message}")


def test_pixels_are_those_of_the_evaluation(tmp_path: Path) -> None:
    root = write_shapes(tmp_path)
    for kind, data in TAKEN.items():
        if kind not in ("pgm", "jpeg-cmyk"):  # CMYK is rounded otherwise by DALI
            suffix = {"j": "jpg", "p": "png", "w": "webp", "b": "bmp"}[kind[0]]
            write(root / "train" / "circle" / f"{kind}.{suffix}", data)
    index = build_index(root, "train")
    assert len(index) > 40
    options = PipelineOptions(VIEW.mean, VIEW.std, num_threads=1)
    (batch,) = EvalLoader(
        index, options, batch_size=len(index), input_size=VIEW.size, crop_pct=VIEW.crop_pct
    )
    paths = [str(root / os.fsdecode(name)) for name in index.names.to_pylist()]
    read = torch.stack([read_image(path, VIEW).pixels for path in paths])  # type: ignore[misc]
    assert torch.equal(read, batch.images)
    assert torch.equal(read_rows(index, range(len(index)), VIEW), batch.images)


def test_a_row_that_cannot_be_read_any_more_is_named(tmp_path: Path) -> None:
    index = build_index(write_shapes(tmp_path / "data"), "train")
    broken = tmp_path / "data" / index.name(1)
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{index.name(1)} is no JPEG, PNG"):
        read_rows(index, [0, 1], VIEW)
    broken.unlink()
    with pytest.raises(DataError, match=f"{index.name(1)} cannot be read: No such file"):
        read_rows(index, [0, 1], VIEW)


def test_a_row_that_is_too_narrow_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("1", (2_000_000, 1)).save(folder / "x.png")
    with pytest.raises(DataError, match="pixels are too narrow"):
        read_rows(build_index(tmp_path, "train"), [0], VIEW._replace(size=224))


def test_rows_are_spread_evenly() -> None:
    assert choose_rows(10, 4) == [0, 2, 5, 7]
    assert choose_rows(3, 8) == [0, 1, 2] and choose_rows(5, 1) == [0]
    assert len(set(choose_rows(1_281_167, 128))) == 128


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*TAKEN, "gif", "gif-animated"])
def test_every_kind_is_read_as_pillow_converts_it(kind: str, tmp_path: Path) -> None:
    frames = [RGB.rotate(180), RGB.rotate(90)]
    gifs = {
        "gif": encoded(RGB, "GIF", transparency=3),
        "gif-animated": encoded(RGB, "GIF", save_all=True, append_images=frames),
    }
    file = write(tmp_path / "x", TAKEN.get(kind) or gifs[kind])
    read = read_image(file, VIEW)
    with Image.open(file) as image:
        rgb = image.convert("RGBA" if image.mode == "P" else "RGB").convert("RGB")
    assert read.pixels is not None and torch.equal(read.pixels, build_transform(VIEW)(rgb))


# which only DALI refuses, or decodes otherwise
READ_BY_PILLOW = {"bmp-15-bit", "png-no-palette", "png-unknown-chunk", "ppm-small-values"}


@pytest.mark.parametrize("kind", sorted({*REFUSED, *AMBIGUOUS} - {"gif", "jpeg-stray-bytes"}))
def test_what_training_refuses_is_a_fault(kind: str, tmp_path: Path) -> None:
    data, _ = {**REFUSED, **AMBIGUOUS}[kind]
    read = read_image(write(tmp_path / "x.png", data), VIEW)
    # png-w*: a checksum or an end that Pillow does without
    if kind.startswith("png-w") or kind in READ_BY_PILLOW:
        assert read.pixels is not None
        return
    assert read.pixels is None and read.fault and "\n" not in read.fault


def test_what_is_no_readable_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "gone"):
        assert read_image(str(tmp_path / name), VIEW).fault.startswith("cannot be read: ")


def test_exif_rotation_is_applied_only_if_asked_for(tmp_path: Path) -> None:
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        file = write(tmp_path / f"{orientation}.png", encoded(RGB, "PNG", exif=exif))
        stored = read_image(file, VIEW)
        turned = read_image(file, VIEW, exif_rotate=True)
        assert stored.orientation == turned.orientation == orientation
        assert stored.pixels is not None and turned.pixels is not None
        assert torch.equal(stored.pixels, build_transform(VIEW)(RGB))
        assert torch.equal(stored.pixels, turned.pixels) == (orientation == 1)
    upright = build_transform(VIEW)(RGB.transpose(Image.Transpose.ROTATE_270))
    turned = read_image(str(tmp_path / "6.png"), VIEW, exif_rotate=True)
    assert turned.pixels is not None and torch.equal(turned.pixels, upright)


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 10_000)
    thread = Image.fromarray(np.zeros((2, 3000, 3), np.uint8))
    fault = read_image(write(tmp_path / "x.png", encoded(thread, "PNG")), VIEW).fault
    assert fault == "3000 x 2 pixels are too narrow: resized to 27 x 40500"
    squash = VIEW._replace(crop_mode="squash")
    assert read_image(str(tmp_path / "x.png"), squash).pixels is not None
