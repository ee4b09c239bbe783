"""Whole runs in one process: what they leave behind, resuming bit for bit, and every error before
training starts."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.train import train_command as run_command
from fastdeit.config.recipes import RECIPES
from fastdeit.data import build, quarantine
from fastdeit.data.batch import Batch
from fastdeit.data.loader import TrainLoader
from fastdeit.data.quarantine import read_quarantine
from fastdeit.distributed.world import init_distributed
from fastdeit.run.preflight import check_config
from fastdeit.storage.jsonl import read_json_lines
from tests.support.compare_runs import assert_same_weights
from tests.support.images import write_shapes
from tests.support.ranks import Ranks, run_fastdeit

ROOT = Path(__file__).parents[2]
MODEL = "--model deit_tiny_distilled_patch16_224 --patch-size 8 --embed-dim 32 --depth 2 --num-heads 2".split()
SMALL = "--input-size 32 --batch-size 8 --epochs 3 --warmup-epochs 1 --lr 0.05 --log-steps 2 --drop-path 0.3".split()
ALONE = [*MODEL, *SMALL, "--distillation-type", "none"]


def train_command(argv: list[str], prog: str) -> int:
    """The exit code, however the command ends."""
    try:
        return run_command(argv, prog)
    except SystemExit as end:
        return int(str(end.code))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    init_distributed()
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="module")
def teacher(shapes: Path) -> Path:
    folder = shapes.parent / "teacher"
    argv = [
        "--data-path",
        str(shapes),
        *SMALL,
        "--model",
        "test_resnet",
        "--distillation-type",
        "none",
        "--drop-path",
        "0",
    ]
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    return folder / "student.safetensors"


@pytest.fixture(scope="module")
def distilled(shapes: Path, teacher: Path) -> tuple[list[str], Path]:
    argv = [
        "--data-path",
        str(shapes),
        *MODEL,
        *SMALL,
        "--teacher-model",
        "test_resnet",
        "--teacher-path",
        str(teacher),
    ]
    folder = shapes.parent / "distilled"
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    return argv, folder


def test_a_run_leaves_what_it_says(distilled: tuple[list[str], Path], shapes: Path) -> None:
    folder = distilled[1]
    names = {path.name for path in folder.iterdir()}
    files = {
        "config.yaml",
        "deepspeed.json",
        "attempts.jsonl",
        "metrics.jsonl",
        "summary.json",
        "report.png",
    }
    files |= {"student.safetensors", "student_ema.safetensors", "train-images.parquet"}
    assert names == files | {"checkpoints", "tensorboard"}
    assert [path.name for path in list_checkpoints(folder / "checkpoints")] == [
        "step-00000009",
        "step-00000006",
    ]
    with safe_open(folder / "student.safetensors", framework="pt") as file:
        about = file.metadata()
        assert "blocks.0.attn.qkv.weight" in file.keys()  # noqa: SIM118
        assert file.get_tensor("head.weight").dtype == torch.float32
    assert about["model"] == "deit_tiny_distilled_patch16_224"
    assert (
        json.loads(about["classes"]) == ["circle", "square", "stripe"]
        and json.loads(about["input_size"]) == 32
    )
    lines = read_json_lines(folder / "metrics.jsonl")
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == [2, 3, 4, 6, 8, 9]
    assert all(
        abs(0.5 * (line["base"] + line["distill"]) - line["loss"]) < 1e-5
        for line in lines
        if "loss" in line
    )
    results = json.loads((folder / "summary.json").read_text())["results"]
    heads = {
        f"{model}/{head}/{measure}"
        for model in ("model", "ema")
        for head in ("cls", "dist", "both")
        for measure in ("top1", "top5")
    }
    assert heads | {"teacher/both/top1", "model/both/agreement"} <= set(results)


def test_the_table_counts_every_image_once(distilled: tuple[list[str], Path], shapes: Path) -> None:
    """9 validation images, batch 8: the top-1 of the exported weights, image by image with PIL, is
    the table's."""
    import numpy as np
    from PIL import Image
    from torchvision.transforms import functional as vision

    from fastdeit.config.samples import IMAGENET_MEAN, IMAGENET_STD
    from fastdeit.models.weights import student_from_checkpoint

    model = student_from_checkpoint(distilled[1] / "student.safetensors", image_size=32)[0].eval()
    right = []
    for label, name in enumerate(("circle", "square", "stripe")):
        for file in sorted((shapes / "val" / name).iterdir()):
            image = vision.resize(
                Image.open(file).convert("RGB"), int(32 / 0.875), vision.InterpolationMode.BICUBIC
            )
            pixels = (
                torch.from_numpy(np.array(vision.center_crop(image, [32, 32]))).permute(2, 0, 1)
                / 255
            )
            pixels = vision.normalize(pixels, list(IMAGENET_MEAN), list(IMAGENET_STD))
            with torch.no_grad():
                right.append(model(pixels[None]).argmax().item() == label)
    results = json.loads((distilled[1] / "summary.json").read_text())["results"]
    assert len(right) == 9
    # resizing differs by a level or two between DALI and PIL, so one image may fall on the other
    # side
    assert abs(results["model/both/top1"] - 100 * sum(right) / 9) < 100 / 9 + 0.01
    assert round(results["model/both/top1"] * 9 / 100, 6) % 1 == 0


