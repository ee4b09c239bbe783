"""Numerical health: skipped steps and their records, rollbacks, spikes, ranks that differ."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints, load_checkpoint
from fastdeit.commands.runs.train import train_command
from fastdeit.data.loaders.batch import Batch
from fastdeit.distributed.world import World, init_distributed
from fastdeit.kernels.mix import mix_reference
from fastdeit.reliability.health import Health, Spike
from fastdeit.reliability.replica_check import describe_difference, hash_weights
from fastdeit.storage.jsonl import AppendOnlyFile, StepLog, read_json_lines, read_records
from fastdeit.storage.run_folder import RunFolder
from fastdeit.training.build import build_trainer
from fastdeit.training.losses import DistillationLoss
from fastdeit.training.trainer import STATISTICS, Trainer
from tests.support import health_ranks
from tests.support.compare_runs import assert_same_weights
from tests.support.health_ranks import FORMS, NAN_AT, InfiniteLoss, contents, equal, flip
from tests.support.images import write_shapes
from tests.support.launching import FLAGS, Launch
from tests.support.ranks import Ranks
from tests.support.tiny_student import (
    BATCH,
    CLASSES,
    STEPS_PER_EPOCH,
    configure,
    make_batch,
    make_model,
    make_trainer,
    part,
    run_steps,
    teach,
)

TOTAL = 36  # steps of a run below, three an epoch


@pytest.fixture(scope="module")
def world() -> World:
    return init_distributed()


# a trainer


@pytest.mark.parametrize("form", FORMS)
def test_infinite_loss_with_a_finite_gradient_skips_the_step(form: str, world: World) -> None:
    trainer = make_trainer(configure(**FORMS[form], micro_batch=4), world)
    run_steps(trainer, 1, 4)
    before, criterion = contents(trainer), trainer.criterion
    batch = make_batch(1)
    for at in (0, 2):  # the first and the third of four micro-batches
        parts = [part(batch, 4 * place, 4) for place in range(4)]

        def spoilt(at: int = at, parts: list[Batch] = parts) -> Iterator[Batch]:
            for place, each in enumerate(parts):
                chosen = InfiniteLoss(criterion) if place == at else criterion
                trainer.criterion = chosen  # type: ignore[assignment]
                yield each

        values = trainer.train_step(spoilt())
        assert not trainer.applied and values[0].isinf() and equal(before, contents(trainer))
    assert trainer.state.skipped == 2 and trainer.step == 3
    trainer.criterion = criterion
    run_steps(trainer, 1, 4)
    assert trainer.applied and not equal(before, contents(trainer))


def test_gradient_norm_equals_that_of_plain_torch(world: World) -> None:
    expected = plain_norm()
    for form in FORMS:
        for micro in (BATCH, 4):
            values = make_trainer(
                configure(**FORMS[form], micro_batch=micro, clip_grad=0.1), world
            ).train_step(part(make_batch(0), at, micro) for at in range(0, BATCH, micro))
            norm = dict(zip(STATISTICS, values.tolist(), strict=True))["grad_norm"]
            assert norm == pytest.approx(expected, rel=1e-5 if "fp32" in form else 1e-2), (
                form,
                micro,
            )


def plain_norm() -> float:
    model, batch = make_model().train(), make_batch(0)
    images = mix_reference(batch.images, batch.lam, batch.box)
    DistillationLoss()(
        model(images, batch.drop_path_mask), batch.labels, batch.lam, teach(images)
    ).loss.backward()
    return torch.nn.utils.get_total_norm(
        [weight.grad for weight in model.parameters() if weight.grad is not None]
    ).item()


def test_skipped_step_leaves_batch_statistics_unchanged(world: World) -> None:
    import timm

    config = configure(zero_stage=2).replace(distill={"distillation_type": "none"})
    trainer = build_trainer(
        config, world, timm.create_model("test_resnet", num_classes=CLASSES), None, STEPS_PER_EPOCH
    )
    run_steps(trainer, 1)
    before, batch = contents(trainer), make_batch(1)
    batch.images[3, 0, 5, 5] = torch.nan
    trainer.train_step([batch])
    assert any("running_mean" in name for name in before) and equal(before, contents(trainer))


# two ranks


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    both = Ranks(folder / "log", health_ranks.main, folder)
    assert both.wait() == 0, both.output
    return json.loads((folder / "ranks.json").read_text())


@pytest.mark.parametrize("form", FORMS)
def test_bad_loss_on_one_rank_skips_the_step_on_both_and_is_recorded(
    form: str, ranks: list[dict[str, Any]]
) -> None:
    first, second = (rank[form] for rank in ranks)
    for found in (first, second):
        assert (
            found["skipped"]
            and found["untouched"]
            and all(map(torch.isfinite, map(torch.tensor, found["next"])))
        )
    assert first["norms"] == second["norms"] and all(norm > 0 for norm in first["norms"])
    assert {**first["line"], "time": 0} == {**second["line"], "time": 0}
    line, theirs = first["line"], make_batch(NAN_AT, 1, 2)
    assert (line["step"], line["epoch"], line["ordinals"]) == (
        NAN_AT,
        0,
        [NAN_AT * BATCH, (NAN_AT + 1) * BATCH],
    )
    assert line["losses"][1] == ["inf", "inf"] and all(
        isinstance(loss, float) for loss in line["losses"][0]
    )
    assert [(entry["rank"], entry["micro_batch"]) for entry in line["not_finite"]] == [
        (1, 0),
        (1, 1),
    ]
    assert sum((entry["rows"] for entry in line["not_finite"]), []) == theirs.image_index.tolist()
    assert sum((entry["ordinals"] for entry in line["not_finite"]), []) == theirs.ordinals.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_flipped_bit_on_one_rank_is_found(form: str, ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank[form]["equal"] == [None, None]
        assert rank[form]["flipped"].startswith(
            "the ranks have different cls_token (hashes rank 0: "
        )


def test_ranks_in_the_minority_are_named() -> None:
    names, sums = ["a", "b", "c"], torch.tensor([[7, 8, 9]] * 5)
    assert describe_difference(names, sums) is None
    sums[3, 1] += 1
    assert describe_difference(names, sums) == "rank 3 of 5 has another b"
    sums[0, 2] -= 1
    assert (
        describe_difference(names, sums)
        == "ranks 0, 3 of 5 have another b, the first of 2 parameters"
    )
    two = describe_difference(names, torch.tensor([[1, 2, 3], [1, 2, -4]]))
    assert (
        two
        == "the ranks have different c (hashes rank 0: 0000000000000003, rank 1: fffffffffffffffc)"
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_any_flipped_bit_changes_the_hash(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 5).to(dtype))
    module = torch.nn.ParameterList([weight])
    sums = {hash_weights([weight]).item()}
    for bit in range(8 * weight.element_size()):
        flip(module, bit)
        sums.add(hash_weights([weight]).item())
        flip(module, bit)
    assert len(sums) == 8 * weight.element_size() + 1


# the records


def make_health(folder: Path, warnings: list[str]) -> Health:
    health = Health(RunFolder(folder), 10, 8, warnings.append)
    health.open(0)
    health.begin(0)
    return health


def test_spike_is_a_norm_above_ten_times_the_median_of_the_steps_before(
    tmp_path: Path, world: World
) -> None:
    warnings: list[str] = []
    health = make_health(tmp_path, warnings)
    for step in range(19):
        health.note_applied(step, [1.0, 1.0, 0.0, 1e6 if step == 0 else 2.0])  # too early to tell
    for step, norm in ((19, 3.0), (20, 20.0), (21, 20.1), (22, 2000.0)):
        health.note_applied(step, [0.5, 0.5, 0.0, norm])
    health.close()
    lines = read_json_lines(RunFolder(tmp_path).spikes)
    assert [(line["step"], line["grad_norm"], line["median"]) for line in lines] == [
        (21, 20.1, 2.0),
        (22, 2000.0, 2.0),
    ]
    assert (lines[1]["epoch"], lines[1]["ordinals"], lines[1]["loss"]) == (2, [16, 24], 0.5)
    assert (
        len(warnings) == 2 and "step 22: gradient norm 2e+03, 1000 times the median" in warnings[1]
    )
    # back at an earlier step, only those of before are compared with, and only their lines stay
    health.open(22)
    health.begin(22)
    assert [line["step"] for line in read_json_lines(RunFolder(tmp_path).spikes)] == [21]
    health.note_applied(22, [0.5, 0.5, 0.0, 20.1])
    health.close()
    assert [line["step"] for line in read_json_lines(RunFolder(tmp_path).spikes)] == [21, 22]


def test_norm_of_a_step_that_is_done_again_is_not_compared_with(
    tmp_path: Path, world: World
) -> None:
    health = make_health(tmp_path, [])
    for step in range(21):
        health.note_applied(step, [1.0, 1.0, 0.0, 1.0 if step < 10 else 3.0])
    health.open(20)
    health.begin(20)
    health.note_applied(20, [1.0, 1.0, 0.0, 25.0])  # their median is 2; with step 20's norm 3
    health.close()
    assert [spike.median for spike in read_records(RunFolder(tmp_path).spikes, Spike)] == [2.0]


def test_large_norm_is_no_spike_in_the_first_twenty_steps(tmp_path: Path, world: World) -> None:
    health = make_health(tmp_path, [])
    for step in range(20):
        health.note_applied(step, [1.0, 1.0, 0.0, 1e6 if step == 10 else 2.0])
    assert not RunFolder(tmp_path).spikes.exists()
    health.note_applied(20, [1.0, 1.0, 0.0, 1e6])
    health.close()
    assert [spike.step for spike in read_records(RunFolder(tmp_path).spikes, Spike)] == [20]


def test_norm_after_steps_without_a_gradient_is_no_spike(tmp_path: Path, world: World) -> None:
    health = make_health(tmp_path, [])
    for step in range(30):
        health.note_applied(step, [1.0, 1.0, 0.0, 0.0 if step < 29 else 5.0])
    health.close()
    assert not RunFolder(tmp_path).spikes.exists()


def test_spike_is_compared_with_the_last_hundred_steps(tmp_path: Path, world: World) -> None:
    """Norms of 1, 9 and 50: the median is 1 over a hundred steps, 9 over half as many."""
    health = make_health(tmp_path, [])
    for step in range(100):
        health.note_applied(step, [1.0, 1.0, 0.0, 1.0 if step < 60 else 9.0])
    health.note_applied(100, [1.0, 1.0, 0.0, 50.0])
    for step in range(101, 160):
        health.note_applied(step, [1.0, 1.0, 0.0, 9.0])
    health.note_applied(160, [1.0, 1.0, 0.0, 50.0])  # no step of norm 1 is in the window now
    health.close()
    (spike,) = read_records(RunFolder(tmp_path).spikes, Spike)
    assert (spike.step, spike.median) == (100, 1.0)


def make_spike(step: int) -> Spike:
    return Spike(step=step, grad_norm=20.0, median=1.0, loss=0.5)


def test_step_log_keeps_earlier_records_and_survives_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    path = tmp_path / "lines.jsonl"
    log = StepLog(path, Spike, lambda step: True, warnings.append)
    assert not path.exists()
    for step in (1, 5, 9):
        log.append(make_spike(step))
    log.close()
    path.write_text(path.read_text() + '{"step": 1')  # cut short by a kill
    log = StepLog(path, Spike, lambda step: step < 6, warnings.append)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(AppendOnlyFile, "__init__", refuse)
        log.append(make_spike(6))
    assert len(warnings) == 1 and "No space left" in warnings[0]
    log.append(make_spike(7))
    log.close()
    assert [line["step"] for line in read_json_lines(path)] == [1, 5, 7]


@pytest.mark.parametrize(
    "line", ['{"passed_over": [3, 1', '{"passed_over": [1.5, 3]}', '{"bad_steps": [3]}', "[4]"]
)
def test_damaged_rollbacks_file_is_refused(
    line: str, argv: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rollbacks.jsonl").write_text('{"passed_over": [2, 9]}\n' + line)
    with pytest.raises(SystemExit, match="2"):
        start(argv, tmp_path)
    assert f"{tmp_path}/rollbacks.jsonl: damaged line (got '{line}'" in capfd.readouterr().err


# whole runs


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory, world: World) -> list[str]:
    data = write_shapes(tmp_path_factory.mktemp("health") / "data")
    return [
        "--data-path",
        str(data),
        *FLAGS,
        "--epochs",
        "12",
        "--eval-epochs",
        "12",
        "--keep-checkpoints",
        "9",
    ]


def plant(monkeypatch: pytest.MonkeyPatch, steps: Iterable[int]) -> None:
    """A NaN in an image of each of these steps."""
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Iterable[Batch]) -> torch.Tensor:
        return original(self, spoil(batches) if self.step in steps else batches)

    def spoil(batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            batch.images[1, 0, 5, 5] = torch.nan
            yield batch

    monkeypatch.setattr(Trainer, "train_step", train_step)


def start(argv: list[str], folder: Path, *more: str) -> int:
    return train_command([*argv, "--output-dir", str(folder), *more], "test")


def steps_of(folder: Path, name: str) -> list[int]:
    return [line["step"] for line in read_json_lines(folder / name)]


def strict(text: str) -> Any:
    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_bad_steps_are_recorded_and_training_continues(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, (4, 6, 7, 8))
    assert start(argv, tmp_path, "--clip-grad", "1", "--log-steps", "2") == 0
    lines = [strict(line) for line in RunFolder(tmp_path).bad_steps.read_text().splitlines()]
    assert [line["step"] for line in lines] == [4, 6, 7, 8]
    assert lines[0]["losses"] == [["nan"]] and len(lines[0]["not_finite"][0]["images"]) == 8
    assert lines[0]["not_finite"][0]["images"][0].startswith("train/")
    said = capfd.readouterr().out
    assert said.count("skipped on all ranks") == 2  # one a row
    metrics = [strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in metrics if "lr" in line}
    assert (
        set(STATISTICS) | {"grad_norm_max", "clipped"} <= set(logged[6]) and "loss" not in logged[8]
    )
    for line in (line for line in metrics if "loss" in line):
        assert line["grad_norm_max"] >= line["grad_norm"] > 0 and 0 <= line["clipped"] <= 1
    assert (
        logged[TOTAL]["skipped"] == 4
        and not list(tmp_path.glob("rollbacks*"))
        and not list(tmp_path.glob("bad-step-*"))
    )


def test_run_rolls_back_after_too_many_bad_steps_and_skips_them(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, range(7, 11))
    gone_back = tmp_path / "gone-back"
    assert start(argv, gone_back) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "steps 7 to 10 were bad: rolled back to" in said
        and "step-00000006, skipping all steps up to 10" in said
    )
    (entry,) = read_json_lines(gone_back / "rollbacks.jsonl")
    assert (entry["checkpoint"], entry["bad_steps"], entry["passed_over"]) == (
        6,
        [7, 8, 9, 10],
        [6, 11],
    )
    metrics = {
        line["step"]: line for line in read_json_lines(gone_back / "metrics.jsonl") if "lr" in line
    }
    assert sorted(metrics) == list(range(1, TOTAL + 1))
    assert [step for step, line in metrics.items() if "loss" not in line] == [7, 8, 9, 10, 11]
    assert metrics[TOTAL]["skipped"] == 5 and steps_of(gone_back, "bad-steps.jsonl") == [
        7,
        8,
        9,
        10,
    ]
    # stopped amid the bad steps, and again amid those that are passed over
    for stop in (9, 2, 0):
        assert start(argv, tmp_path / "stopped", "--stop-after-steps", str(stop)) == 0
    assert_same_weights(gone_back, tmp_path / "stopped")
    assert steps_of(tmp_path / "stopped", "bad-steps.jsonl") == [7, 8, 9, 10]
    # begun anew, it passes over them without having met them
    (tmp_path / "anew").mkdir()
    (tmp_path / "anew" / "rollbacks.jsonl").write_bytes(
        (gone_back / "rollbacks.jsonl").read_bytes()
    )
    assert start(argv, tmp_path / "anew") == 0
    assert_same_weights(gone_back, tmp_path / "anew")


def test_weights_that_are_not_finite_are_rolled_back(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    original = Trainer.train_step

    def train_step(self: Trainer, batches: Iterable[Batch]) -> torch.Tensor:
        values = original(self, batches)
        if self.step == 8:
            self.state.partitions.masters[0][0] = torch.inf
            self.state.partitions.load(self.state.weights())
        return values

    monkeypatch.setattr(Trainer, "train_step", train_step)
    assert start(argv, tmp_path) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert (
        "checkpoint of step 9 not saved: not finite: " in said
        and "steps 8 to 11 were bad: rolled back to" in said
    )
    assert all(
        value.isfinite().all() for value in load_file(tmp_path / "model.safetensors").values()
    )


def test_run_stops_with_a_debug_bundle_when_rollbacks_do_not_help(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "run"
    with monkeypatch.context() as spoilt:
        plant(spoilt, range(7, TOTAL))
        for _ in range(2):  # the second start comes to the same end
            assert start(argv, folder) == 1
            said = " ".join(capfd.readouterr().err.split())
            assert (
                "steps 15 to 18 were skipped, --max-bad-steps is 3, and the run rolled back 2 times"
                in said
            ), said
            assert "--step 15" in said and said.count("fastdeit: error") == 1
            failure = json.loads((folder / "failure-rank0.json").read_text())
            assert failure["step"] == 19 and failure["error"].startswith(
                "fastdeit.reliability.health.HealthError: steps 15 to 18"
            )
    assert [entry["passed_over"] for entry in read_json_lines(folder / "rollbacks.jsonl")] == [
        [6, 11],
        [3, 15],
    ]
    report = strict((folder / "bad-step-15" / "report.json").read_text())
    assert [line["step"] for line in report["bad_steps"]] == [15, 16, 17, 18] and not report[
        "faults"
    ]
    assert (
        report["code"]
        and report["versions"]["torch"]
        and report["config"]["optim"]["batch_size"] == 8
    )
    (checkpoint,) = list_checkpoints(folder / "bad-step-15")
    tensors, state = load_checkpoint(checkpoint)
    three, state_of_three = load_checkpoint(folder / "checkpoints" / "step-00000003")
    assert (state["step"], state["skipped"], state["digest"]) == (15, 12, state_of_three["digest"])
    assert all(
        torch.equal(value, tensors[stem][name])
        for stem, named in three.items()
        for name, value in named.items()
    )
    # what was wrong is put right
    assert start(argv, folder, "--max-rollbacks", "3") == 0 and (folder / "summary.json").is_file()


def test_run_stops_without_a_checkpoint_to_roll_back_to(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, range(1, 9))
    assert start(argv, tmp_path / "run", "--max-bad-steps", "1") == 1
    assert "there is no checkpoint from before step 1; " in " ".join(capfd.readouterr().err.split())
    assert [path.name for path in list_checkpoints(tmp_path / "run" / "bad-step-1")] == [
        "step-00000001"
    ]
    report = strict((tmp_path / "run" / "bad-step-1" / "report.json").read_text())
    assert [step["step"] for step in report["recent_steps"]] == [0] and report["recent_steps"][0][
        "grad_norm"
    ] > 0


def test_full_disk_for_the_debug_bundle_is_reported(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plant(monkeypatch, range(1, 9))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "bad-step-1").write_text("in the way")
    assert start(argv, folder, "--max-bad-steps", "0") == 1
    said = " ".join(capfd.readouterr().err.split())
    assert (
        "is incomplete: no checkpoint: " in said
        and "no report: " in said
        and "Traceback" not in said
    )


def test_gradient_a_thousand_times_too_large_is_clipped_and_recorded(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    clip = ("--clip-grad", "0.5", "--distillation-type", "none")
    assert start(argv, tmp_path / "calm", *clip) == 0
    original: Callable[..., Any] = DistillationLoss.__call__
    calls: list[None] = []

    def thousandfold(self: DistillationLoss, *arguments: Any) -> Any:
        parts = original(self, *arguments)
        calls.append(None)
        return parts._replace(loss=parts.loss * 1000) if len(calls) == 26 else parts

    monkeypatch.setattr(DistillationLoss, "__call__", thousandfold)
    assert start(argv, tmp_path / "spiky", *clip) == 0
    (spike,) = read_json_lines(RunFolder(tmp_path / "spiky").spikes)
    assert (
        spike["step"] == 25
        and 300 < spike["grad_norm"] / spike["median"] < 3000
        and spike["loss"] > 300
    )
    assert (
        "step 25: gradient norm" in capfd.readouterr().out
        and not RunFolder(tmp_path / "calm").spikes.exists()
    )
    calm, spiky = (
        {
            line["step"]: line
            for line in read_json_lines(tmp_path / name / "metrics.jsonl")
            if "loss" in line
        }
        for name in ("calm", "spiky")
    )
    assert spiky[26]["grad_norm"] == pytest.approx(1000 * calm[26]["grad_norm"], rel=1e-3)
    # clipped to the same norm, it trains the same
    assert spiky[27]["loss"] == pytest.approx(calm[27]["loss"], rel=1e-3)
    assert_same_direction(tmp_path / "calm", tmp_path / "spiky")


def assert_same_direction(one: Path, two: Path) -> None:
    left, right = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=1e-2, atol=1e-4, msg=name)


# under the launcher


@pytest.mark.slow
def test_launched_ranks_roll_back_together_and_stop_when_they_differ(
    argv: list[str], tmp_path: Path
) -> None:
    faults = ",".join(f"nan:1:{step}" for step in range(7, 11))
    launch = Launch(tmp_path / "run", [*argv, "--checksum-steps", "4"], f"{faults},flip:1:20")
    assert launch.wait() == 1
    (entry,) = read_json_lines(launch.folder / "rollbacks.jsonl")
    assert entry["passed_over"] == [6, 11]
    assert {
        place["rank"]
        for line in read_json_lines(RunFolder(launch.folder).bad_steps)
        for place in line["not_finite"]
    } == {1}
    said = " ".join(launch.output.split())
    assert "after step 20 the ranks have different cls_token (hashes rank 0: " in said
    assert "all were equal after step 18, and at every checkpoint up to then" in said
    assert launch.output.count("fastdeit: error") == 1 and "Traceback" not in launch.output
    for rank in (0, 1):
        failure = json.loads((launch.folder / f"failure-rank{rank}.json").read_text())
        assert failure["step"] == 20 and "have different cls_token" in failure["error"]
    assert list_checkpoints(launch.folder / "checkpoints")[0].name == "step-00000018"
    page = RunFolder(launch.folder).report.read_text()
    # rank 1 may report after the page is written; either rank may be in the section "data"
    assert "rank 0 failed in " in page and "rolled back to step 6" in page
    assert not launch.alive()
