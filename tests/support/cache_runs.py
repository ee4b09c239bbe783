"""Runs of the teacher cache: a data set, a random teacher, commands in this process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from fastdeit.commands.cache.command import cache_command
from fastdeit.commands.runs.train import train_command
from tests.support.images import write_shapes

TEACHER = "test_resnet"
MODEL = (
    "--model deit_tiny_distilled_patch16_224 --patch-size 8 --embed-dim 32 --depth 2 --num-heads 2"
).split()
RUN = (
    "--input-size 32 --batch-size 16 --warmup-epochs 1 --lr 0.05 --log-steps 1 --drop-path 0.3"
).split()
FILES = ("records.bin", "chunks.bin")


class Setting:
    """Folder with a data set (48 images, six chunks an epoch) and a teacher's weights.

    samples, taught: the flags that name them.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = write_shapes(root / "data", train=16)
        self.teacher = write_teacher(root / "teacher.safetensors", self.data, seed=3)

    @property
    def samples(self) -> list[str]:
        return ["--data-path", str(self.data), *RUN]

    @property
    def taught(self) -> list[str]:
        return ["--teacher-model", TEACHER, "--teacher-path", str(self.teacher)]

    def build(self, folder: Path, *flags: str, epochs: str = "0-2", micro_batch: int = 8) -> int:
        """Build a teacher cache in `folder`; return the exit code."""
        form = ["--micro-batch", str(micro_batch), "--epochs", epochs, "-o", str(folder)]
        return cache(["build", *self.samples, *self.taught, *form, *flags])

    def train(self, folder: Path, *flags: str, epochs: int = 3) -> int:
        """Train a student in `folder`; return the exit code."""
        form = ["--epochs", str(epochs), "--output-dir", str(folder)]
        return train([*self.samples, *MODEL, *form, *flags])


def write_teacher(path: Path, data: Path, seed: int) -> Path:
    """Write random weights, with a last layer that gives each class logits of mean 0 and standard
    deviation 1 over the images."""
    files = sorted((data / "train").rglob("*.*"))
    small = [Image.open(file).convert("RGB").resize((32, 32)) for file in files]
    pixels = torch.from_numpy(np.stack([np.array(image, np.float32) for image in small]))
    torch.manual_seed(seed)
    # contrast and brightness, about as much as augmentation changes them
    factor, offset = (torch.rand(2, len(files), 3, 1, 1) - 0.5).unbind()
    normalised = (pixels.permute(0, 3, 1, 2) / 255 - 0.45) / 0.225
    images = normalised * (1 + factor) + 2 * offset
    model = timm.create_model(TEACHER, num_classes=3).eval()
    with torch.no_grad():
        logits = model(images)
        model.fc.weight.div_(logits.std(0)[:, None])
        model.fc.bias.sub_(logits.mean(0)).div_(logits.std(0))
    save_file(model.state_dict(), path, {"input_size": "32"})
    return path


def _exit_code(run: Callable[[], int]) -> int:
    try:
        return run()
    except SystemExit as end:
        return int(str(end.code))


def train(argv: list[str]) -> int:
    """Run `train`; return the exit code, also after SystemExit."""
    return _exit_code(lambda: train_command(argv, "test"))


def cache(argv: list[str]) -> int:
    """Run `cache`; return the exit code, also after SystemExit."""
    return _exit_code(lambda: cache_command(argv))


def flip(path: Path, place: int) -> None:
    """Flip the lowest bit of the byte at `place`."""
    data = bytearray(path.read_bytes())
    data[place] ^= 0x01
    path.write_bytes(data)


def same_files(one: Path, two: Path) -> bool:
    return all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)
