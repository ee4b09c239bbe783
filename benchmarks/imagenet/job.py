"""A rehearsal: its size, its folder, and the flags that its stages share."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config

IMAGES = 1_281_167
VALIDATION = 50_000
CLASSES = 1000
LARGE = 14_197_122
"""The number of images of ImageNet-21k."""
COPIES = 3
"""The copies of each image in an epoch, as in deit."""
BATCH = 1024
EPOCHS = 300
_FOLDER_SHARE = 10
_FEWEST = 64
_STUDENT = (
    "--model deit_tiny_distilled_patch16_224 --input-size 32 --patch-size 16 --embed-dim 32 "
    "--depth 2 --num-heads 1"
)
TEACHER = "test_resnet"


@dataclass(frozen=True)
class Job:
    """A rehearsal in a folder; scale: share of ImageNet's images, of at most 1."""

    folder: Path
    scale: float

    @property
    def images(self) -> int:
        """Return the number of training images."""
        return max(round(IMAGES * self.scale), 4 * _FEWEST)

    @property
    def validation(self) -> int:
        """Return the number of validation images."""
        return max(round(VALIDATION * self.scale), _FEWEST)

    @property
    def folder_images(self) -> int:
        """Return the number of training images of the data set in class folders."""
        return self.images // _FOLDER_SHARE

    @property
    def large(self) -> int:
        """Return the number of images of the data set of ImageNet-21k's size."""
        return max(round(LARGE * self.scale), 4 * _FEWEST)

    @property
    def classes(self) -> int:
        """Return the number of classes: all of ImageNet's from a tenth of its size on, fewer
        below."""
        return min(CLASSES, self.folder_images // 8 + 2)

    @property
    def batch(self) -> int:
        """Return the number of samples in a step."""
        return BATCH if self.scale == 1 else min(BATCH, max(16, self.images // 20 // 16 * 16))

    @property
    def steps(self) -> int:
        """Return the number of steps in an epoch."""
        return self.images // self.batch

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def large_shards(self) -> Path:
        """Return the folder of the shards with as many images as ImageNet-21k."""
        return self.folder / "large"

    @property
    def class_folders(self) -> Path:
        return self.folder / "folder"

    @property
    def teacher(self) -> Path:
        return self.folder / "teacher.safetensors"

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def samples(self) -> list[str]:
        """Return the flags that decide the samples."""
        shape = ["--recipe", "deit", "--aug-repeats", str(COPIES), *_STUDENT.split()]
        return ["--data-path", str(self.shards), *shape, "--distillation-type", "hard"]

    @property
    def student(self) -> list[str]:
        """Return the flags of a training of one epoch."""
        size = ["--batch-size", str(self.batch), "--micro-batch", str(self.batch // 8)]
        return [*self.samples, *size, "--epochs", "1", "--warmup-epochs", "0"]

    @cached_property
    def config(self) -> Config:
        return parse_config(self.student, "rehearsal")[0]
