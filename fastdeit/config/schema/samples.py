"""The settings that decide the samples: the images, and their augmentation and mixing."""

from dataclasses import dataclass
from typing import Any, Literal

from fastdeit.config.parse import Section, parse_rand_augment, refuse_credentials
from fastdeit.storage.urls import is_url

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

SIMPLE_CROP_LEAST = 5
"""The smallest --input-size with --src, which pads by a reflection of 4 pixels."""


@dataclass(frozen=True)
class DataConfig(Section):
    data_path: str = ""
    """Folder of the data set: class folders, WebDataset shards, lists, MNIST's or CIFAR's files
    (docs/data.md); or its URL, as s3://, gs://, hf://, https://: then it is fetched first."""
    data_cache: str = ""
    """Folder, as on a disk of each machine, to which the data set is copied before it is read;
    empty: one at a URL to $FASTDEIT_DATA, or fastdeit/data in the user's cache folder."""
    train_split: str = "train"
    """Training split in --data-path: a name, a list, or a pattern of shards (s-{000..127}.tar)."""
    val_split: str = "val"
    """Validation split in --data-path, in the same forms as --train-split."""
    data_set: Literal["any", "digits", "cifar10", "cifar100"] = "any"
    """digits: write scikit-learn's digits to --data-path as image files, if they are missing;
    cifar10, cifar100: the one that must be in --data-path, which may hold both."""
    bad_images: Literal["skip", "error"] = "skip"
    """skip: exclude damaged images, and replace those found during the run; error: exit."""
    index_check: Literal["auto", "headers", "decode"] = "auto"
    """Check of images that are not in the index yet. decode: as a whole; headers: their first
    bytes; auto: decode, but headers of more than 100,000 images or 8 GiB of them."""
    input_size: int = 224
    """Side of the images that the model sees, in pixels."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Mean of each channel for the normalisation, for pixels from 0 to 1."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Standard deviation of each channel for the normalisation."""
    eval_crop_ratio: float = 0.875
    """Evaluation resizes the short side to size / ratio, then crops the centre (timm: 0.9)."""
    eval_input_size: int = 0
    """Image side in evaluation; 0: --input-size. The position embedding is resized to it."""
    decoder: Literal["auto", "cpu", "mixed", "hardware"] = "auto"
    """Decode on the CPU, the GPU's cores (mixed) or its JPEG engine (hardware: other pixels);
    auto takes the CPU with the exact backend."""
    num_workers: int = 0
    """DALI threads per process; 0: this machine's cores divided by its processes."""
    prefetch: int = 2
    """Batches that DALI prepares ahead."""
    read_ahead: Literal["auto", "on", "off"] = "auto"
    """on: a thread makes the next batch while the step trains on the present one; auto: on a CPU
    on, on a GPU off until one has shown it."""

    def check(self) -> None:
        refuse_credentials("data_path", self.data_path)
        is_folder = self.data_set != "digits" or not is_url(self.data_path)
        self._require("data_path", is_folder, "a folder, in which --data-set digits writes")
        self._require("input_size", self.input_size >= 1, "1 or more")
        self._require("eval_crop_ratio", 0 < self.eval_crop_ratio <= 1, "above 0 and at most 1")
        self._require("std", min(self.std) > 0, "three numbers above 0")
        self._require_each(["eval_input_size", "num_workers"], 0)
        self._require("prefetch", self.prefetch >= 1, "1 or more")


@dataclass(frozen=True)
class AugmentConfig(Section):
    aa: str = "rand-m9-mstd0.5-inc1"
    """RandAugment in timm's notation (rand-mM-nN-mstdS-mmaxX-pP-inc1), none, or 3a (3-Augment
    of DeiT III)."""
    augment_backend: Literal["auto", "exact", "native"] = "auto"
    """exact: equal to PIL and timm bit for bit, on CPU threads; native: DALI's operators, close
    to PIL, also on a GPU."""
    augment_device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the exact backend augments: compiled code on CPU threads, or kernels on the GPU, with
    the same pixels; auto: cpu, until a GPU has shown it."""
    color_jitter: float = 0.3
    """Range of random brightness, contrast and saturation; used with --aa 3a and --aa none."""
    src: bool = False
    """Simple random crop (DeiT III: resize the short side, pad 4 pixels, crop at random)."""
    scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest area of the random crop, as a share of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the random crop (log-uniform distribution)."""
    hflip: float = 0.5
    """Probability of a horizontal flip."""
    reprob: float = 0.25
    """Probability of RandomErasing."""
    remode: Literal["const", "rand", "pixel"] = "pixel"
    """Erased boxes hold zeros (const), one N(0, 1) colour (rand) or N(0, 1) noise (pixel)."""
    repeated_aug: bool = True
    """Show each image several times in an epoch, augmented differently each time."""
    aug_repeats: int = 2
    """Copies of each image in an epoch with --repeated-aug (deit: 3)."""

    def check(self) -> None:
        self.operations()
        self._require_each(["aug_repeats"], 1)
        self._require_each(["color_jitter"], 0)
        self._require_span("scale", most=1)
        self._require_span("ratio")
        self._require_probabilities("hflip", "reprob")

    def operations(self) -> dict[str, Any]:
        """Return the fields of `PlanSpec` that --aa and --color-jitter set.

        Raises ValueError for an unknown --aa.
        """
        if self.aa in ("", "none", "None"):
            return {"ra_layers": 0, "color_jitter": self.color_jitter}
        if self.aa == "3a":
            return {"ra_layers": 0, "three_augment": True, "color_jitter": self.color_jitter}
        return parse_rand_augment(self.aa)


@dataclass(frozen=True)
class MixConfig(Section):
    mixup: float = 0.8
    """Mixup's alpha, the parameter of the Beta distribution; 0: no Mixup."""
    cutmix: float = 1.0
    """CutMix's alpha, the parameter of the Beta distribution; 0: no CutMix."""
    cutmix_minmax: tuple[float, float] | None = None
    """Smallest and largest side of CutMix's box, as shares, in place of the Beta distribution."""
    mixup_prob: float = 1.0
    """Probability that a pair is mixed at all."""
    mixup_switch_prob: float = 0.5
    """Probability of CutMix, not Mixup, when both are on."""
    mixup_group: int = 2
    """Neighbouring samples that share lambda and box: 2 is a pair; 256 is deit's on 4 GPUs."""
    smoothing: float = 0.1
    """Label smoothing."""

    def check(self) -> None:
        self._require("smoothing", 0 <= self.smoothing < 1, "at least 0 and below 1")
        self._require_each(["mixup", "cutmix"], 0)
        self._require_probabilities("mixup_prob", "mixup_switch_prob")
        self._require_pairs("mixup_group")
        if self.cutmix_minmax:
            self._require_span("cutmix_minmax", most=1)
