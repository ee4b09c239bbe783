"""Selection of a checkpoint over ranks; whole runs with a full or damaged disk."""

import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
import yaml

from fastdeit.checkpoint import writer as checkpoint_writer
from fastdeit.checkpoint.select import LoadedCheckpoint, find_checkpoint
from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint, save_checkpoint
from fastdeit.commands.runs.train import train_command as run_command
from fastdeit.distributed.world import init_distributed
from fastdeit.run import folder as run_folder
from fastdeit.run import loop, results
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.trainer import Trainer
from tests.checkpoint.test_store import LAYOUT, STATE, TENSORS, rewrite, save_with
from tests.support.compare_runs import assert_same_weights
from tests.support.images import write_shapes
from tests.support.launching import FLAGS
from tests.support.ranks import Ranks, run_fastdeit

RUN = (
    "--model deit_tiny_distilled_patch16_224 --patch-size 8 --embed-dim 32 --depth 2 "
    "--num-heads 2 --distillation-type none --input-size 32 --batch-size 8 --epochs 4 "
    "--warmup-epochs 1 --lr 0.05 --log-steps 3 --drop-path 0.3"
).split()


@pytest.fixture(scope="module", autouse=True)
def world() -> None:
    init_distributed()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with checkpoints of steps 3, 5 and 9."""
    for step in (3, 5, 9):
        save(tmp_path / "run", step)
    return tmp_path / "run"


def save(folder: Path, step: int) -> Path:
    return save_checkpoint(folder / "checkpoints", step, TENSORS, STATE | {"step": step}, keep=5)


def at(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step-{step:08d}"


def found(folder: Path, named: str = "") -> LoadedCheckpoint:
    answer = find_checkpoint(RunFolder(folder), named, LAYOUT)
    assert answer is not None
    return answer


def test_newest_checkpoint_is_loaded(folder: Path) -> None:
    answer = found(folder)
    assert (answer.path, answer.state["step"], answer.damaged) == (at(folder, 9), 9, [])
    assert torch.equal(answer.tensors["model"]["a"], TENSORS["model"]["a"])
    assert find_checkpoint(RunFolder(folder / "nowhere"), "", LAYOUT) is None


def _not_finite(path: Path) -> None:
    rewrite(
        path,
        "ema.safetensors",
        _bytes(path.parent.parent, {"a": torch.full((2, 3), torch.nan), "b.c": torch.tensor(3)}),
    )


def _other_shape(path: Path) -> None:
    rewrite(
        path,
        "model.safetensors",
        _bytes(path.parent.parent, {"a": torch.zeros(3, 2), "b.c": torch.tensor(3)}),
    )


def _bytes(folder: Path, named: dict[str, torch.Tensor]) -> bytes:
    from safetensors.torch import save as as_bytes

    return as_bytes(named)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: (path / "model.safetensors").write_bytes(b""),
    "a flipped bit": lambda path: (path / "exp_avg.safetensors").write_bytes(
        flip((path / "exp_avg.safetensors").read_bytes())
    ),
    "no manifest": lambda path: (path / "manifest.json").unlink(),
    "no state": lambda path: (path / "state.json").unlink(),
    "another schema": lambda path: (path / "manifest.json").write_text('{"format": "2.0"}'),
    "not finite": _not_finite,
    "another shape": _other_shape,
}


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 4])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_newest_checkpoint_is_skipped_unless_it_was_named(kind: str, folder: Path) -> None:
    DAMAGE[kind](at(folder, 9))
    answer = found(folder)
    assert (
        answer.path == at(folder, 5)
        and len(answer.damaged) == 1
        and "step-00000009" in answer.damaged[0]
    )
    with pytest.raises(ValueError, match="step-00000009"):
        find_checkpoint(RunFolder(folder), str(at(folder, 9)), LAYOUT)


def test_checkpoint_that_one_rank_cannot_load_is_skipped_by_all(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank finds fault with the newest one."""

    def all_gather_object(answers: list[Any], mine: Any) -> None:
        answers[:] = [
            mine,
            ValueError("rank 1: step-00000009 is damaged")
            if at(folder, 9) == asked.pop(0)
            else None,
        ]

    asked = [at(folder, 9), at(folder, 5)]
    monkeypatch.setattr(dist, "all_gather_object", all_gather_object)
    answer = found(folder)
    assert answer.path == at(folder, 5) and answer.damaged == ["rank 1: step-00000009 is damaged"]
    asked[:] = [at(folder, 9)]
    with pytest.raises(ValueError, match="rank 1: step-00000009"):
        find_checkpoint(RunFolder(folder), str(at(folder, 9)), LAYOUT)


