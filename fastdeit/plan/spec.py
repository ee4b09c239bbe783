"""The distributions that a plan draws from, and one line that describes them."""

import dataclasses
from dataclasses import dataclass

from fastdeit.config.parse import Section, require_value
from fastdeit.config.schema import RunConfig
from fastdeit.config.schema.samples import SIMPLE_CROP_LEAST, AugmentConfig, DataConfig, MixConfig
from fastdeit.plan.operations import JITTER_OPS, RAND_AUGMENT_OPS, THREE_OPS

# every default stands once, in fastdeit/config/; --aa has those of RandAugment in one string
_RAND_AUGMENT = AugmentConfig().operations()


@dataclass(frozen=True)
class PlanSpec(Section):
    """The distributions that a plan draws from. The defaults are those of `Config`.

    Raises ValueError for a value outside its range.
    """

    seed: int = RunConfig.seed
    input_size: int = DataConfig.input_size
    repeats: int = AugmentConfig.aug_repeats
    """The number of copies of an image in an epoch, each with its own draws."""
    scale: tuple[float, float] = AugmentConfig.scale
    ratio: tuple[float, float] = AugmentConfig.ratio
    hflip: float = AugmentConfig.hflip
    ra_layers: int = 2
    """The number of RandAugment operations for each sample; 0 turns it off."""
    ra_magnitude: float = _RAND_AUGMENT["ra_magnitude"]
    ra_std: float = _RAND_AUGMENT["ra_std"]
    """Standard deviation of the magnitude; infinity draws it uniformly from [0, ra_magnitude]."""
    ra_max: float = 10.0
    ra_prob: float = 0.5
    three_augment: bool = False
    """Whether DeiT III's 3-Augment, one of grayscale, solarise and blur for each sample, replaces
    RandAugment."""
    color_jitter: float = 0.0
    """The strength of the colour jitter: brightness, contrast and saturation are each multiplied by
    a factor from 1 - color_jitter to 1 + color_jitter, in a random order, after the other
    operations."""
    simple_crop: bool = AugmentConfig.src
    """Whether DeiT III's simple random crop replaces the random resized crop; `scale` and `ratio`
    are then unused."""
    reprob: float = AugmentConfig.reprob
    remode: str = AugmentConfig.remode
    erase_area: tuple[float, float] = (0.02, 1 / 3)
    erase_ratio: tuple[float, float] = (0.3, 1 / 0.3)
    mixup: float = MixConfig.mixup
    cutmix: float = MixConfig.cutmix
    cutmix_minmax: tuple[float, float] | None = MixConfig.cutmix_minmax
    mixup_prob: float = MixConfig.mixup_prob
    mixup_switch_prob: float = MixConfig.mixup_switch_prob
    mixup_group: int = MixConfig.mixup_group
    """The number of neighbouring samples that share lambda, mode and box: 2 is a pair, 256 is
    deit's layout on 4 GPUs."""

    def __post_init__(self) -> None:
        self._require("seed", 0 <= self.seed < 2**32, "0 to 4294967295")
        self._require_each(["input_size", "repeats"], 1)
        self._require_span("scale", most=1)
        self._require_span("ratio")
        self._require_probabilities("hflip", "ra_prob", "reprob", "mixup_prob", "mixup_switch_prob")
        at_least_0 = ["ra_layers", "ra_magnitude", "ra_std", "color_jitter", "mixup", "cutmix"]
        self._require_each(at_least_0, 0)
        both = self.three_augment and self.ra_layers > 0
        self._require("ra_layers", not both, "0 with three_augment")
        padded = self.input_size >= SIMPLE_CROP_LEAST or not self.simple_crop
        allowed = f"{SIMPLE_CROP_LEAST} or more with simple_crop"
        self._require("input_size", padded, allowed)
        known = self.remode in ("const", "rand", "pixel")
        self._require("remode", known, "one of const, rand, pixel")
        self._require_pairs("mixup_group")
        if self.cutmix_minmax:
            self._require_span("cutmix_minmax", most=1)

    def _require(self, name: str, ok: bool, allowed: str) -> None:
        require_value(ok, name, getattr(self, name), allowed)

    @property
    def layer_ops(self) -> tuple[tuple[str, ...], ...]:
        """Return, for each layer of operations, the names out of `OPS` that it is drawn from:
        RandAugment's layers, or 3-Augment's one; then the colour jitter's three."""
        layers: list[tuple[str, ...]] = [RAND_AUGMENT_OPS] * self.ra_layers
        if self.three_augment:
            layers += [THREE_OPS]
        if self.color_jitter > 0:
            layers += [JITTER_OPS] * 3
        return tuple(layers)

    @property
    def layers(self) -> int:
        """Return the number of operations that a sample goes through."""
        return len(self.layer_ops)

    @property
    def cuts(self) -> bool:
        """Return True if some samples may be mixed by CutMix."""
        return self.cutmix > 0 or self.cutmix_minmax is not None

    @property
    def mixes(self) -> bool:
        """Return True if some samples may be mixed at all."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cuts)

    def describe(self) -> str:
        """Return one line with the stages that a sample goes through, in their order.

        A stage that is off is not in it. Of a stage that is on, the first arguments are always
        shown, the others where they differ from `PlanSpec()`: `resized_crop(0.08-1)|...`.
        """
        steps = [self._describe_crop(), *self._describe_operations(), "normalise"]
        if self.repeats > 1:
            steps.insert(0, f"repeat({self.repeats})")
        if self.reprob:
            steps.append(self._step("erase", ["reprob", "remode"], ["erase_area", "erase_ratio"]))
        if self.mixes:
            steps.append(self._describe_mix())
        return "|".join(steps)

    def _describe_crop(self) -> str:
        crop = self._step("resized_crop", ["scale"], ["ratio"])
        if self.simple_crop:
            crop = "simple_crop"
        return f"{crop}|hflip({_shown(self.hflip)})" if self.hflip else crop

    def _describe_operations(self) -> list[str]:
        steps = []
        if self.ra_layers:
            others = ["ra_max", "ra_prob"]
            steps.append(self._step("randaug", ["ra_layers", "ra_magnitude", "ra_std"], others))
        if self.three_augment:
            steps.append("3-augment")
        if self.color_jitter:
            steps.append(f"color_jitter({_shown(self.color_jitter)})")
        return steps

    def _describe_mix(self) -> str:
        kinds = []
        if self.mixup:
            kinds.append(self._step("mixup", ["mixup"], []))
        if self.cuts:
            kinds.append(self._step("cutmix", ["cutmix"], ["cutmix_minmax"]))
        arguments = self._arguments([], ["mixup_prob", "mixup_group"])
        if len(kinds) == 2:
            arguments += self._arguments([], ["mixup_switch_prob"])
        return "/".join(kinds + arguments)

    def _step(self, step: str, always: list[str], if_changed: list[str]) -> str:
        return f"{step}({','.join(self._arguments(always, if_changed))})"

    def _arguments(self, always: list[str], if_changed: list[str]) -> list[str]:
        changed = [name for name in if_changed if getattr(self, name) != _DEFAULT[name]]
        return [
            f"{_PREFIX.get(name, '')}{_shown(getattr(self, name))}" for name in always + changed
        ]


_DEFAULT = {field.name: field.default for field in dataclasses.fields(PlanSpec)}
# in `describe`: timm's short names for RandAugment's arguments, our own for the others
_PREFIX = {
    "ra_magnitude": "m",
    "ra_std": "std",
    "ra_max": "max",
    "ra_prob": "p",
    "ratio": "ratio",
    "erase_area": "area",
    "erase_ratio": "ratio",
    "cutmix_minmax": "side",
    "mixup_prob": "p",
    "mixup_switch_prob": "switch",
    "mixup_group": "group",
}


def _shown(value: object) -> str:
    """Return a number in its shortest form, or both ends of a range."""
    if isinstance(value, tuple):
        return "-".join(_shown(end) for end in value)
    return f"{value:g}" if isinstance(value, int | float) else str(value)
