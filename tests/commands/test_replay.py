"""One step taken again out of a run's folder: what was recorded comes out, whatever became of the
run and its images since."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fastdeit.commands.replay import replay_command
from fastdeit.config.cli import parse_config
from fastdeit.data import build, quarantine
from fastdeit.data.batch import Batch
from fastdeit.data.build import build_train_loader
from fastdeit.data.index import build_index
from fastdeit.data.loader import TrainLoader
from fastdeit.data.quarantine import read_quarantine
from fastdeit.distributed.world import init_distributed
from fastdeit.plan.build import build_plan
from fastdeit.plan.digest import show_digest
from fastdeit.plan.operations import OPS
from fastdeit.reliability.run_lock import RunLock
from fastdeit.run.attempts import read_attempts
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Trainer
from tests.support.cache_runs import MODEL, Setting, train
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
    """Two micro-batches a step, a line of the log each step; checkpoints of steps 6 and 9."""
    folder = setting.root / "run"
    assert setting.train(folder, *setting.taught, "--micro-batch", "8", "--reprob", "0.5") == 0
    return folder


def replay(folder: Path, step: int, *flags: str) -> int:
    """The exit code, however the command ends."""
    try:
        return replay_command([str(folder), "--step", str(step), *flags])
    except SystemExit as end:
        return int(str(end.code))


def told(folder: Path, step: int) -> dict[str, Any]:
    return json.loads((folder / f"replay-{step}" / "step.json").read_text())


def contents(folder: Path) -> dict[str, str]:
    files = (
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "replay-" not in str(path.relative_to(folder))
    )
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def assert_is_as_recorded(folder: Path, step: int, **tolerance: Any) -> dict[str, Any]:
    """The step that has a line of the log for itself; bit for bit unless a tolerance is given."""
    found = told(folder, step)
    line = next(line for line in steps_of(folder) if line["step"] == step + 1)
    for name in NUMBERS:
        expected = pytest.approx(line[name], **tolerance) if tolerance else line[name]
        assert found["now"][name] == expected, name
        assert found["recorded"]["values"][name] == line[name]
    assert found["recorded"]["same_samples"] is True and not found["now"]["skipped"]
    return found


@pytest.mark.parametrize(("step", "trained"), [(0, []), (4, [0, 1, 2, 3]), (6, []), (8, [6, 7])])
def test_any_step_comes_out_bit_for_bit_and_nothing_else_is_touched(
    step: int, trained: list[int], run: Path
) -> None:
    before = contents(run)
    assert replay(run, step) == 0
    assert contents(run) == before
    found = assert_is_as_recorded(run, step)
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


def loader_of(run: Path, setting: Setting) -> tuple[TrainLoader, Any, Any]:
    """The loader of the run, its index and its plan, made anew."""
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


def test_the_files_show_the_images_as_the_model_got_them_and_their_plan(
    run: Path, setting: Setting
) -> None:
    assert replay(run, 4) == 0
    folder = run / "replay-4"
    lines = json.loads((folder / "plan.json").read_text())
    loader, index, plan = loader_of(run, setting)
    batches = list(loader.epoch(1, 1))[:2]
    assert (
        show_digest(sum(batch.digest for batch in batches) % 2**64) == told(run, 4)["now"]["digest"]
    )
    mean, std = (
        torch.tensor(value)[:, None, None]
        for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    row = 0
    for batch in batches:
        draws = plan.draw(1, batch.ordinals.numpy())
        for place, ordinal in enumerate(batch.ordinals.tolist()):
            line, row = lines[row], row + 1
            partner = batch.images[place ^ 1]
            image, lam, (y0, x0, y1, x1) = (
                batch.images[place],
                float(batch.lam[place]),
                batch.box[place].tolist(),
            )
            mixed = lam * image + (1 - lam) * partner
            if y1 > y0:
                mixed = image.clone()
                mixed[:, y0:y1, x0:x1] = partner[:, y0:y1, x0:x1]
            for name, pixels in (("picture", image), ("mixed_picture", mixed)):
                expected = ((pixels * std + mean).clamp(0, 1) * 255).permute(1, 2, 0).numpy()
                found = np.asarray(Image.open(folder / line[name]), np.float32)
                assert np.abs(found - expected).max() <= 0.51, (ordinal, name)
            operations = [
                (OPS[op], arg)
                for op, arg in zip(draws.ops[place], draws.op_args[place], strict=True)
                if op >= 0
            ]
            assert [(one["name"], one["argument"]) for one in line["operations"]] == operations
            assert (line["ordinal"], line["partner"], line["image"]) == (
                ordinal,
                ordinal ^ 1,
                index.name(line["row"]),
            )
            assert (
                line["class"] == index.classes[index.labels[line["row"]]]
                and line["row"] == draws.image_index[place]
            )
            assert (
                line["keep"] == batch.drop_path_mask[place].int().tolist()
                and line["flip"] == draws.flip[place]
            )
            for name in ("crop", "resize", "erase", "box"):
                planned = getattr(draws, name)[place].tolist()
                assert line[name] == (
                    planned if any(planned) or name in ("crop", "resize") else None
                ), name
            assert line["lam"] == pytest.approx(lam) and line["noise_key"] == int(
                draws.noise_key[place]
            )
    assert row == len(lines) == 16 == len(list((folder / "images").iterdir())) // 2
    for name in ("operations", "erase", "box"):
        assert any(line[name] for line in lines), f"nothing to see of {name}"


def test_a_log_of_every_fourth_step_still_shows_whether_the_samples_are_the_same(
    setting: Setting, tmp_path: Path
) -> None:
    assert setting.train(tmp_path, "--distillation-type", "none", "--log-steps", "4") == 0
    assert [line["step"] for line in steps_of(tmp_path)] == [3, 4, 6, 8, 9]
    assert replay(tmp_path, 4) == 0 and replay(tmp_path, 3) == 0
    found = told(tmp_path, 4)
    assert found["recorded"]["values"] is None and found["recorded"]["metrics"]["step"] == 6
    assert found["recorded"]["digest"]["steps"] == [4, 6] and found["recorded"]["same_samples"]
    assert "means over steps [4, 6]" in found["notes"][0]
    assert_is_as_recorded(tmp_path, 3)
    log = tmp_path / "metrics.jsonl"
    digest = steps_of(tmp_path)[2]["digest"]
    log.write_text(log.read_text().replace(digest, digest[::-1]))
    assert replay(tmp_path, 4) == 1
    assert (
        told(tmp_path, 4)["recorded"]["same_samples"] is False
        and "are not those" in told(tmp_path, 4)["notes"][0]
    )


def failing(path: Path, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first micro-batch of step `at` on a file is empty."""

    class Failing(TrainLoader):
        def epoch(self, epoch: int, first_step: int = 0) -> Iterator[Batch]:
            for number, batch in enumerate(super().epoch(epoch, first_step)):
                yield batch
                if epoch * self.steps_per_epoch + first_step + number // self.micro_steps == at:
                    path.write_bytes(b"")

    monkeypatch.setattr(build, "TrainLoader", Failing)
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))


