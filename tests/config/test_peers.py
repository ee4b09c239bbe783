"""Command lines of deit and timm, translated."""

import pytest

from fastdeit.config.cli import parse_config
from fastdeit.config.peers import list_unused, translate_flags
from fastdeit.config.schema import Config


def parse(*argv: str) -> Config:
    return parse_config(argv, "test")[0]


BUILT_ANYWAY = """--opt adamw --sched=cosine --mixup-mode batch --recount 1 --train-interpolation
bicubic --device cuda --pin-mem --no-pin-mem --dist-eval --start_epoch 0 --data-set IMNET
--dist_url env:// --world_size=1 --distributed --drop 0.0 --train-mode --clip-mode norm"""


def test_flags_for_what_is_built_anyway_change_nothing() -> None:
    assert parse(*BUILT_ANYWAY.split()) == parse()
    assert not list_unused(BUILT_ANYWAY.split())


@pytest.mark.parametrize(
    ("peer", "own"),
    [
        ("--ThreeAugment", "--aa 3a --reprob 0"),
        ("--no-repeated-aug", "--no-repeated-aug"),
        ("--aug-repeats 0", "--no-repeated-aug"),
        ("--aug-repeats 3", "--aug-repeats 3"),
        ("--no-model-ema", "--no-model-ema"),
        ("--num_workers 10", "--num-workers 10"),
        ("-j 4", "--num-workers 4"),
        ("--workers=4", "--num-workers 4"),
        ("-b 128", "--batch-size 128"),
        ("--data-dir /data", "--data-path /data"),
        ("--data_dir=/data", "--data-path /data"),
        ("--input-size 3 192 192", "--input-size 192"),
        ("--img-size 192", "--input-size 192"),
        ("--crop-pct 0.9", "--eval-crop-ratio 0.9"),
        ("--kd-temperature 4", "--distillation-tau 4"),
        ("--kd-token-distill-type soft", "--distillation-type soft"),
        ("--mixup-mode pair", "--mixup-group 2"),
        ("--output_dir out --opt-betas 0.9 0.95", "--output-dir out --opt-betas 0.9 0.95"),
        ("--color-jitter 0.4 --lr -1 --aa none", "--color-jitter 0.4 --lr -1 --aa none"),
        ("--amp --amp-dtype bfloat16", "--precision auto"),
    ],
)
def test_another_name_of_a_flag_means_the_same(peer: str, own: str) -> None:
    translated = translate_flags(peer.split())
    if "-1" in translated:
        assert translated == own.split()
    else:
        assert parse(*translated) == parse(*own.split()) == parse(*peer.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--opt sgd", "--opt must be adamw (got 'sgd'): the optimizer is AdamW"),
        ("--pin-mem=no", "--pin-mem must be without a value (got 'no')"),
        ("--data-set CIFAR", "--data-set must be IMNET, any or digits (got 'CIFAR'): "),
        ("--input-size 3 224 192", "--input-size must be a whole number (got '3 224 192')"),
    ],
)
def test_what_has_no_counterpart_is_refused_in_one_line(argv: str, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse(*argv.split())
    assert str(refused.value).startswith(message) and "\n" not in str(refused.value)


def test_flags_without_effect_are_listed() -> None:
    argv = "--model x --nodes 2 --use_volta32 --momentum=0.9 --opt adamw".split()
    assert list_unused(argv) == ["--nodes 2", "--momentum=0.9"]
