"""The flags of deit and timm, against the complete lists of both programs."""

import re

import pytest

from fastdeit.config.cli import parse_config
from fastdeit.config.flags import own_flags
from fastdeit.config.peer_flags import ANY, PEER_FLAGS, SWITCH, PeerFlag
from fastdeit.config.peers import translate_flags
from fastdeit.config.schema import Config
from tests.support.launching import ROOT

DEIT = """
--batch-size --epochs --bce-loss --unscale-lr --model --input-size --drop --drop-path
--model-ema --no-model-ema --model-ema-decay --model-ema-force-cpu --opt --opt-eps --opt-betas
--clip-grad --momentum --weight-decay --sched --lr --lr-noise --lr-noise-pct --lr-noise-std
--warmup-lr --min-lr --decay-epochs --warmup-epochs --cooldown-epochs --patience-epochs
--decay-rate --dr --color-jitter --smoothing --train-interpolation --repeated-aug
--no-repeated-aug --train-mode --no-train-mode --ThreeAugment --src --reprob --remode --recount
--resplit --mixup --cutmix --cutmix-minmax --mixup-prob --mixup-switch-prob --mixup-mode
--teacher-model --teacher-path --distillation-type --distillation-alpha --distillation-tau
--cosub --finetune --attn-only --data-path --data-set --inat-category --output_dir --device
--seed --resume --start_epoch --eval --eval-crop-ratio --dist-eval --num_workers --pin-mem
--no-pin-mem --distributed --world_size --dist_url --aa
"""
"""Every flag of main.py of facebookresearch/deit 7e160fe."""

SUBMITIT = """
--ngpus --nodes --timeout --job_dir --partition --use_volta32 --comment
"""
"""Those that run_with_submitit.py of the same commit adds."""

TIMM = """
-c --config --data-dir --dataset --train-split --val-split --train-num-samples --val-num-samples
--dataset-download --class-map --input-img-mode --input-key --target-key
--dataset-trust-remote-code --model --pretrained --pretrained-path --initial-checkpoint --resume
--no-resume-opt --num-classes --gp --img-size --in-chans --input-size --crop-pct --mean --std
--interpolation -b --batch-size -vb --validation-batch-size --channels-last --fuser
--grad-accum-steps --grad-checkpointing --fast-norm --model-kwargs --head-init-scale
--head-init-bias --torchcompile-mode --torchscript --torchcompile --device --amp --amp-dtype
--model-dtype --no-ddp-bb --synchronize-step --local_rank --device-modules --opt --opt-eps
--opt-betas --momentum --weight-decay --clip-grad --clip-mode --layer-decay
--layer-decay-min-scale --layer-decay-no-opt-scale --opt-kwargs --sched --sched-on-updates --lr
--lr-base --lr-base-size --lr-base-scale --lr-noise --lr-noise-pct --lr-noise-std --lr-cycle-mul
--lr-cycle-decay --lr-cycle-limit --lr-k-decay --warmup-lr --min-lr --epochs --epoch-repeats
--start-epoch --decay-milestones --decay-epochs --warmup-epochs --cooldown-epochs
--patience-epochs --decay-rate --dr --no-aug --scale --ratio --hflip --vflip --color-jitter
--color-jitter-prob --grayscale-prob --gaussian-blur-prob --aug-repeats --aug-splits --jsd-loss
--bce-loss --bce-sum --bce-target-thresh --bce-pos-weight --reprob --remode --recount --resplit
--mixup --cutmix --cutmix-minmax --mixup-prob --mixup-switch-prob --mixup-mode --mixup-off-epoch
--smoothing --train-interpolation --drop --drop-connect --drop-path --drop-block --bn-momentum
--bn-eps --sync-bn --dist-bn --split-bn --model-ema --model-ema-force-cpu --model-ema-decay
--model-ema-warmup --seed --worker-seeding --log-interval --val-interval --recovery-interval
--checkpoint-hist -j --workers --save-images --pin-mem --no-prefetcher --output --experiment
--eval-metric --tta --use-multi-epochs-loader --log-wandb --wandb-project --wandb-tags
--wandb-resume-id --train-img-sizes --train-batch-sizes --train-size-probs --train-size-schedule
--train-size-schedule-spread --train-size-random-mix --train-batches-per-epoch
--train-steps-per-epoch --variable-batch-loss-scale --naflex-loader --naflex-train-seq-lens
--naflex-max-seq-len --naflex-patch-sizes --naflex-patch-size-probs --naflex-loss-scale
--naflex-patchify-channels-first --kd-model-name --kd-distill-type --kd-loss-type
--distill-loss-weight --task-loss-weight --kd-temperature --kd-student-feature-dim
--kd-teacher-feature-dim --kd-token-distill-type --warmup-prefix --train-crop-mode --aa
"""
"""Every flag of train.py of huggingface/pytorch-image-models aa4b5850 (1.0.29.dev0)."""

