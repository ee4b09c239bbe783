"""Whole runs in one process: the files they write, resuming bit for bit, and errors before training
starts."""

import itertools
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.runs.train import train_command
from fastdeit.config.recipes import RECIPES
from fastdeit.data import quarantine
from fastdeit.data.loaders import train as loaders_train
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import read_quarantine
from fastdeit.distributed.world import init_distributed
from fastdeit.run.preflight import check_config
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import hash_tensors
from tests.support.compare_runs import assert_same_weights, steps_of, values_by_step
from tests.support.images import write_shapes
from tests.support.launching import ROOT
from tests.support.plain_timm import measure_with_timm
from tests.support.ranks import Ranks, run_fastdeit

MODEL = (
    "--model deit_tiny_distilled_patch16_224 --patch-size 8 --embed-dim 32 --depth 2 --num-heads 2"
).split()
SMALL = (
    "--input-size 32 --batch-size 8 --epochs 3 --warmup-epochs 1 --lr 0.05 "
    "--log-steps 2 --drop-path 0.3"
).split()
ALONE = [*MODEL, *SMALL, "--distillation-type", "none"]


def run(argv: list[str], folder: Path, *flags: str) -> int:
    """Run `fastdeit train` and return its exit code, however it ends."""
    try:
        return train_command([*argv, "--output-dir", str(folder), *flags])
    except SystemExit as end:
        return int(str(end.code))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    init_distributed()
    return write_shapes(tmp_path_factory.mktemp("shapes") / "data")


@pytest.fixture(scope="module")
def teacher(shapes: Path) -> Path:
    folder = shapes.parent / "teacher"
    flags = "--model test_resnet --distillation-type none --drop-path 0".split()
    assert run(["--data-path", str(shapes), *SMALL, *flags], folder) == 0
    return folder / "model.safetensors"


def distilled_flags(data: Path, teacher: Path) -> list[str]:
    taught = ["--teacher-model", "test_resnet", "--teacher-path", str(teacher)]
    return ["--data-path", str(data), *MODEL, *SMALL, *taught]


@pytest.fixture(scope="module")
def distilled(shapes: Path, teacher: Path) -> tuple[list[str], Path]:
    """The flags and the folder of a finished run with a teacher."""
    argv = distilled_flags(shapes, teacher)
    folder = shapes.parent / "distilled"
    assert run(argv, folder) == 0
    return argv, folder


def test_run_writes_its_files(distilled: tuple[list[str], Path], shapes: Path) -> None:
    folder = distilled[1]
    names = {path.name for path in folder.iterdir()}
    settings = {"config.yaml", "deepspeed.json", "inputs.json", "train-images.parquet"}
    logs = {"attempts.jsonl", "metrics.jsonl", "tensorboard", "checkpoints"}
    results = {"summary.json", "report.html", "predictions.parquet"}
    weights = {f"model{name}.safetensors" for name in ("", "_ema", "_best", "_ema_best")}
    assert names == settings | logs | results | weights | {"config.json"}
    checkpoints = [path.name for path in list_checkpoints(folder / "checkpoints")]
    assert checkpoints == ["step-00000009", "step-00000006"]


def test_weights_have_timm_names_and_metadata(distilled: tuple[list[str], Path]) -> None:
    folder = distilled[1]
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        about = file.metadata()
        assert "blocks.0.attn.qkv.weight" in file.keys()  # noqa: SIM118
        assert file.get_tensor("head.weight").dtype == torch.float32
    assert about["model"] == "deit_tiny_distilled_patch16_224"
    assert json.loads(about["classes"]) == ["circle", "square", "stripe"]
    assert json.loads(about["input_size"]) == 32


