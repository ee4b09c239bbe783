"""The data set of a run before it is read, and the samples and steps that follow from it."""

from collections.abc import Iterator
from typing import NamedTuple

from fastdeit.config.recipes import spell_recipe
from fastdeit.estimate.lines import Line


class DataSet(NamedTuple):
    """The counts of a data set; basis: their source."""

    images: int
    classes: int
    val_images: int
    image_bytes: float | None
    """The mean bytes of an encoded image; None: not known."""
    basis: str
    image_basis: str = ""
    """The source of the mean."""


# 147,897,477,120 bytes of ILSVRC2012_img_train.tar, with the headers of the archives
IMAGENET = DataSet(
    1_281_167, 1000, 50_000, 147_897_477_120 / 1_281_167, "ImageNet-1k", "ImageNet's archive"
)
_DIGITS = DataSet(1_442, 10, 355, None, "scikit-learn's digits")
_FASHION = DataSet(60_000, 10, 10_000, 28 * 28, "Fashion-MNIST", "pixels of a byte")
_CIFAR10 = DataSet(50_000, 10, 10_000, 32 * 32 * 3, "CIFAR-10", "pixels of three bytes")
_BY_RECIPE = {
    **dict.fromkeys(("deit", "deit_paper", "deit3", "deit3_finetune", "finetune_384"), IMAGENET),
    **dict.fromkeys(("digits", "digits_teacher", "digits_48"), _DIGITS),
    **dict.fromkeys(("fashion_mnist", "fashion_mnist_teacher"), _FASHION),
    **dict.fromkeys(("cifar10", "cifar10_teacher"), _CIFAR10),
}


def find_data_set(recipe: str) -> DataSet | None:
    """Return the data set that a recipe is for; None if it is for any data set."""
    return _BY_RECIPE.get(spell_recipe(recipe))


class Samples(NamedTuple):
    """The samples and steps of a run."""

    images: int
    batch: int
    epochs: int
    repeats: int

    @property
    def epoch_steps(self) -> int:
        """Return the number of steps in an epoch, as `Plan.steps_per_epoch`."""
        return self.images // self.batch

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch_steps

    @property
    def epoch_samples(self) -> int:
        return self.epoch_steps * self.batch

    @property
    def different(self) -> int:
        """Return the number of different images in an epoch, by the order of plan/plan.py: unit u
        has the first image of pair u // repeats, and the second one of the pair u % repeats
        places later."""
        units = self.epoch_samples // 2
        whole, rest = divmod(units, self.repeats)
        first = whole + (rest > 0)
        furthest = whole + max(self.repeats - 2, rest - 1) if whole else rest - 1
        return first + min(self.images // 2, furthest + 1)


def list_samples(samples: Samples, data: DataSet) -> Iterator[Line]:
    """Yield the counts of images, steps and samples."""
    yield Line("samples", "images", samples.images, "", "counted", data.basis)
    basis = f"images // {samples.batch}, the batch size"
    yield Line("samples", "steps an epoch", samples.epoch_steps, "", "counted", basis)
    basis = f"{samples.epochs} epochs"
    yield Line("samples", "steps", samples.steps, "", "counted", basis)
    total = samples.epochs * samples.epoch_samples
    yield Line("samples", "samples", total, "", "counted", "steps x batch size")
    basis = f"the plan, {samples.repeats} copies"
    yield Line("samples", "different images an epoch", samples.different, "", "counted", basis)