def drawn(run: Path, setting: Setting, epochs: int = 4) -> list[set[str]]:
    """The names of the images of each step of a run of these flags."""
    _, index, plan = loader_of(run, setting)
    steps = [plan.images(step // 3, plan.ordinals(step % 3, 16)) for step in range(3 * epochs)]
    return [{index.name(row) for row in rows.tolist()} for rows in steps]


def test_images_that_left_the_run_later_are_in_the_steps_before(
    run: Path,
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One fails in mid-run and is well again afterwards, one is changed before the run goes on from
    an earlier step."""
    data, out, names = (
        shutil.copytree(setting.data, tmp_path / "data"),
        tmp_path / "run",
        drawn(run, setting),
    )
    first = min((names[3] | names[4]) & names[7] - names[5])
    second = min((set().union(*names[:3]) & set().union(*names[9:])) - {first})
    whole = {name: (data / name).read_bytes() for name in (first, second)}
    argv = [
        *setting.samples,
        *MODEL,
        "--distillation-type",
        "none",
        "--micro-batch",
        "8",
        "--epochs",
        "4",
    ]
    argv += ["--data-path", str(data), "--output-dir", str(out), "--keep-checkpoints", "4"]
    with monkeypatch.context() as patch:
        failing(data / first, 5, patch)
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
    assert [(attempt.step, len(attempt.left_out)) for attempt in read_attempts(RunFolder(out))] == [
        (0, 0),
        (3, 2),
    ]
    (data / second).write_bytes(whole[second])
    seen = []
    for step in range(12):
        assert replay(out, step) == 0, step
        assert_is_as_recorded(out, step)
        seen.append(
            {
                line["image"]
                for line in json.loads((out / f"replay-{step}" / "plan.json").read_text())
            }
        )
    assert seen[:3] == names[:3] and not {first, second} & set.union(*seen[3:])
    needs = next(step for step in range(3) if second in seen[step])
    for other, fault in ((None, "cannot be read"), (whole[first], "")):
        (data / second).unlink(missing_ok=True)
        if other is not None:
            (data / second).write_bytes(other)
        capsys.readouterr()
        assert replay(out, needs) == 2
        error = capsys.readouterr().err
        assert (
            f"the run read images that cannot be read as they were: {second}: {fault}" in error
            and error.count("\n") == 1
        )
        assert replay(out, 11) == 0


def poisoned(steps: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Images with a NaN in the second micro-batch of some steps."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Iterable[Batch]) -> torch.Tensor:
        def bad() -> Iterator[Batch]:
            for place, batch in enumerate(batches):
                if place == 1 and self.step in steps:
                    batch.images[3, 0, 5, 5] = torch.nan
                yield batch

        return original(self, bad())

    monkeypatch.setattr(Trainer, "train_step", train_step)


BAD = ["--distillation-type", "none", "--micro-batch", "8", "--max-bad-steps", "1"]


def test_a_run_that_stopped_for_bad_steps_is_replayed_from_what_it_left(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned((4, 5), monkeypatch)
    assert setting.train(tmp_path, *BAD, "--max-rollbacks", "0") == 1
    assert replay(tmp_path, 4) == 0 and replay(tmp_path, 5) == 0 and replay(tmp_path, 3) == 0
    for step, trained in ((4, []), (5, [4])):
        found = told(tmp_path, step)
        assert "bad-step-4" in found["state"]["from"] and found["state"]["trained"] == trained
        assert (
            found["now"]["skipped"]
            and found["recorded"]["skipped"]
            and found["recorded"]["same_samples"]
        )
        assert found["now"]["loss"] == "nan" and found["recorded"]["bad_step"]["step"] == step
        good, bad = found["micro_batches"]
        assert good["loss"] == good["recorded"] and (bad["loss"], bad["recorded"]) == ("nan", "nan")
        assert sum(sample["loss"] == "nan" for sample in found["samples"]) in (
            1,
            2,
        )  # it and its partner, unless unmixed
    assert_is_as_recorded(tmp_path, 3)


def test_steps_before_in_and_after_what_a_run_passed_over(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned((4, 5), monkeypatch)
    keep = ["--save-steps", "1", "--keep-checkpoints", "9"]
    assert setting.train(tmp_path, *BAD, *keep, "--max-rollbacks", "1") == 0
    assert json.loads((tmp_path / "rollbacks.jsonl").read_text())["passed_over"] == [3, 6]
    assert {"step-00000003", "step-00000005"} <= {
        path.name for path in (tmp_path / "checkpoints").iterdir()
    }
    for step in (2, 6, 8):
        assert replay(tmp_path, step) == 0
        assert assert_is_as_recorded(tmp_path, step)["state"]["trained"] == []
    assert replay(tmp_path, 5) == 0
    undone = told(tmp_path, 5)
    assert undone["state"]["trained"] == [3, 4], "the checkpoint of step 5 is of the time after"
    assert (
        undone["now"]["skipped"]
        and undone["recorded"]["passed_over_later"]
        and undone["recorded"]["same_samples"]
    )
    assert undone["micro_batches"][0]["loss"] == undone["micro_batches"][0]["recorded"]
    shutil.rmtree(tmp_path / "checkpoints")  # from the beginning on, then
    assert replay(tmp_path, 8) == 0
    assert assert_is_as_recorded(tmp_path, 8)["state"]["trained"] == [0, 1, 2, 6, 7]


def test_a_recorded_teacher_answers_again(setting: Setting, tmp_path: Path) -> None:
    cache = setting.root / "cache"
    assert setting.build(cache) == 0
    assert setting.train(tmp_path, "--cache", str(cache), "--micro-batch", "8") == 0
    assert replay(tmp_path, 4) == 0
    assert {sample["teacher"] for sample in assert_is_as_recorded(tmp_path, 4)["samples"]} <= {
        0,
        1,
        2,
    }


def test_a_model_with_random_draws_and_statistics_of_its_own(
    setting: Setting, tmp_path: Path
) -> None:
    argv = [
        *setting.samples,
        "--model",
        "test_resnet",
        "--distillation-type",
        "none",
        "--micro-batch",
        "8",
    ]
    assert train([*argv, "--epochs", "2", "--output-dir", str(tmp_path)]) == 0
    for step in (1, 5):
        assert replay(tmp_path, step) == 0
        assert_is_as_recorded(tmp_path, step)


WRONG: dict[str, tuple[int, list[str], str]] = {
    "beyond the run": (10, [], "--step must be 0 to 9, the last that "),
    "beyond the plan": (9, [], "--step must be below 9"),
    "before the run": (-1, [], "--step must be 0 or more, where "),
    "no data": (4, ["--data-path", "/nowhere/at/all"], "/nowhere/at/all"),
    "no teacher": (4, ["--teacher-path", "/nowhere"], "--teacher-path must be an existing file"),
    "other settings": (4, ["--lr", "0.1"], "optim.lr 0.05 -> 0.1"),
    "output in use": (
        4,
        ["--output", str(ROOT / "tests")],
        "--output must be a new or an empty folder",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_replayed_is_one_line_and_code_2(
    case: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    step, flags, message = WRONG[case]
    before = contents(run)
    assert replay(run, step, *flags) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert contents(run) == before and not (run / f"replay-{step}").exists() or step == 4


def test_a_folder_without_a_run_and_a_checkpoint_of_other_samples(
    run: Path, setting: Setting, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path, 0) == 2
    assert "which has no config.yaml" in capsys.readouterr().err
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "train-images.parquet").unlink()
    assert replay(copy, 0) == 2
    assert "no train-images.parquet" in capsys.readouterr().err


def test_a_moved_run_with_moved_images_is_replayed_while_it_is_in_use(
    run: Path, setting: Setting, tmp_path: Path
) -> None:
    data = shutil.copytree(setting.data, tmp_path / "data")
    copy = shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("replay-*"))
    with RunLock(RunFolder(copy)) as lock:
        lock.acquire()
        assert replay(copy, 7, "--data-path", str(data), "--output", str(tmp_path / "out")) == 0
        assert (
            replay(copy, 7, "--data-path", str(data), "--output", str(tmp_path / "out")) == 0
        )  # again, over what it left
        assert not (copy / "replay-7").exists()
    assert (
        json.loads((tmp_path / "out" / "step.json").read_text())["now"]
        == (replay(run, 7), told(run, 7)["now"])[1]
    )


@pytest.fixture(scope="module")
def travelled(setting: Setting) -> Path:
    """A run on one process, then on two, then on one."""
    folder = setting.root / "travelled"
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


def test_a_run_on_one_two_and_one_process_is_that_on_one(
    travelled: Path, setting: Setting, tmp_path: Path
) -> None:
    assert [
        (one.step, one.world_size, one.micro_batch) for one in read_attempts(RunFolder(travelled))
    ] == [
        (0, 1, 16),
        (4, 2, 4),
        (9, 1, 8),
    ]
    assert setting.train(tmp_path, *setting.taught, *FLAGS, epochs=EPOCHS) == 0
    assert_same_samples(travelled, tmp_path)


def test_one_process_takes_the_step_of_two(travelled: Path) -> None:
    for step in (4, 5, 7):
        assert replay(travelled, step) == 0
        found = assert_is_as_recorded(travelled, step, rel=1e-6)
        assert [(line["rank"], line["micro_batch"]) for line in found["micro_batches"]] == [
            (0, 0),
            (0, 1),
            (1, 0),
            (1, 1),
        ]
        ordinals = {
            rank: {sample["ordinal"] // 2 for sample in found["samples"] if sample["rank"] == rank}
            for rank in range(2)
        }
        assert all(unit % 2 == rank for rank, units in ordinals.items() for unit in units)
        assert "the run had 2 processes, here are 1" in found["notes"][0]
    assert replay(travelled, 10) == 0
    assert_is_as_recorded(travelled, 10)


def test_two_processes_take_the_step_of_two_bit_for_bit(travelled: Path, tmp_path: Path) -> None:
    command = ["replay", str(travelled), "--step", "7"]
    both = Ranks(tmp_path / "log", run_fastdeit, command)
    assert both.wait() == 0, both.output
    found = assert_is_as_recorded(travelled, 7)
    assert found["notes"] == [] and found["processes"] == {"run": 2, "replay": 2, "micro_batch": 4}
    assert len(json.loads((travelled / "replay-7" / "plan.json").read_text())) == 16
    assert len(list((travelled / "replay-7" / "images").iterdir())) == 32