def test_log_and_results_are_complete(distilled: tuple[list[str], Path]) -> None:
    folder = distilled[1]
    lines = read_json_lines(folder / "metrics.jsonl")
    lines = [line for line in lines if "loss" in line]
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9]
    assert all(abs(0.5 * (line["base"] + line["distill"]) - line["loss"]) < 1e-5 for line in lines)
    assert [line["epoch"] for line in lines] == [0.6667, 1.0, 1.3333, 2.0, 2.6667, 3.0]
    assert [line["images_seen"] for line in lines] == [16, 24, 32, 48, 64, 72]
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs/log.md").read_text()))
    assert {name for line in lines for name in line} <= documented
    times = [line["time"] for line in lines]
    assert times == sorted(times) and 0 < time.time() - times[0] < 600
    for line in lines:
        for name in ("loss", "base", "distill", "grad_norm"):
            assert line[name] == pytest.approx(statistics.fmean(line["by_step"][name]), rel=1e-6)
    results = json.loads((folder / "summary.json").read_text())["results"]
    names = itertools.product(("model", "ema"), ("cls", "dist", "both"), ("top1", "top5"))
    expected = {"/".join(name) for name in names}
    assert expected | {"teacher/both/top1", "model/both/agreement"} <= set(results)


def test_config_file_begins_with_the_plan(distilled: tuple[list[str], Path]) -> None:
    first = (distilled[1] / "config.yaml").read_text().splitlines()[0]
    assert first.startswith("# plan: repeat(2)|resized_crop(") and "|mixup(" in first


@pytest.mark.parametrize("student", [True, False], ids=["student", "timm model"])
def test_plain_timm_gives_the_accuracy_of_the_run(
    student: bool, distilled: tuple[list[str], Path], teacher: Path, shapes: Path
) -> None:
    """With 9 validation images and batch 8, to the last digit: model and transform from the run
    folder, images from PIL."""
    folder = distilled[1] if student else teacher.parent
    results = json.loads((folder / "summary.json").read_text())["results"]
    for weights, name in (("", "model"), (folder / "model_ema.safetensors", "ema")):
        assert measure_with_timm(folder, shapes / "val", weights) == [
            results[f"{name}/both/{top}"] for top in ("top1", "top5")
        ]


