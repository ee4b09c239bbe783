"""`fastdeit replay`: a step run again gives what was recorded, whatever has happened to the run and
its images since."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.commands.runs.replay import replay_command
from fastdeit.config.cli import parse_config
from fastdeit.data import quarantine
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import Index
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders import train as loaders_train
from fastdeit.data.loaders.batch import Batch
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import read_quarantine
from fastdeit.distributed.world import init_distributed
from fastdeit.plan.build import build_plan
from fastdeit.plan.digest import show_digest
from fastdeit.plan.operations import OPS
from fastdeit.plan.plan import SampleParams
from fastdeit.reliability.run_lock import RunLock
from fastdeit.storage.attempts import read_attempts
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Trainer
from tests.support.cache_runs import MODEL, Setting, train
from tests.support.closed_pipe import unread_stdout
from tests.support.compare_runs import EPOCHS, FLAGS, assert_same_samples, steps_of
from tests.support.launching import ROOT
from tests.support.ranks import Ranks, run_fastdeit

NUMBERS = ("loss", "base", "distill", "grad_norm", "lr")
STEPS = 9


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    init_distributed()
    return Setting(tmp_path_factory.mktemp("replay"))


@pytest.fixture(scope="module")
def run(setting: Setting) -> Path:
    """A run with two micro-batches per step, a line of the log for each step, and checkpoints of
    steps 6 and 9."""
    folder = setting.root / "run"
    assert setting.train(folder, *setting.taught, "--micro-batch", "8", "--reprob", "0.5") == 0
    return folder


def replay(folder: Path, step: int, *flags: str) -> int:
    """Return the exit code, however the command ends."""
    try:
        return replay_command([str(folder), "--step", str(step), *flags])
    except SystemExit as end:
        return int(str(end.code))


def test_step_of_a_gpu_that_augments_is_replayed_on_a_cpu(run: Path, tmp_path: Path) -> None:
    """As if the run had had --augment-device gpu: the pixels are the same."""
    folder = RunFolder(shutil.copytree(run, tmp_path / "run"))
    for path in (folder.config, folder.attempts):
        text = path.read_text()
        path.write_text(re.sub(r"(augment_device\W+)auto", r"\1gpu", text))
        assert path.read_text() != text
    assert replay(folder.path, 8) == 0
    assert_as_recorded(folder.path, 8)


def read_step(folder: Path, step: int) -> dict[str, Any]:
    """Return step.json of a replay."""
    return json.loads((folder / f"replay-{step}" / "step.json").read_text())


def contents(folder: Path) -> dict[str, str]:
    files = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "replay-" not in str(path.relative_to(folder))
    )
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_as_recorded(folder: Path, step: int, **tolerance: Any) -> dict[str, Any]:
    """Assert that the replay of a step with a line of the log for itself equals that line, bit for
    bit unless a tolerance is given; return step.json."""
    found = read_step(folder, step)
    line = next(line for line in steps_of(folder) if line["step"] == step + 1)
    assert line["loss"] == pytest.approx(line["by_step"]["loss"][0], rel=1e-6)
    for name in NUMBERS:
        expected = pytest.approx(line[name], **tolerance) if tolerance else line[name]
        assert found["now"][name] == expected, name
        assert found["recorded"]["values"][name] == line[name]
    assert found["recorded"]["same_samples"] is True and not found["now"]["skipped"]
    return found


@pytest.mark.parametrize(("step", "trained"), [(0, []), (4, [0, 1, 2, 3]), (6, []), (8, [6, 7])])
def test_any_step_equals_the_log_bit_for_bit_and_other_files_stay(
    step: int, trained: list[int], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(run)
    assert replay(run, step) == 0
    assert contents(run) == before
    said = capsys.readouterr().err
    assert f"step {step} of {run} from " in said
    assert f"{len(trained) or 'no'} step" in said and "to repeat first" in said
    found = assert_as_recorded(run, step)
    assert found["state"]["trained"] == trained and found["notes"] == []
    assert (found["epoch"], found["step_of_epoch"]) == divmod(step, 3)
    micro_batches = found["micro_batches"]
    assert [(line["rank"], line["micro_batch"]) for line in micro_batches] == [(0, 0), (0, 1)]
    assert sum(line["loss"] for line in micro_batches) / 2 == pytest.approx(
        found["now"]["loss"], rel=1e-6
    )
    for name in ("loss", "base", "distill"):
        for place, line in enumerate(micro_batches):
            alone = [sample[name] for sample in found["samples"] if sample["micro_batch"] == place]
            assert len(alone) == 8 and sum(alone) / 8 == pytest.approx(line[name], rel=1e-5)
            assert len(set(alone)) > 4
    assert {sample["teacher"] for sample in found["samples"]} <= {0, 1, 2}


def test_report_that_nobody_reads_is_no_error(run: Path) -> None:
    with unread_stdout(write_through=False):
        assert replay(run, 0) == 0
    assert read_step(run, 0)["recorded"]["same_samples"]


def loader_of(run: Path, setting: Setting) -> tuple[TrainLoader, Any, Any]:
    """Build the loader, the index and the plan of the run again."""
    config, _ = parse_config(["--config", str(run / "config.yaml")], "test")
    index = build_index(setting.data, "train")
    plan = build_plan(config, index.sizes)
    world = init_distributed()
    loader = build_train_loader(
        config,
        world,
        index,
        plan,
        drop_path=(0.0, 0.3),
        quarantine=quarantine.Quarantine(index),
    )
    return loader, index, plan


def mix_by_hand(batch: Batch, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the image at a place of a batch, and that image mixed with its partner."""
    image = batch.images[place]
    partner = batch.images[place ^ 1]
    lam = float(batch.lam[place])
    y0, x0, y1, x1 = batch.box[place].tolist()
    if y1 <= y0:
        return image, lam * image + (1 - lam) * partner
    mixed = image.clone()
    mixed[:, y0:y1, x0:x1] = partner[:, y0:y1, x0:x1]
    return image, mixed


