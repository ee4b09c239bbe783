"""The findings on the samples, from the distributions that a plan draws from."""

from fastdeit.audit.findings import Finding, Findings
from fastdeit.plan.spec import PlanSpec

_WANTED = PlanSpec(repeats=3)
"""The plan of DeiT, which has the other defaults of `PlanSpec`."""


def read_plan(spec: PlanSpec) -> Findings:
    """Return the findings on what happens to a sample."""
    return {
        "repeated_augmentation": read_repeats(spec.repeats),
        "crop_and_flip": _read_crop(spec),
        "rand_augment": _read_operations(spec),
        "erasing": _read_erasing(spec),
        "mixup": _read_mixup(spec),
        "cutmix": _read_cutmix(spec),
    }


def read_repeats(copies: int) -> Finding:
    """Return the finding on the copies of an image in an epoch."""
    text = "1 copy" if copies == 1 else f"{copies} copies"
    return Finding(text, copies == _WANTED.repeats)


def _read_crop(spec: PlanSpec) -> Finding:
    crop = "SimpleRandomCrop"
    if not spec.simple_crop:
        low, high = spec.scale
        crop = f"RandomResizedCrop {low:g} to {high:g}"
        if spec.ratio != _WANTED.ratio:
            crop += ", width / height {:.3g} to {:.3g}".format(*spec.ratio)
    is_equal = not spec.simple_crop and _has(spec, "scale", "ratio", "hflip")
    return Finding(f"{crop}, flip {spec.hflip:g}", is_equal)


def _has(spec: PlanSpec, *names: str) -> bool:
    """Return True if these fields have DeiT's values."""
    return all(getattr(spec, name) == getattr(_WANTED, name) for name in names)


def _read_operations(spec: PlanSpec) -> Finding:
    parts = []
    if spec.ra_layers:
        parts.append(_describe_rand_augment(spec))
    if spec.three_augment:
        parts.append("3-Augment")
    if spec.color_jitter:
        parts.append(f"colour jitter {spec.color_jitter:g}")
    fields = ("ra_layers", "ra_magnitude", "ra_std", "ra_max", "ra_prob")
    is_equal = _has(spec, *fields, "three_augment", "color_jitter")
    return Finding(", ".join(parts) or "none", is_equal)


def _describe_rand_augment(spec: PlanSpec) -> str:
    count = "1 operation" if spec.ra_layers == 1 else f"{spec.ra_layers} operations"
    text = f"{count}, magnitude {spec.ra_magnitude:g}, deviation {spec.ra_std:g}"
    if not _has(spec, "ra_prob", "ra_max"):
        text += f", each with probability {spec.ra_prob:g}, magnitude at most {spec.ra_max:g}"
    return text


def _read_erasing(spec: PlanSpec) -> Finding:
    if not spec.reprob:
        return Finding("none", False)
    fills = {"pixel": "noise", "const": "zeros", "rand": "one colour"}
    text = f"probability {spec.reprob:g}, {fills[spec.remode]}"
    return Finding(text, _has(spec, "reprob", "remode", "erase_area", "erase_ratio"))


def _read_mixup(spec: PlanSpec) -> Finding:
    if not (spec.mixup and spec.mixup_prob):
        return Finding("none", False)
    return Finding(f"Beta({spec.mixup:g}){_describe_mix(spec)}", _has(spec, "mixup") & _mixes(spec))


def _read_cutmix(spec: PlanSpec) -> Finding:
    if not (spec.cuts and spec.mixup_prob):
        return Finding("none", False)
    text = f"Beta({spec.cutmix:g})"
    if spec.cutmix_minmax:
        text = "a side of {:g} to {:g}".format(*spec.cutmix_minmax)
    is_equal = _has(spec, "cutmix", "cutmix_minmax") and _mixes(spec)
    return Finding(f"{text}{_describe_mix(spec)}", is_equal)


def _mixes(spec: PlanSpec) -> bool:
    """Return True if every sample is mixed, and as often by Mixup as by CutMix where both are on.

    Without one of them, the other is all there is: its row alone differs.
    """
    return _has(spec, "mixup_prob") and (not _has_both(spec) or _has(spec, "mixup_switch_prob"))


def _has_both(spec: PlanSpec) -> bool:
    return spec.cuts and spec.mixup > 0


def _describe_mix(spec: PlanSpec) -> str:
    """Return how often samples are mixed, and how often by CutMix, where that is not DeiT's."""
    text = "" if _has(spec, "mixup_prob") else f", {spec.mixup_prob:.0%} of the samples"
    is_usual = not _has_both(spec) or _has(spec, "mixup_switch_prob")
    return text if is_usual else f"{text}, CutMix in {spec.mixup_switch_prob:.0%} of them"
