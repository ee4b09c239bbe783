"""The plan of a run, built from its `Config`."""

import numpy as np

from fastdeit.config.schema import Config
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec


def build_plan(config: Config, sizes: np.ndarray) -> Plan:
    """Build the plan of a run over its training images; sizes: int32 (N, 2), height and width."""
    return Plan(build_spec(config), sizes)


def build_spec(config: Config) -> PlanSpec:
    """Build the distributions that the plan of a run draws from."""
    augment = config.augment
    mix = config.mix
    return PlanSpec(
        seed=config.run.seed,
        input_size=config.data.input_size,
        repeats=augment.aug_repeats if augment.repeated_aug else 1,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        reprob=augment.reprob,
        remode=augment.remode,
        mixup=mix.mixup,
        cutmix=mix.cutmix,
        cutmix_minmax=mix.cutmix_minmax,
        mixup_prob=mix.mixup_prob,
        mixup_switch_prob=mix.mixup_switch_prob,
        mixup_group=mix.mixup_group,
        simple_crop=augment.src,
        **augment.operations(),
    )