def test_stopped_run_can_be_loaded_by_timm(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    assert run(argv, tmp_path, "--stop-after-steps", "2") == 0
    assert not (tmp_path / "model_best.safetensors").exists()  # not evaluated yet
    (checkpoint,) = list_checkpoints(tmp_path / "checkpoints")
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    stored = load_file(checkpoint / "model.safetensors")
    assert hash_tensors(model.state_dict()) == hash_tensors(stored)
    assert (tmp_path / "config.json").read_text() == (whole / "config.json").read_text()


def test_weights_of_a_run_that_has_not_finished_get_a_note(
    distilled: tuple[list[str], Path],
    shapes: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    argv = ["--data-path", str(shapes), *ALONE, "--stop-after-steps", "1"]
    first = tmp_path / "first"
    assert run(argv, first) == 0
    for source, noted in ((first, True), (distilled[1], False)):
        capfd.readouterr()
        assert run(argv, tmp_path / source.name / "next", "--finetune", str(source)) == 0
        said = " ".join(capfd.readouterr().out.split())
        assert (f"the run in {source} has not finished" in said) == noted


@pytest.mark.parametrize("stop", [3, 5, 8])
def test_stopped_run_resumes_bit_for_bit(
    stop: int, distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    assert run(argv, tmp_path, "--stop-after-steps", str(stop)) == 0
    assert not (tmp_path / "summary.json").exists()
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == f"step-{stop:08}"
    logged = read_json_lines(tmp_path / "metrics.jsonl")
    assert max(line["step"] for line in logged if "loss" in line) == stop
    assert run(argv, tmp_path) == 0
    assert_same_weights(whole, tmp_path)
    for name in ("model_best", "model_ema_best"):
        # of the same step, and from a program that writes the same bytes for it
        best = [folder / f"{name}.safetensors" for folder in (whole, tmp_path)]
        assert best[0].read_bytes() == best[1].read_bytes()
    # the log is that of a run that was never stopped, but for one more line at the stop
    mine, theirs = (steps_of(folder) for folder in (tmp_path, whole))
    assert {line["step"] for line in mine} == {line["step"] for line in theirs} | {stop}
    assert len(mine) == len({line["step"] for line in mine})
    assert mine[-1]["digest"] == theirs[-1]["digest"]
    assert values_by_step(tmp_path) == values_by_step(whole)
    assert values_by_step(whole)["step"] == list(range(9))


def test_run_killed_in_mid_epoch_resumes_bit_for_bit(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    folder = tmp_path / "run"
    command = ["train", *argv, "--output-dir", str(folder), "--save-steps", "1"]
    first = Ranks(tmp_path / "log", run_fastdeit, command, world_size=1)
    deadline = time.monotonic() + 120
    while not list_checkpoints(folder / "checkpoints"):
        assert time.monotonic() < deadline and first.is_alive
        time.sleep(0.002)
    first.kill()
    again = Ranks(tmp_path / "log", run_fastdeit, command, world_size=1)
    assert again.wait() == 0, again.output
    assert_same_weights(whole, folder)
    assert values_by_step(folder) == values_by_step(whole)


def test_damaged_newest_checkpoint_is_skipped(
    distilled: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = distilled
    for stop in (4, 2):  # checkpoints of steps 3, 4 (and 6 after the second start)
        assert run(argv, tmp_path, "--stop-after-steps", str(stop)) == 0
    newest = list_checkpoints(tmp_path / "checkpoints")[0]
    (newest / "exp_avg.safetensors").write_bytes(b"not this")
    assert run(argv, tmp_path) == 0
    assert_same_weights(whole, tmp_path)


def test_config_file_repeats_the_run(distilled: tuple[list[str], Path], tmp_path: Path) -> None:
    assert run(["--config", str(distilled[1] / "config.yaml")], tmp_path) == 0
    assert_same_weights(distilled[1], tmp_path)


def test_accumulated_run_is_the_same(distilled: tuple[list[str], Path], tmp_path: Path) -> None:
    argv, whole = distilled
    assert run(argv, tmp_path, "--micro-batch", "2", "--zero-stage", "2") == 0
    left, right = (load_file(folder / "model.safetensors") for folder in (whole, tmp_path))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-3, atol=1e-5)


def test_finished_run_is_reported_and_kept(
    distilled: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    argv, folder = distilled
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert run(argv, folder) == 0
    assert "finished" in capfd.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


OTHER = {
    "data": (["--data-path", "/elsewhere"], "--data-path was '", "now '/elsewhere'"),
    "no data": (["--data-path", ""], "--data-path was '", "now ''"),
    "evaluation size": (["--eval-input-size", "64"], "--eval-input-size was 0", "now 64"),
    "crop": (["--eval-crop-ratio", "1.0"], "--eval-crop-ratio was 0.875", "now 1.0"),
    "teacher": (["--teacher-path", "/t.pth"], "--teacher-path was '", "now '/t.pth'"),
    "teacher's model": (["--teacher-model", "resnet10t"], "--teacher-model was", "now 'resnet10t'"),
    "cache": (["--cache", "/cache"], "--cache was ''", "now '/cache'"),
    "rate": (["--lr", "0.1"], "--lr was 0.05", "now 0.1"),
    "two": (["--lr", "0.1", "--aa", "none"], "--aa was 'rand-m9-mstd0.5-inc1'", "--lr was 0.05"),
}


@pytest.mark.parametrize("case", OTHER)
def test_finished_run_refuses_another_command_and_names_the_flags(
    case: str, distilled: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    argv, folder = distilled
    flags, *parts = OTHER[case]
    assert run(argv, folder, *flags) == 2
    printed = capfd.readouterr()
    assert "holds a finished run with other settings" in printed.err
    assert all(part in printed.err for part in parts)
    assert printed.err.count("\n") == 1 and "top-1" not in printed.out


def test_finished_run_without_its_settings_is_refused(
    distilled: tuple[list[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(distilled[1], tmp_path / "run")
    (folder / "config.yaml").unlink()
    assert run(distilled[0], folder) == 2
    assert f"{folder}/config.yaml: missing" in capfd.readouterr().err


def test_finished_run_shows_its_table_in_another_form_and_without_its_files(
    distilled: tuple[list[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The form of the work may change; data and teacher may be gone; paths may be relative."""
    argv, whole = distilled
    folder = shutil.copytree(whole, tmp_path / "run")
    form = "--num-workers 1 --micro-batch 2 --zero-stage 2 --log-steps 7 --step-limit 9".split()
    data, teacher = Path(argv[1]), whole.parent / "teacher"
    monkeypatch.chdir(data.parent)
    for path in (data, teacher):
        path.rename(f"{path} away")
    try:
        assert run(argv, folder, *form, "--data-path", data.name) == 0
    finally:
        for path in (data, teacher):
            Path(f"{path} away").rename(path)
    assert "top-1" in capfd.readouterr().out


def test_folder_of_a_run_with_other_settings_is_refused(
    distilled: tuple[list[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    argv, folder = distilled
    assert run(argv, folder, "--lr", "0.1") == 2
    assert "--lr was 0.05, now 0.1" in capfd.readouterr().err


def test_checkpoint_of_other_data_is_refused(
    distilled: tuple[list[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv, whole = distilled
    checkpoint = list_checkpoints(whole / "checkpoints")[0]
    other = write_shapes(tmp_path / "data", train=9)
    flags = ["--data-path", str(other), "--resume", str(checkpoint)]
    assert run(argv, tmp_path / "run", *flags) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert "was saved with another data set" in said
    assert f"--finetune {checkpoint} begins with its weights alone" in said


def test_finetuning_from_published_weights(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint is timm's, of another resolution and class count, and with QKV bias."""
    from safetensors.torch import save_file

    name = "deit_tiny_distilled_patch16_224"
    theirs = timm.create_model(
        name, img_size=64, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=7
    )
    save_file(theirs.state_dict(), tmp_path / "timm.safetensors")
    argv = ["--data-path", str(shapes), *ALONE, "--stop-after-steps", "1"]
    assert run(argv, tmp_path / "run", "--finetune", str(tmp_path / "timm.safetensors")) == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "--qkv-bias turned on" in printed
    assert "resized from 8 x 8 to 4 x 4" in printed
    assert "7 classes in the file, 3 here" in printed


def test_finetuning_a_timm_model(
    shapes: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    seven = tmp_path / "seven.safetensors"
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), seven)
    new_head = "fc left as initialised: 7 classes in the file"
    for weights, model, code, message in (
        (teacher, "test_resnet", 0, "stopped after step 1"),
        (seven, "test_resnet", 0, new_head),
        (teacher, "test_byobnet", 2, "the checkpoint does not fit test_byobnet"),
    ):
        flags = f"--model {model} --distillation-type none --stop-after-steps 1".split()
        argv = ["--data-path", str(shapes), *SMALL, *flags]
        folder = tmp_path / f"{model}-{weights.stem}"
        assert run(argv, folder, "--finetune", str(weights)) == code
        printed = capfd.readouterr()
        assert message in printed.out + printed.err
        assert folder.exists() == (code == 0)


def _no_images(root: Path) -> None:
    shutil.rmtree(root / "train" / "circle")
    (root / "train" / "circle").mkdir()


def _bad_image(root: Path) -> None:
    file = next((root / "train" / "square").glob("*.jpg"))
    file.unlink()
    file.write_text("no image")


WRONG = {
    "no folder": (
        None,
        ["--data-path", "/nowhere/at/all"],
        "--data-path must be an existing folder",
    ),
    "no path": (None, ["--data-path", ""], "--data-path must be the folder of a data set"),
    "empty class": (_no_images, [], "circle: no images"),
    "unreadable image": (_bad_image, ["--bad-images", "error"], "square"),
    "no val": (lambda root: shutil.rmtree(root / "val"), [], "'val'"),
    "unknown model": (None, ["--model", "deit_tinny"], "near: "),
    "unknown recipe": (
        None,
        ["--recipe", "imagenet"],
        "--recipe must be one of deit",
    ),
    "unknown flag": (None, ["--batchsize", "3"], "--batchsize is not a flag; near: --batch-size"),
    "no teacher": (
        None,
        ["--distillation-type", "hard"],
        "--teacher-path must be an existing file",
    ),
    "student of one head": (
        None,
        ["--model", "resnet10t", "--distillation-type", "soft"],
        "or --distillation-type none",
    ),
    "student of larger images": (
        None,
        ["--model", "bat_resnext26ts", "--distillation-type", "none"],
        "--model must be a model that runs on images of 32 px",
    ),
    # also before the class without images is found
    "decoder": (_no_images, ["--decoder", "mixed"], "--decoder must be cpu with"),
    "micro batch": (None, ["--micro-batch", "6"], "--micro-batch must be a divisor of 8"),
    "batch too large": (None, ["--batch-size", "32"], "--batch-size 4 works"),
    "patch size": (
        None,
        ["--patch-size", "7"],
        "--input-size must be a multiple of the patch size, 7",
    ),
    "output below a file": (None, ["--output-dir", f"{__file__}/run"], "cannot be written below"),
    "no resume": (None, ["--resume", "/nowhere"], "/nowhere: no checkpoint"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistake_prints_one_error_exits_with_2_and_writes_nothing(
    case: str, shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, flags, message = WRONG[case]
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(shapes, data)
    if spoil is not None:
        spoil(data)
    assert run(["--data-path", str(data), *ALONE], folder, *flags) == 2
    printed = capfd.readouterr().err
    assert message in " ".join(printed.replace("│", " ").split())
    assert "Traceback" not in printed
    assert not folder.exists()


def test_the_heading_of_a_command_of_deit_says_once_what_means_something_else(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["--data-path", str(shapes), *ALONE, "--stop-after-steps", "1"]
    assert run(argv, tmp_path / "own") == 0
    assert "deit and timm" not in capfd.readouterr().out
    assert run([*argv, "--pin-mem", "--num_workers=1"], tmp_path / "deits") == 0
    printed = " ".join(capfd.readouterr().out.split())
    batch = "--batch-size 8 is that of all processes together, in deit and timm that of one GPU"
    assert printed.count(batch) == 1 and printed.count("--aug-repeats 3") == 1


def test_batch_must_divide_among_processes() -> None:
    config = RECIPES["digits"]().replace(optim={"batch_size": 12})
    message = r"--batch-size must be a multiple of 8 on 4 processes \(got 12\)"
    with pytest.raises(ValueError, match=message):
        check_config(config, 4)


def test_teacher_of_other_classes_is_refused(
    shapes: Path, teacher: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(shapes, data)
    for split in ("train", "val"):
        (data / split / "stripe").rename(data / split / "bar")
    argv = distilled_flags(data, teacher)
    assert run(argv, tmp_path / "run") == 2
    assert "must be a teacher for the classes of" in capfd.readouterr().err
    for split in ("train", "val"):
        shutil.rmtree(data / split / "bar")
    assert run(argv, tmp_path / "run") == 2
    assert "must have 2 classes" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_usage_lists_the_commands() -> None:
    def fastdeit(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fastdeit", *argv], cwd=ROOT, capture_output=True, text=True
        )

    usage, wrong = fastdeit("--help"), fastdeit("trian")
    assert usage.returncode == 0 and "train" in usage.stdout
    assert wrong.returncode == 2
    assert wrong.stderr == (
        "fastdeit: error: no command 'trian'; near: train; all: fastdeit --help\n"
    )


def damaging_loader(path: Path) -> type[TrainLoader]:
    """Return a loader class that empties a file before its first batch."""

    class DamagingLoader(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0, **more: bool) -> Iterator[Batch]:
            path.write_bytes(b"")
            return super().epoch(epoch, first_step, **more)

    return DamagingLoader


def test_run_survives_files_that_break_before_and_while_it_trains(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file is damaged before the run, one is deleted between two starts, one breaks after the
    index was read: the run finishes and records each."""
    data = shutil.copytree(shapes, tmp_path / "data")
    folder = RunFolder(tmp_path / "run")
    argv = ["--data-path", str(data), *ALONE]
    (data / "train/circle/zz.jpg").write_text("no image")
    assert run(argv, folder.path, "--stop-after-steps", "1") == 0
    (data / "train/circle/00.png").unlink()
    monkeypatch.setattr(loaders_train, "TrainLoader", damaging_loader(data / "train/square/01.jpg"))
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    assert run(argv, folder.path) == 0
    found = {image.name: image.fault for image in read_quarantine(folder.quarantine, "train")}
    assert set(found) == {"train/circle/00.png", "train/square/01.jpg"}
    assert "since the run began" in found["train/circle/00.png"]
    lines = [line for line in read_json_lines(folder.metrics) if "loss" in line]
    assert lines[-1]["quarantined"] == 2
    assert folder.summary.is_file()


def test_broken_file_ends_a_run_with_bad_images_error(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    monkeypatch.setattr(loaders_train, "TrainLoader", damaging_loader(data / "train/square/01.jpg"))
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    argv = ["--data-path", str(data), *ALONE]
    assert run(argv, tmp_path / "run", "--bad-images", "error") == 1
    assert "train/square/01.jpg" in capsys.readouterr().err