def assert_as_planned(
    line: dict[str, Any], draws: SampleParams, batch: Batch, place: int, index: Index
) -> None:
    """Assert that a line of plan.json has what was planned for the sample at a place."""
    ordinal = int(batch.ordinals[place])
    operations = [
        (OPS[op], arg)
        for op, arg in zip(draws.ops[place], draws.op_args[place], strict=True)
        if op >= 0
    ]
    assert [(one["name"], one["argument"]) for one in line["operations"]] == operations
    assert (line["ordinal"], line["partner"]) == (ordinal, ordinal ^ 1)
    assert line["row"] == draws.image_index[place]
    assert line["image"] == index.name(line["row"])
    assert line["class"] == index.classes[index.labels[line["row"]]]
    assert line["keep"] == batch.drop_path_mask[place].int().tolist()
    assert line["flip"] == draws.flip[place]
    for name in ("crop", "resize", "erase", "box"):
        planned = getattr(draws, name)[place].tolist()
        is_drawn = any(planned) or name in ("crop", "resize")
        assert line[name] == (planned if is_drawn else None), name
    assert line["lam"] == pytest.approx(float(batch.lam[place]))
    assert line["noise_key"] == int(draws.noise_key[place])


def test_pictures_and_plan_are_those_of_the_loader(run: Path, setting: Setting) -> None:
    assert replay(run, 4) == 0
    folder = run / "replay-4"
    lines = json.loads((folder / "plan.json").read_text())
    loader, index, plan = loader_of(run, setting)
    batches = list(loader.epoch(1, 1))[:2]
    assert (
        show_digest(sum(batch.digest for batch in batches) % 2**64)
        == read_step(run, 4)["now"]["digest"]
    )
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    rows = iter(lines)
    for batch in batches:
        draws = plan.draw(1, batch.ordinals.numpy())
        for place in range(len(batch.ordinals)):
            line = next(rows)
            assert_as_planned(line, draws, batch, place, index)
            for name, pixels in zip(
                ("picture", "mixed_picture"), mix_by_hand(batch, place), strict=True
            ):
                expected = ((pixels * std + mean).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
                found = np.asarray(Image.open(folder / line[name]), np.float32)
                assert np.abs(found - expected).max() <= 0.51, (line["ordinal"], name)
    assert next(rows, None) is None
    assert len(lines) == 16 == len(list((folder / "images").iterdir())) // 2
    for name in ("operations", "erase", "box"):
        assert any(line[name] for line in lines), f"nothing to see of {name}"


def test_digest_between_log_lines_shows_whether_the_samples_are_the_same(
    setting: Setting, tmp_path: Path
) -> None:
    assert setting.train(tmp_path, "--distillation-type", "none", "--log-steps", "4") == 0
    assert [line["step"] for line in steps_of(tmp_path)] == [3, 4, 6, 8, 9]
    assert replay(tmp_path, 4) == 0 and replay(tmp_path, 3) == 0
    found = read_step(tmp_path, 4)
    assert found["recorded"]["metrics"]["step"] == 6
    assert found["recorded"]["digest"]["steps"] == [4, 6] and found["recorded"]["same_samples"]
    assert_as_recorded(tmp_path, 3)
    log = tmp_path / "metrics.jsonl"
    digest = steps_of(tmp_path)[2]["digest"]
    log.write_text(log.read_text().replace(digest, digest[::-1]))
    assert replay(tmp_path, 4) == 1
    assert (
        read_step(tmp_path, 4)["recorded"]["same_samples"] is False
        and "are not those" in read_step(tmp_path, 4)["notes"][0]
    )


@pytest.fixture(scope="module")
def default_run(setting: Setting) -> Path:
    """A run with a line of the log for each epoch, of three steps."""
    folder = setting.root / "default_run"
    assert setting.train(folder, *setting.taught, "--log-steps", "10") == 0
    return folder


@pytest.mark.parametrize("step", [0, 4, 8])
def test_log_has_every_step_by_itself(step: int, default_run: Path) -> None:
    assert [line["step"] for line in steps_of(default_run)] == [3, 6, 9]
    assert replay(default_run, step) == 0
    found = read_step(default_run, step)
    assert found["notes"] == [] and found["recorded"]["skipped"] is False
    assert {name: found["now"][name] for name in NUMBERS} == found["recorded"]["values"]


def test_log_of_an_older_version_has_means_alone(
    default_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(default_run, tmp_path / "run")
    lines = read_json_lines(copy / "metrics.jsonl")
    for line in lines:
        for name in ("by_step", "time", "epoch", "images_seen"):
            line.pop(name, None)
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(copy, 4) == 0
    found = read_step(copy, 4)
    assert found["recorded"]["values"] is None and found["recorded"]["same_samples"]
    assert "means over the steps 3 to 5 only, as an older version wrote it" in found["notes"][0]


def empty_file_at(path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty an image file after the first micro-batch of step `at`."""

    class Emptying(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0, **more: bool) -> Iterator[Batch]:
            for number, batch in enumerate(super().epoch(epoch, first_step, **more)):
                yield batch
                if epoch * self.steps_per_epoch + first_step + number // self.micro_steps == at:
                    path.write_bytes(b"")

    monkeypatch.setattr(loaders_train, "TrainLoader", Emptying)
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))


def images_by_step(run: Path, setting: Setting, epochs: int = 4) -> list[set[str]]:
    """Return the names of the images of each step."""
    _, index, plan = loader_of(run, setting)
    steps = [plan.images(step // 3, plan.ordinals(step % 3, 16)) for step in range(3 * epochs)]
    return [{index.name(row) for row in rows.tolist()} for rows in steps]


@pytest.mark.slow
def test_images_excluded_later_are_in_the_steps_before(
    run: Path,
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One image breaks during the run and is repaired afterwards; another changes before the run is
    resumed from an earlier step."""
    data = shutil.copytree(setting.data, tmp_path / "data")
    out = tmp_path / "run"
    names = images_by_step(run, setting)
    first = min((names[3] | names[4]) & names[7] - names[5])
    second = min((set().union(*names[:3]) & set().union(*names[9:])) - {first})
    whole = {name: (data / name).read_bytes() for name in (first, second)}
    flags = "--distillation-type none --micro-batch 8 --epochs 4".split()
    argv = [*setting.samples, *MODEL, *flags]
    argv += ["--data-path", str(data), "--output-dir", str(out), "--keep-checkpoints", "4"]
    with monkeypatch.context() as patch:
        empty_file_at(data / first, 5, patch)
        assert train([*argv, "--stop-after-steps", "8"]) == 0
    for step in (6, 8):
        shutil.rmtree(out / "checkpoints" / f"step-{step:08}")
    (data / first).write_bytes(whole[first])
    (data / second).unlink()
    assert train(argv) == 0
    entries = {
        image.name: image.step for image in read_quarantine(out / "quarantine.jsonl", "train")
    }
    assert entries.keys() == {first, second} and entries[first] in (6, 7) and entries[second] == 3
    attempts = read_attempts(RunFolder(out))
    assert [(one.step, len(one.left_out)) for one in attempts] == [(0, 0), (3, 2)]
    (data / second).write_bytes(whole[second])
    seen = []
    for step in range(12):
        assert replay(out, step) == 0, step
        assert_as_recorded(out, step)
        plan = json.loads((out / f"replay-{step}" / "plan.json").read_text())
        seen.append({line["image"] for line in plan})
    assert seen[:3] == names[:3] and not {first, second} & set.union(*seen[3:])
    needs = next(step for step in range(3) if second in seen[step])
    for content, fault in ((None, "cannot be read"), (whole[first], "")):
        (data / second).unlink(missing_ok=True)
        if content is not None:
            (data / second).write_bytes(content)
        capsys.readouterr()
        assert_refused(out, needs, f"{second}: {fault}", capsys)
        assert replay(out, 11) == 0


def assert_refused(out: Path, step: int, fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Assert that a replay of a step ends with an error that names an image and its fault."""
    assert replay(out, step) == 2
    start, error = capsys.readouterr().err.splitlines()
    assert "from the weights that the run began with" in start
    assert f"images that cannot be read as they were: {fault}" in error


def plant_nan(steps: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a NaN into an image of the second micro-batch of some steps."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Iterable[Batch], *criterion: Any) -> torch.Tensor:
        def bad() -> Iterator[Batch]:
            for place, batch in enumerate(batches):
                if place == 1 and self.step in steps:
                    batch.images[3, 0, 5, 5] = torch.nan
                yield batch

        return original(self, bad(), *criterion)

    monkeypatch.setattr(Trainer, "train_step", train_step)


BAD = ["--distillation-type", "none", "--micro-batch", "8", "--max-bad-steps", "1"]


def test_run_stopped_for_bad_steps_is_replayed_from_its_debug_bundle(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_nan((4, 5), monkeypatch)
    assert setting.train(tmp_path, *BAD, "--max-rollbacks", "0") == 1
    assert replay(tmp_path, 4) == 0 and replay(tmp_path, 5) == 0 and replay(tmp_path, 3) == 0
    for step, trained in ((4, []), (5, [4])):
        found = read_step(tmp_path, step)
        assert "bad-step-4" in found["state"]["from"] and found["state"]["trained"] == trained
        assert (
            found["now"]["skipped"]
            and found["recorded"]["skipped"]
            and found["recorded"]["same_samples"]
        )
        assert found["now"]["loss"] == "nan" and found["recorded"]["bad_step"]["step"] == step
        assert {name: found["now"][name] for name in NUMBERS} == found["recorded"]["values"]
        good, bad = found["micro_batches"]
        assert good["loss"] == good["recorded"] and (bad["loss"], bad["recorded"]) == ("nan", "nan")
        # the sample and its partner, unless they are not mixed
        assert sum(sample["loss"] == "nan" for sample in found["samples"]) in (1, 2)
    assert_as_recorded(tmp_path, 3)


def test_steps_before_within_and_after_a_skipped_range(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_nan((4, 5), monkeypatch)
    keep = ["--save-steps", "1", "--keep-checkpoints", "9"]
    assert setting.train(tmp_path, *BAD, *keep, "--max-rollbacks", "1") == 0
    assert json.loads((tmp_path / "rollbacks.jsonl").read_text())["passed_over"] == [3, 6]
    assert {"step-00000003", "step-00000005"} <= {
        path.name for path in (tmp_path / "checkpoints").iterdir()
    }
    for step in (2, 6, 8):
        assert replay(tmp_path, step) == 0
        assert assert_as_recorded(tmp_path, step)["state"]["trained"] == []
    assert replay(tmp_path, 5) == 0
    undone = read_step(tmp_path, 5)
    assert undone["state"]["trained"] == [3, 4], (
        "the checkpoint of step 5 was saved after the rollback"
    )
    assert (
        undone["now"]["skipped"]
        and undone["recorded"]["passed_over_later"]
        and undone["recorded"]["same_samples"]
    )
    assert undone["micro_batches"][0]["loss"] == undone["micro_batches"][0]["recorded"]
    shutil.rmtree(tmp_path / "checkpoints")  # then it starts from step 0
    assert replay(tmp_path, 8) == 0
    assert assert_as_recorded(tmp_path, 8)["state"]["trained"] == [0, 1, 2, 6, 7]


def test_step_with_a_teacher_cache(setting: Setting, tmp_path: Path) -> None:
    cache = setting.root / "cache"
    assert setting.build(cache) == 0
    assert setting.train(tmp_path, "--cache", str(cache), "--micro-batch", "8") == 0
    assert replay(tmp_path, 4) == 0
    samples = assert_as_recorded(tmp_path, 4)["samples"]
    assert {sample["teacher"] for sample in samples} <= {0, 1, 2}


def test_step_of_a_timm_model(setting: Setting, tmp_path: Path) -> None:
    flags = "--model test_resnet --distillation-type none --micro-batch 8".split()
    argv = [*setting.samples, *flags]
    assert train([*argv, "--epochs", "2", "--output-dir", str(tmp_path)]) == 0
    for step in (1, 5):
        assert replay(tmp_path, step) == 0
        assert_as_recorded(tmp_path, step)


WRONG: dict[str, tuple[int, list[str], str]] = {
    "beyond the run": (10, [], "--step must be 0 to 9, the last step that "),
    "beyond the plan": (9, [], "--step must be below 9"),
    "before the run": (-1, [], "--step must be 0 or more, where "),
    "no data": (4, ["--data-path", "/nowhere/at/all"], "/nowhere/at/all"),
    "no teacher": (4, ["--teacher-path", "/nowhere"], "--teacher-path must be an existing file"),
    "other settings": (4, ["--lr", "0.1"], "--lr was 0.05, now 0.1"),
    "output in use": (
        4,
        ["--output", str(ROOT / "tests")],
        "--output must be a new or an empty folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_unusable_request_prints_one_line_and_exits_with_2(
    case: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, flags, message = WRONG[case]
    before = contents(run)
    assert replay(run, step, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(run) == before and not (run / f"replay-{step}").exists() or step == 4


def test_folder_without_a_run_is_refused(
    run: Path, setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, 0) == 2
    assert "which has no config.yaml" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "train-images.parquet").unlink()
    assert replay(copy, 0) == 2
    assert "no train-images.parquet" in capsys.readouterr().err


def test_moved_run_in_use_with_moved_images(run: Path, setting: Setting, tmp_path: Path) -> None:
    data = shutil.copytree(setting.data, tmp_path / "data")
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("replay-*"))
    with RunLock(RunFolder(copy)) as lock:
        lock.acquire()
        places = ["--data-path", str(data), "--output", str(tmp_path / "out")]
        assert replay(copy, 7, *places) == 0
        assert replay(copy, 7, *places) == 0  # again, over its own output
        assert not (copy / "replay-7").exists()
    assert (
        json.loads((tmp_path / "out" / "step.json").read_text())["now"]
        == (replay(run, 7), read_step(run, 7)["now"])[1]
    )


@pytest.fixture(scope="module")
def moved_run(setting: Setting) -> Path:
    """A run on one process, then on two, then on one again."""
    folder = setting.root / "moved_run"
    shared = [*setting.taught, *FLAGS]
    keep = ["--keep-checkpoints", "4"]
    assert setting.train(folder, *shared, *keep, "--stop-after-steps", "4", epochs=EPOCHS) == 0
    argv = [*setting.samples, *MODEL, *shared, *keep, "--epochs", str(EPOCHS)]
    form = ["--stop-after-steps", "5", "--zero-stage", "2", "--micro-batch", "4"]
    command = ["train", *argv, *form, "--output-dir", str(folder)]
    both = Ranks(setting.root / "log", run_fastdeit, command)
    assert both.wait() == 0, both.output
    assert (
        setting.train(
            folder, *shared, *keep, "--zero-stage", "3", "--micro-batch", "8", epochs=EPOCHS
        )
        == 0
    )
    return folder


def test_run_on_one_then_two_then_one_process_equals_a_run_on_one(
    moved_run: Path, setting: Setting, tmp_path: Path
) -> None:
    attempts = read_attempts(RunFolder(moved_run))
    forms = [(one.step, one.world_size, one.micro_batch) for one in attempts]
    assert forms == [(0, 1, 16), (4, 2, 4), (9, 1, 8)]
    assert setting.train(tmp_path, *setting.taught, *FLAGS, epochs=EPOCHS) == 0
    assert_same_samples(moved_run, tmp_path)


def test_one_process_replays_a_step_of_two(moved_run: Path) -> None:
    for step in (4, 5, 7):
        assert replay(moved_run, step) == 0
        found = assert_as_recorded(moved_run, step, rel=1e-6)
        places = [(line["rank"], line["micro_batch"]) for line in found["micro_batches"]]
        assert places == [(0, 0), (0, 1), (1, 0), (1, 1)]
        first, second = pairs_by_rank(found)
        assert max(first) < min(second)
        assert "the run had 2 processes, here are 1" in found["notes"][0]
    assert replay(moved_run, 10) == 0
    assert_as_recorded(moved_run, 10)


def pairs_by_rank(step: dict[str, Any]) -> list[set[int]]:
    """Return the numbers of the pairs that each of two ranks had in a replayed step."""
    return [
        {sample["ordinal"] // 2 for sample in step["samples"] if sample["rank"] == rank}
        for rank in range(2)
    ]


def test_ranks_of_an_older_run_had_every_other_pair(moved_run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(moved_run, tmp_path / "run", ignore=shutil.ignore_patterns("replay-*"))
    lines = read_json_lines(copy / "attempts.jsonl")
    assert [line.pop("alternating_pairs") for line in lines] == [False] * 3
    (copy / "attempts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert replay(copy, 5) == 0
    found = assert_as_recorded(copy, 5, rel=1e-6)  # the samples of the step are the same
    for rank, pairs in enumerate(pairs_by_rank(found)):
        assert {pair % 2 for pair in pairs} == {rank}


def test_two_processes_replay_a_step_of_two_bit_for_bit(moved_run: Path, tmp_path: Path) -> None:
    command = ["replay", str(moved_run), "--step", "7"]
    both = Ranks(tmp_path / "log", run_fastdeit, command)
    assert both.wait() == 0, both.output
    found = assert_as_recorded(moved_run, 7)
    assert found["notes"] == [] and found["processes"] == {"run": 2, "replay": 2, "micro_batch": 4}
    assert len(json.loads((moved_run / "replay-7" / "plan.json").read_text())) == 16
    assert len(list((moved_run / "replay-7" / "images").iterdir())) == 32