def test_run_without_a_whole_checkpoint_is_refused(folder: Path) -> None:
    for step in (3, 5, 9):
        DAMAGE["emptied"](at(folder, step))
    with pytest.raises(
        ValueError,
        match=r"no whole checkpoint; remove them(.|\n)*step-00000009(.|\n)*step-00000003",
    ):
        find_checkpoint(RunFolder(folder), "", LAYOUT)


def test_checkpoint_of_a_later_version_is_never_skipped(folder: Path) -> None:
    (at(folder, 9) / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match="written by a later version"):
        find_checkpoint(RunFolder(folder), "", LAYOUT)


def test_named_checkpoint_is_loaded_by_the_first_start_only(folder: Path, tmp_path: Path) -> None:
    named = str(save_with(tmp_path / "other", 100, "model", dict(TENSORS["model"])))
    assert found(folder, named).path == Path(named)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"resume": ""}}))
    assert found(folder, named).path == Path(named)
    (folder / "config.yaml").write_text(yaml.safe_dump({"run": {"resume": named}}))
    assert found(folder, named).path == at(folder, 9)
    for path in list_checkpoints(folder / "checkpoints"):
        path.rename(path.with_name("gone-" + path.name))
    assert found(folder, named).path == Path(named)


def train_command(argv: list[str]) -> int:
    """The exit code, however the command ends."""
    try:
        return run_command(argv, "test")
    except SystemExit as end:
        return int(str(end.code))


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return ["--data-path", str(write_shapes(tmp_path_factory.mktemp("shapes") / "data")), *RUN]


@pytest.fixture(scope="module")
def whole(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, of which the first half of the epochs has the better scores; no step of it
    draws a number."""
    scores = iter([20.0, 90.0, 50.0, 10.0, 10.0])
    drawn: list[bool] = []

    def evaluate(models: dict[str, Any], *_: Any) -> dict[str, float]:
        score = next(scores)
        return {f"{name}/both/top1": score + 5 * (name == "ema") for name in models}

    def train_step(self: Trainer, batches: Iterator[Any]) -> torch.Tensor:
        before = generators()
        answer = original(self, batches)
        drawn.append(before != generators())
        return answer

    original, folder = Trainer.train_step, tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "evaluate", evaluate)
        patch.setattr(Trainer, "train_step", train_step)
        assert train_command([*argv, "--output-dir", str(folder)]) == 0
    assert len(drawn) == 12 and not any(drawn)
    return folder


def generators() -> tuple[Any, ...]:
    numpy = np.random.get_state(legacy=True)
    keys, place = numpy[1].tolist(), numpy[2]  # type: ignore[index,union-attr]
    return torch.get_rng_state().tolist(), random.getstate(), keys, place


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in list_checkpoints(folder / "checkpoints")]


def test_best_and_newest_checkpoints_stay_with_their_scores(whole: Path) -> None:
    assert steps(whole) == [12, 9, 6]
    state = json.loads((at(whole, 12) / "state.json").read_text())
    assert state["scores"] == {"3": 25.0, "6": 95.0, "9": 55.0, "12": 15.0} and state["best"] == {
        "step": 6,
        "top1": 95.0,
    }
    assert (
        state["step"],
        state["epoch"],
        state["samples"],
        state["skipped"],
        state["adam_step"],
    ) == (12, 4, 96, 0, 12)
    assert {
        "inputs",
        "quarantine",
        "config",
        "versions",
        "world_size",
    } <= set(state)
    earlier = json.loads((at(whole, 6) / "state.json").read_text())
    assert earlier["scores"] == {
        "3": 25.0,
        "6": 95.0,
    }  # an evaluation comes before the checkpoint of its step


def test_run_continues_while_the_disk_refuses(
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def sometimes(folder: Path, step: int, *rest: Any) -> Path:
        if step in (3, 6):
            raise OSError(5, "Input/output error")
        return save_checkpoint(folder, step, *rest)

    monkeypatch.setattr(checkpoint_writer, "save_checkpoint", sometimes)
    monkeypatch.setattr(checkpoint_writer, "RETRY_S", 0.01)
    assert train_command([*argv, "--output-dir", str(tmp_path / "run")]) == 0
    assert "checkpoint of step 6 not saved: [Errno 5] Input/output error" in capsys.readouterr().out
    assert steps(tmp_path / "run") == [12, 9]
    assert_same_weights(whole, tmp_path / "run")


ACCUMULATING = ["--micro-batch", "2", "--log-steps", "1"]


@pytest.fixture(scope="module")
def accumulated(argv: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Runs of 12 steps of four micro-batches each, by ZeRO stage: another one has the weights
    elsewhere in memory, which a processor's matrix product may depend on."""

    @functools.cache
    def run(stage: int) -> Path:
        folder = tmp_path_factory.mktemp("accumulated") / "run"
        assert (
            train_command(
                [*argv, *ACCUMULATING, "--zero-stage", str(stage), "--output-dir", str(folder)]
            )
            == 0
        )
        return folder

    return run


def test_deepspeed_settings_are_in_the_run_folder(accumulated: Callable[[int], Path]) -> None:
    settings = json.loads((accumulated(1) / "deepspeed.json").read_text())
    sizes = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [settings[name] for name in sizes] == [8, 2, 4] and settings["zero_optimization"][
        "stage"
    ] == 1


@pytest.mark.parametrize(("stage", "step", "stopped"), [(1, 3, 5), (2, 2, 3), (3, 3, 5)])
def test_stop_request_between_micro_batches_changes_no_bit(
    stage: int,
    step: int,
    stopped: int,
    argv: list[str],
    accumulated: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, whole, original = tmp_path / "run", accumulated(stage), Trainer.train_step

    def train_step(self: Trainer, batches: Iterator[Any]) -> torch.Tensor:
        return original(self, asking(batches) if self.step == step else batches)

    def asking(batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # a thread takes it
            yield batch

    here = [*argv, *ACCUMULATING, "--zero-stage", str(stage), "--output-dir", str(folder)]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", train_step)
        assert train_command(here) == 0
    assert steps(folder)[0] == stopped  # the second time at the end of an epoch
    assert train_command(here) == 0
    (mine, state), (theirs, expected) = (
        load_checkpoint(at(place, 12)) for place in (folder, whole)
    )
    assert set(mine) == set(theirs) == {"model", "exp_avg", "exp_avg_sq", "ema"}
    for stem, named in theirs.items():
        assert all(torch.equal(value, mine[stem][name]) for name, value in named.items()), stem
    assert (
        (state["step"], state["adam_step"]) == (expected["step"], expected["adam_step"]) == (12, 12)
    )
    lines = [read_json_lines(place / "metrics.jsonl") for place in (folder, whole)]
    digests = [
        [[line.get(name) for name in ("step", "lr", "loss", "digest")] for line in part]
        for part in lines
    ]
    assert digests[0] == digests[1]
    assert [line["step"] for line in lines[0] if "lr" in line] == list(range(1, 13))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], capture_output=True
    ).returncode:
        pytest.skip("file systems may not be mounted")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def fill(disk: Path) -> Path:
    """Leaves no byte."""
    ballast = disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 12)):
            pass
    return ballast


