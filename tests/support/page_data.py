"""What the commands of README and docs name, in small: data sets, runs and weights; and ImageNet in
the layouts in which it is published."""

import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.support.pages import run_commands, working_in
from tests.support.parquet import write_hub_folder

CLASSES = ("n01440764", "n01443537")


def write_images(folder: Path, count: int, names: str = "{}.JPEG", size: int = 40) -> None:
    folder.mkdir(parents=True)
    draws = np.random.default_rng(len(str(folder)))
    for number in range(1, count + 1):
        pixels = draws.integers(0, 256, (size, size + 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / names.format(number))


def write_archives(folder: Path) -> None:
    """Write ImageNet's three archives in small: two classes, twelve and six images of each."""
    source = folder / "source"
    for name in CLASSES:
        write_images(source / "train" / name, 12)
    write_images(source / "val", 12, "ILSVRC2012_val_{:08}.JPEG")
    data = source / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    truth = "".join(f"{2 - number % 2}\n" for number in range(1, 13))
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    rows = np.array([(n + 1, name, name, 0) for n, name in enumerate(CLASSES)], dtype=kinds)
    savemat(data / "meta.mat", {"synsets": rows.reshape(-1, 1)})
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as archive:
        for name in CLASSES:
            with tarfile.open(source / f"{name}.tar", "w") as part:
                for image in sorted((source / "train" / name).iterdir()):
                    part.add(image, image.name)
            archive.add(source / f"{name}.tar", f"{name}.tar")
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as archive:
        for image in sorted((source / "val").iterdir()):
            archive.add(image, image.name)
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        archive.add(source / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")


def write_kaggle(folder: Path) -> None:
    """Write Kaggle's archive: the images of `write_archives`' form, below ILSVRC/Data/CLS-LOC."""
    source = folder / "source"
    images = source / "ILSVRC" / "Data" / "CLS-LOC"
    for name in CLASSES:
        write_images(images / "train" / name, 12)
    write_images(images / "val", 12, "ILSVRC2012_val_{:08}.JPEG")
    write_images(images / "test", 2, "ILSVRC2012_test_{:08}.JPEG")
    rows = [f"ILSVRC2012_val_{n:08},{CLASSES[n % 2]} 1 2 30 40 \n" for n in range(12, 0, -1)]
    (source / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    words = "".join(f"{name} tench, Tinca tinca\n" for name in CLASSES)
    (source / "LOC_synset_mapping.txt").write_text(words)
    name = "imagenet-object-localization-challenge.zip"
    with zipfile.ZipFile(folder / name, "w") as archive:
        for file in sorted(source.rglob("*")):
            archive.write(file, file.relative_to(source))


def make_hub_shards(folder: Path) -> dict[str, bytes]:
    """Return the files of `timm/imagenet-1k-wds`, two shards a split; images are drawn below
    `folder`."""
    files = {"README.md": b"# ImageNet"}
    for split, count in (("train", 12), ("validation", 6)):
        for number in range(2):
            home = folder / split / str(number)
            write_images(home, count)
            samples = [
                member
                for row, image in enumerate(sorted(home.iterdir()))
                for member in _make_sample(f"{CLASSES[row % 2]}_{number}{row}", image, row % 2)
            ]
            files[f"imagenet1k-{split}-{number:04}.tar"] = _make_tar(samples)
    return files


def _make_sample(key: str, image: Path, label: int) -> list[tuple[str, bytes]]:
    facts = f'{{"label": {label}, "class_id": "{CLASSES[label]}", "width": 48, "height": 40}}'
    return [
        (f"{key}.cls", str(label).encode()),
        (f"{key}.jpg", image.read_bytes()),
        (f"{key}.json", facts.encode()),
    ]


def _make_tar(members: list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def make_hub_parquet(folder: Path) -> dict[str, bytes]:
    """Return the files of `ILSVRC/imagenet-1k`, two a split, and those of the test images; images
    are drawn below `folder`."""
    for name in CLASSES:
        write_images(folder / "images" / "train" / name, 12)
        write_images(folder / "images" / "val" / name, 6)
    hub = write_hub_folder(folder / "hub", folder / "images")
    files = {file.relative_to(hub).as_posix(): file for file in hub.rglob("*.parquet")}
    found = {name: file.read_bytes() for name, file in files.items()}
    return found | {"README.md": b"# ImageNet", "data/test-00000-of-00001.parquet": b"not asked"}


def write_named(folder: Path) -> None:
    """Write the data sets, photographs, runs and weights that the pages name."""
    for name in CLASSES:
        write_images(folder / "DATA" / "train" / name, 12)
        write_images(folder / "DATA" / "val" / name, 6)
    (folder / "IMAGENET").symlink_to("DATA")
    write_images(folder / "photos", 2, "{}.jpg")
    write_images(folder / "more" / "below", 1, "{}.png")
    write_images(folder / "photo", 1, "photo.jpg")
    (folder / "photo" / "photo.jpg").rename(folder / "photo.jpg")
    common = "--data-path DATA --input-size 32 --batch-size 8 --epochs 1 --warmup-epochs 0"
    with working_in(folder):
        run_commands(
            f"fastdeit train --model test_resnet --distillation-type none {common} "
            "--output-dir runs/teacher\n"
            "fastdeit train --embed-dim 24 --depth 2 --num-heads 3 --patch-size 8 "
            f"--teacher-model test_resnet --teacher-path runs/teacher {common} "
            "--output-dir runs/NAME\n"
        )
    for run_name in ("digits", "digits_alone", "deit", "deit3"):
        (folder / "runs" / run_name).symlink_to("NAME")
    (folder / "runs" / "digits_teacher").symlink_to("teacher")
    (folder / "RUN").symlink_to("runs/NAME")
    (folder / "regnety_160.safetensors").symlink_to("runs/teacher/model.safetensors")
