"""A run of DeiT III from its first step to its weights: LAMB, LayerScale, registers, cosub."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from fastdeit.commands.runs.replay import replay_command
from fastdeit.commands.runs.train import train_command
from fastdeit.inference.load import load_model
from tests.support.images import write_shapes

SMALL = (
    "--input-size 32 --patch-size 8 --embed-dim 32 --depth 3 --num-heads 2 --registers 2".split()
)
FORM = "--epochs 2 --batch-size 12 --warmup-epochs 1 --log-steps 1 --aug-repeats 2".split()
COSUB = "--cosub --drop-path 0.4".split()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The command of a run, without its folder, and the folder of the finished run."""
    root = tmp_path_factory.mktemp("deit3")
    data = write_shapes(root / "data", train=8)
    argv = ["--recipe", "deit3", "--data-path", str(data), *SMALL, *FORM, *COSUB]
    assert train_command([*argv, "--output-dir", str(root / "run")]) == 0
    return argv, root / "run"


def test_a_resumed_run_is_the_same_bit_for_bit(
    whole: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, folder = whole
    here = [*argv, "--output-dir", str(tmp_path / "run")]
    assert train_command([*here, "--stop-after-steps", "1"]) == 0
    assert train_command(here) == 0
    for name in ("model.safetensors", "model_ema.safetensors"):
        torch.testing.assert_close(
            load_file(tmp_path / "run" / name), load_file(folder / name), rtol=0, atol=0
        )


def test_every_step_is_replayed_with_the_losses_of_its_samples(
    whole: tuple[list[str], Path],
) -> None:
    _, folder = whole
    assert replay_command([str(folder), "--step", "2"]) == 0
    step = json.loads((folder / "replay-2" / "step.json").read_text())
    samples = step["samples"]
    assert len(samples) == 12
    mean = sum(sample["loss"] for sample in samples) / len(samples)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    recorded = next(line for line in lines if line["step"] == 3)
    assert mean == pytest.approx(recorded["by_step"]["loss"][-1], rel=1e-5)


def test_timm_loads_the_run_and_gives_its_logits(whole: tuple[list[str], Path]) -> None:
    _, folder = whole
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = load_model(folder).model(images)
        torch.testing.assert_close(theirs(images), ours, rtol=0, atol=1e-5)
    assert theirs.blocks[0].ls1.gamma.abs().min() > 0 and theirs.reg_token.shape[1] == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--distillation-type", "hard"], "--cosub must be off without --bce-loss and --distil"),
        (["--no-bce-loss"], "--cosub must be off without --bce-loss"),
        (["--drop-path", "0"], "--drop-path must be above 0 with --cosub (got 0.0)"),
    ],
)
def test_cosub_without_what_it_needs_is_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        train_command(["--recipe", "deit3", "--data-path", "d", *COSUB, *flags])
    assert end.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