@pytest.mark.parametrize("stop", [3, 4, 8])
def test_stopped_and_started_again_ends_bit_for_bit_the_same(
    stop: int, distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    assert (
        train_command(
            [*argv, "--output-dir", str(tmp_path), "--stop-after-steps", str(stop)], "test"
        )
        == 0
    )
    assert not (tmp_path / "summary.json").exists()
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == f"step-{stop:08}"
    assert train_command([*argv, "--output-dir", str(tmp_path)], "test") == 0
    assert_same_weights(whole, tmp_path)
    # the log reads like that of a run that was never stopped; a window of the mean may start at the
    # stop
    mine, theirs = (read_json_lines(folder / "metrics.jsonl") for folder in (tmp_path, whole))
    assert [line["step"] for line in mine] == [line["step"] for line in theirs]
    assert mine[-1] == theirs[-1]


def test_killed_in_the_middle_of_an_epoch_ends_bit_for_bit_the_same(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    folder = tmp_path / "run"
    command = ["train", *argv, "--output-dir", str(folder), "--save-steps", "1"]
    first = Ranks(tmp_path / "log", run_fastdeit, command, world_size=1)
    deadline = time.monotonic() + 120
    while (
        not list_checkpoints(folder / "checkpoints")
        and time.monotonic() < deadline
        and first.is_alive
    ):
        time.sleep(0.002)
    first.kill()
    assert list_checkpoints(folder / "checkpoints"), "no checkpoint was seen before the kill"
    again = Ranks(tmp_path / "log", run_fastdeit, command, world_size=1)
    assert again.wait() == 0, again.output
    assert_same_weights(whole, folder)


def test_a_damaged_newest_checkpoint_is_passed_over(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    for stop in (4, 2):  # checkpoints of steps 3, 4 (and 6 after the second start)
        assert (
            train_command(
                [*argv, "--output-dir", str(tmp_path), "--stop-after-steps", str(stop)], "test"
            )
            == 0
        )
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    (newest / "exp_avg.safetensors").write_bytes(b"not this")
    assert train_command([*argv, "--output-dir", str(tmp_path)], "test") == 0
    assert_same_weights(whole, tmp_path)


def test_the_written_config_repeats_the_run(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv = ["--config", str(distilled[1] / "config.yaml"), "--output-dir", str(tmp_path)]
    assert train_command(argv, "test") == 0
    assert_same_weights(distilled[1], tmp_path)


def test_accumulation_gives_the_same_run(distilled: tuple[list[str], Path], tmp_path: Path) -> None:
    argv, whole = distilled
    assert (
        train_command(
            [*argv, "--output-dir", str(tmp_path), "--micro-batch", "2", "--zero-stage", "2"],
            "test",
        )
        == 0
    )
    left, right = (load_file(folder / "student.safetensors") for folder in (whole, tmp_path))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5)


def test_a_finished_run_and_a_run_with_other_settings(
    distilled: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    argv, folder = distilled
    before = (folder / "student.safetensors").stat().st_mtime_ns
    assert train_command([*argv, "--output-dir", str(folder)], "test") == 0
    assert (
        "finished" in capfd.readouterr().out
        and (folder / "student.safetensors").stat().st_mtime_ns == before
    )
    assert train_command([*argv, "--output-dir", str(folder), "--lr", "0.1"], "test") == 2
    assert "optim.lr 0.05 -> 0.1" in capfd.readouterr().err


def test_a_checkpoint_of_other_data_is_refused(
    distilled: tuple[list[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv, whole = distilled
    checkpoint = list_checkpoints(whole / "checkpoints")[0]
    other = write_shapes(tmp_path / "data", train=9)
    assert (
        train_command(
            [
                *argv,
                "--data-path",
                str(other),
                "--resume",
                str(checkpoint),
                "--output-dir",
                str(tmp_path / "run"),
            ],
            "test",
        )
        == 2
    )
    assert "was saved with another plan" in capfd.readouterr().err


def test_finetuning_from_published_weights(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A timm checkpoint of another resolution, class count and with QKV bias."""
    import timm
    from safetensors.torch import save_file

    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(
        name, img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=7
    )
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    argv = [
        "--data-path",
        str(shapes),
        *ALONE,
        "--finetune",
        str(tmp_path / "timm.safetensors"),
        "--stop-after-steps",
        "1",
    ]
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")], "test") == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "--qkv-bias turned on" in said
        and "resized from 8 x 8 to 4 x 4" in said
        and "7 classes in the file, 3 here" in said
    )


def test_finetuning_a_timm_model(
    shapes: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    import timm
    from safetensors.torch import save_file

    save_file(
        timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "seven.safetensors"
    )
    for weights, model, code, said in (
        (teacher, "test_resnet", 0, "stopped after step 1"),
        (
            tmp_path / "seven.safetensors",
            "test_resnet",
            0,
            "fc left as initialised: 7 classes in the file",
        ),
        (teacher, "test_byobnet", 2, "the checkpoint does not fit the model"),
    ):
        argv = [
            "--data-path",
            str(shapes),
            *SMALL,
            "--model",
            model,
            "--distillation-type",
            "none",
            "--stop-after-steps",
            "1",
        ]
        folder = tmp_path / f"{model}-{weights.stem}"
        assert (
            train_command([*argv, "--finetune", str(weights), "--output-dir", str(folder)], "test")
            == code
        )
        printed = capfd.readouterr()
        assert said in printed.out + printed.err
        assert folder.exists() == (code == 0)


def _no_images(root: Path) -> None:
    shutil.rmtree(root / "train" / "circle")
    (root / "train" / "circle").mkdir()


def _bad_image(root: Path) -> None:
    file = next((root / "train" / "square").glob("*.jpg"))
    file.unlink()
    file.write_text("no image")


WRONG = {
    "no folder": (None, ["--data-path", "/nowhere/at/all"], "/nowhere/at/all: no such folder"),
    "no path": (None, ["--data-path", ""], "--data-path must be a data set"),
    "empty class": (_no_images, [], "circle: no images"),
    "unreadable image": (_bad_image, ["--bad-images", "error"], "square"),
    "no val": (lambda root: shutil.rmtree(root / "val"), [], "'val'"),
    "unknown model": (None, ["--model", "deit_tinny"], "near: "),
    "unknown recipe": (
        None,
        ["--recipe", "imagenet"],
        "--recipe must be one of deit",
    ),
    "unknown flag": (None, ["--batchsize", "3"], "Unrecognized options: --batchsize"),
    "no teacher": (
        None,
        ["--distillation-type", "hard"],
        "--teacher-path must be an existing file",
    ),
    "teacher of one head": (
        None,
        ["--model", "resnet10t", "--distillation-type", "soft"],
        "--distillation-type must be none",
    ),
    "plain student, teacher": (
        None,
        ["--model", "deit_tiny_patch16_224", "--distillation-type", "soft"],
        "_distilled_",
    ),
    "micro batch": (None, ["--micro-batch", "6"], "--micro-batch must be a divisor of 8"),
    "batch too large": (None, ["--batch-size", "32"], "batch_size must be 1 to 24"),
    "patch size": (None, ["--patch-size", "7"], "patch size 7"),
    "output below a file": (None, ["--output-dir", f"{__file__}/run"], "cannot be written below"),
    "no resume": (None, ["--resume", "/nowhere"], "/nowhere: no checkpoint"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_mistake_is_one_clear_error_with_code_2_and_leaves_nothing(
    case: str, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, flags, message = WRONG[case]
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, data)
    if spoil is not None:
        spoil(data)
    code = train_command(
        ["--data-path", str(data), *ALONE, "--output-dir", str(folder), *flags], "test"
    )
    printed = capfd.readouterr().err
    assert code == 2
    assert message in " ".join(printed.replace("│", " ").split())
    assert "Traceback" not in printed
    assert not folder.exists()


def test_batches_must_divide_among_processes() -> None:
    config = RECIPES["digits"]().replace(optim={"batch_size": 12})
    with pytest.raises(
        ValueError, match=r"--batch-size must be a multiple of 8 on 4 processes \(got 12\)"
    ):
        check_config(config, 4)


def test_a_teacher_of_other_classes_is_refused(
    shapes: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for split in ("train", "val"):
        (data / split / "stripe").rename(data / split / "bar")
    argv = [
        "--data-path",
        str(data),
        *MODEL,
        *SMALL,
        "--teacher-model",
        "test_resnet",
        "--teacher-path",
        str(teacher),
    ]
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")], "test") == 2
    assert "knows other classes" in capfd.readouterr().err
    for split in ("train", "val"):
        shutil.rmtree(data / split / "bar")
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")], "test") == 2
    assert "3 classes" in capfd.readouterr().err and not (tmp_path / "run").exists()


def test_commands_and_their_usage() -> None:
    def fastdeit(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fastdeit", *argv], cwd=ROOT, capture_output=True, text=True
        )

    asked, wrong = fastdeit("--help"), fastdeit("trian")
    assert asked.returncode == 0 and "train" in asked.stdout
    assert wrong.returncode == 2 and "no command 'trian'" in wrong.stderr


def damaging(path: Path) -> type[TrainLoader]:
    """A loader before whose first batch a file is emptied."""

    class Damaging(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            path.write_bytes(b"")
            return super().epoch(epoch, first_step)

    return Damaging


def test_a_run_survives_files_that_break_before_and_while_it_trains(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One before the run, one while it stands still, one after its table was read: the run ends,
    and tells of each."""
    data, out = shutil.copytree(shapes, tmp_path / "data"), tmp_path / "run"
    argv = ["--data-path", str(data), *ALONE, "--output-dir", str(out)]
    (data / "train/circle/zz.jpg").write_text("no image")
    assert train_command([*argv, "--stop-after-steps", "1"], "test") == 0
    (data / "train/circle/00.png").unlink()
    monkeypatch.setattr(build, "TrainLoader", damaging(data / "train/square/01.jpg"))
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    assert train_command(argv, "test") == 0
    found = {
        image.name: image.fault for image in read_quarantine(out / "quarantine.jsonl", "train")
    }
    assert set(found) == {"train/circle/00.png", "train/square/01.jpg"}
    assert "since the run began" in found["train/circle/00.png"]
    assert [
        line["quarantined"] for line in read_json_lines(out / "metrics.jsonl") if "loss" in line
    ][-1] == 2
    assert (out / "summary.json").is_file()


def test_a_bad_file_in_mid_run_ends_it_if_asked(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    monkeypatch.setattr(build, "TrainLoader", damaging(data / "train/square/01.jpg"))
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    argv = [
        "--data-path",
        str(data),
        *ALONE,
        "--output-dir",
        str(tmp_path / "run"),
        "--bad-images",
        "error",
    ]
    assert train_command(argv, "test") == 1
    assert "train/square/01.jpg" in capsys.readouterr().err