PEERS = sorted({*DEIT.split(), *SUBMITIT.split(), *TIMM.split()})
LAUNCHERS = {"--num_gpus"}


def dashed(flag: str) -> str:
    return flag.replace("_", "-")


def parse(*argv: str) -> Config:
    return parse_config(argv, "test")[0]


def table() -> list[str]:
    """Return the rows of docs/coming-from-deit.md, one for the flags that share an entry."""
    names: dict[int, list[str]] = {}
    for name, peer in PEER_FLAGS.items():
        names.setdefault(id(peer), []).append(f"`{name}`")
    return [
        f"| {' '.join(shared)} | {describe(PEER_FLAGS[shared[0].strip('`')])} |"
        for shared in names.values()
    ]


def describe(peer: PeerFlag) -> str:
    """Return what an entry of the table means, as a cell of Markdown."""
    parts = []
    for value, own in peer.accepts.items():
        given = "" if value in (ANY, SWITCH) else f"`{value}`: "
        effect = "accepted, without effect" if value == ANY else "accepted"
        parts.append(given + (f"`{own.replace(' {}', '')}`" if own else effect))
    advice = f"{peer.advice[0].upper()}{peer.advice[1:]}" if peer.advice else ""
    return ". ".join(part for part in ("; ".join(parts), advice) if part)


def test_the_page_for_users_of_deit_and_timm_lists_every_flag() -> None:
    page = (ROOT / "docs" / "coming-from-deit.md").read_text(encoding="utf-8")
    section = page.partition("## Every flag")[2]
    rows = [line for line in section.splitlines() if line.startswith("| `-")]
    assert rows == table()


@pytest.mark.parametrize("flag", PEERS)
def test_every_flag_of_deit_and_timm_is_known_accepted_or_has_advice(flag: str) -> None:
    peer = PEER_FLAGS.get(dashed(flag))
    if peer is None:
        assert dashed(flag) in own_flags()
    else:
        assert peer.advice or peer.accepts


def test_the_table_has_no_flag_of_another_program() -> None:
    assert set(PEER_FLAGS) <= set(map(dashed, PEERS))


@pytest.mark.parametrize("flag", PEER_FLAGS)
def test_a_value_that_is_not_built_is_refused_in_one_line_of_advice(flag: str) -> None:
    peer = PEER_FLAGS[flag]
    if ANY in peer.accepts:
        return
    argv = [f"{flag}=other"] if SWITCH in peer.accepts else [flag, "other"]
    with pytest.raises(ValueError, match=f"^{flag} (of deit and timm|must be) .*") as refused:
        translate_flags(argv)
    assert "\n" not in str(refused.value) and peer.advice in str(refused.value)


@pytest.mark.parametrize("flag", PEER_FLAGS)
def test_advice_and_translations_name_flags_that_exist(flag: str) -> None:
    peer = PEER_FLAGS[flag]
    named = set(re.findall(r"--[\w-]+", f"{peer.advice} {' '.join(peer.accepts.values())}"))
    assert named <= {*own_flags(), *LAUNCHERS}


@pytest.mark.parametrize(
    ("flag", "value"),
    [(flag, value) for flag, peer in PEER_FLAGS.items() for value in peer.accepts],
)
def test_accepted_values_parse(flag: str, value: str) -> None:
    some = {"--kd-token-distill-type": "hard", "--crop-pct": "0.9"}.get(flag, "4")
    argv = [flag] if value == SWITCH else [flag, some if value == ANY else value]
    argv += ["--finetune", "FILE"] if flag == "--attn-only" else []
    if flag != "-c":
        parse(*argv)