def test_full_disk_ends_no_run_and_loses_no_line_of_the_log(
    argv: list[str],
    whole: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Full from the fifth step on, over a checkpoint that cannot be saved, to the eighth; what is
    printed goes there, too."""
    original, folder = Trainer.train_step, small_disk / "run"

    def train_step(self: Trainer, batches: Iterator[Any]) -> torch.Tensor:
        if self.step == 4:
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(" " * (-file.tell() % 4096))  # a page that is there takes more
            fill(small_disk)
        if self.step == 8:
            (small_disk / "ballast").unlink()
        return original(self, batches)

    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(checkpoint_writer, "RETRY_S", 0.01)
    assert train_command([*argv, "--output-dir", str(folder), "--log-steps", "1"]) == 0
    said = capfd.readouterr()
    assert (
        "metrics.jsonl cannot be written: [Errno 28] No space left on device" in said.out
        and "can be written again" in said.out
    )
    assert "checkpoint of step 6 not saved" in said.out and not said.err
    lines = [line for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert_same_weights(whole, folder)


@pytest.mark.parametrize("when", ["at the start", "at the end"])
def test_run_folder_that_cannot_be_written_is_one_line_and_the_command_resumes(
    when: str,
    argv: list[str],
    whole: Path,
    small_disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = small_disk / "run"
    at_start = when == "at the start"
    module, name = (run_folder, "_write_folder") if at_start else (results, "_write_files")
    original = getattr(module, name)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *parts: (fill(small_disk), original(*parts))[1])
        assert train_command([*argv, "--output-dir", str(folder)]) == 1
    said = [line for line in capfd.readouterr().err.splitlines() if "no failure file" not in line]
    assert (
        len(said) == 1
        and said[0].startswith(f"fastdeit: error: --output-dir: {folder}: ")
        and "No space left" in said[0]
    )
    assert not (folder / "summary.json").exists()
    (small_disk / "ballast").unlink()
    assert train_command([*argv, "--output-dir", str(folder)]) == 0
    assert_same_weights(whole, folder)


def test_run_that_cannot_save_its_last_step_fails_and_resumes_later(
    argv: list[str],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    for last, more in ((12, []), (4, ["--stop-after-steps", "4"])):
        with monkeypatch.context() as patch:

            def never(folder: Path, step: int, *rest: Any, last: int = last) -> Path:
                if step >= last:
                    raise OSError(28, "No space left on device")
                return save_checkpoint(folder, step, *rest)

            patch.setattr(checkpoint_writer, "save_checkpoint", never)
            patch.setattr(checkpoint_writer, "RETRY_S", 0.01)
            assert train_command([*argv, "--output-dir", str(folder / str(last)), *more]) == 1
        assert f"checkpoint of step {last} not saved" in capsys.readouterr().err
        assert not (folder / str(last) / "summary.json").exists()
        assert train_command([*argv, "--output-dir", str(folder / str(last))]) == 0
        assert_same_weights(whole, folder / str(last))


def test_resuming_from_an_earlier_checkpoint_renames_later_ones(
    argv: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    here = [*argv, "--output-dir", str(folder), "--keep-checkpoints", "9"]
    assert train_command([*here, "--stop-after-steps", "7"]) == 0
    assert steps(folder) == [7, 6, 3]
    back = [*here, "--resume", str(at(folder, 3))]
    assert train_command([*back, "--stop-after-steps", "1"]) == 0
    assert steps(folder) == [4, 3] and "were renamed" in capsys.readouterr().out
    assert train_command(back) == 0  # the same command resumes from step 4
    said = " ".join(capsys.readouterr().out.split())
    assert "after step 4 of 12" in said and "were renamed" not in said
    assert_same_weights(whole, folder)


def test_checkpoint_that_is_not_finite_is_skipped(
    argv: list[str], whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = [*argv, "--output-dir", str(tmp_path / "run")]
    assert train_command([*here, "--stop-after-steps", "5"]) == 0
    weights = load_checkpoint(at(tmp_path / "run", 5))[0]["model"]
    weights["head.bias"][1] = torch.inf
    rewrite(at(tmp_path / "run", 5), "model.safetensors", _bytes(tmp_path, weights))
    assert train_command(here) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "not finite: head.bias of model" in said and "step-00000003, after step 3 of 12" in said
    assert (tmp_path / "run" / "checkpoints" / "step-00000005.aside").is_dir()
    assert_same_weights(whole, tmp_path / "run")


def test_foreign_checkpoint_is_an_error_of_one_line(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = tmp_path / "global_step5"
    theirs.mkdir()
    torch.save({"module": {}}, theirs / "mp_rank_00_model_states.pt")
    for path in (theirs, theirs / "mp_rank_00_model_states.pt"):
        assert (
            train_command([*argv, "--output-dir", str(tmp_path / "run"), "--resume", str(path)])
            == 2
        )
        assert f"{path}: no checkpoint: " in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run" / "config.yaml").exists()


def train_slowly(argv: list[str]) -> int:
    """Run `fastdeit train` as a rank, each step 60 ms longer."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Iterator[Any]) -> torch.Tensor:
        time.sleep(0.06)
        return original(self, batches)

    Trainer.train_step = train_step  # type: ignore[assignment, method-assign]
    return run_fastdeit(["train", *argv])


@pytest.mark.slow
def test_two_processes_survive_a_full_disk_and_a_damaged_checkpoint(
    argv: list[str], tmp_path: Path
) -> None:
    """Files of rank 0 may not grow any more: three saves fail, both processes end. The next start
    skips a damaged checkpoint."""
    folder = tmp_path / "run"
    command = [*argv[:2], *FLAGS, "--output-dir", str(folder)]
    ranks = Ranks(tmp_path / "first.log", train_slowly, command)
    while len(steps(folder)) < 2:
        assert ranks.is_alive, ranks.output
        time.sleep(0.05)
    rank_0 = psutil.Process(ranks.processes[0].pid)
    rank_0.rlimit(psutil.RLIMIT_FSIZE, (1 << 16, 1 << 16))
    assert ranks.wait() == 1, ranks.output
    assert ranks.output.count("File too large") >= 6 and "trying again" in ranks.output
    assert len(steps(folder)) == 2 and len(list((folder / "checkpoints").iterdir())) == 2
    newest = at(folder, steps(folder)[0])
    DAMAGE["a flipped bit"](newest)
    again = Ranks(tmp_path / "second.log", run_fastdeit, ["train", *command])
    assert again.wait() == 0, again.output
    skipped = f"checkpoint skipped: {newest}: damaged: exp_avg.safetensors"
    assert skipped in " ".join(again.output.split())
    assert (folder / "summary.json").is_file() and steps(folder)[0] == 30
