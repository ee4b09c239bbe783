"""Inputs of a run: recorded at its start and in each checkpoint, compared when it is resumed, asked
for again after its end, or replayed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdeit.checkpoint.files import _write_manifest
from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.commands.runs.replay import replay_command
from fastdeit.distributed import collectives
from fastdeit.distributed.world import init_distributed
from fastdeit.run import build
from fastdeit.run.inputs import (
    check_same_inputs,
    check_same_inputs_everywhere,
    keep_facts,
    list_changed_inputs,
    list_unknown_inputs,
    read_inputs,
)
from fastdeit.storage.attempts import read_attempts
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import hash_tensors
from tests.support.cache_runs import MODEL, Setting, train, write_teacher
from tests.support.ranks import Ranks, run_fastdeit

TEACHER = {"name": "a", "weights": "1" * 64, "mean": [0.5], "path": "A"}
INPUTS: dict[str, Any] = {
    "samples": {"plan": "p"},
    "teacher": TEACHER,
    "teacher output": {"form": "logits", "path": "A"},
    "finetune": None,
    "initial weights": {"sha256": "2" * 64, "path": "as built"},
}
SOURCE = Path("run")


def test_only_facts_that_both_have_are_compared_and_never_paths() -> None:
    moved = INPUTS | {"teacher": TEACHER | {"path": "B", "new": 1}}
    assert list_changed_inputs(INPUTS, moved, list(INPUTS)) == []
    assert list_changed_inputs({}, moved, list(INPUTS)) == []


def test_another_teacher_is_named_with_both_paths_and_hashes() -> None:
    other = INPUTS | {"teacher": TEACHER | {"path": "B", "weights": "3" * 64, "mean": [0.1]}}
    line = "teacher: A (weights 111111111111, mean [0.5]), now B (weights 333333333333, "
    assert list_changed_inputs(INPUTS, other, ["teacher"]) == [f"{line}mean [0.1])"]
    with pytest.raises(ValueError, match="^run: belongs to a run with other inputs: teacher: A"):
        check_same_inputs(INPUTS, other, SOURCE)
    none = INPUTS | {"teacher": None}
    assert list_changed_inputs(INPUTS, none, ["teacher"]) == ["teacher: A, now none"]
    assert list_changed_inputs(none, INPUTS, ["teacher"]) == ["teacher: none, now A"]


def test_another_form_of_the_teachers_output_is_a_note() -> None:
    cached = INPUTS | {"teacher output": {"form": "top 10 logits", "path": "CACHE"}}
    (note,) = check_same_inputs(INPUTS, cached, SOURCE)
    assert note.startswith("teacher output: A (form logits), now CACHE (form top 10 logits)")


def test_what_no_hash_shows_is_a_note() -> None:
    older = {"teacher": {"name": "a", "sha256": "9", "path": "CACHE"}}
    for recorded in ({}, older):
        assert list_changed_inputs(recorded, INPUTS, ["teacher"]) == []
        (note,) = list_unknown_inputs(recorded, INPUTS, ["teacher", "finetune"], SOURCE)
        assert note.startswith("nothing shows whether run had the same teacher: an older")
    assert list_unknown_inputs(INPUTS, INPUTS, ["teacher", "finetune"], SOURCE) == []


def test_hashes_of_older_versions_stay_beside_the_new_ones() -> None:
    older = {"teacher": {"name": "a", "sha256": "9", "path": "CACHE"}}
    now = dict(INPUTS)
    keep_facts(older, now)
    assert now["teacher"] == TEACHER | {"sha256": "9"}
    keep_facts({}, now)
    other_cache = INPUTS | {"teacher": {"sha256": "8", "path": "CACHE"}}
    (line,) = list_changed_inputs(now, other_cache, ["teacher"])
    assert line == "teacher: A (sha256 9), now CACHE (sha256 8)"


def test_ranks_with_other_inputs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    facts: list[Any] = []
    monkeypatch.setattr("fastdeit.run.inputs.check_same_on_ranks", facts.append)
    check_same_inputs_everywhere(INPUTS)
    check_same_inputs_everywhere(INPUTS | {"teacher": TEACHER | {"path": "B"}})
    check_same_inputs_everywhere(INPUTS | {"teacher": TEACHER | {"weights": "3" * 64}})
    assert facts[0] == facts[1]
    ranks = [("a", facts[0]), ("b", facts[2])]
    monkeypatch.setattr(collectives, "on_every_rank", lambda action: ranks)
    with pytest.raises(ValueError, match=r"rank 1 \(b\) .* in teacher weights: '1+', there '3+'"):
        collectives.check_same_on_ranks(facts[0])


def test_ranks_with_other_teachers_exit_before_any_file_is_written(
    setting: Setting, tmp_path: Path
) -> None:
    teacher = ["--teacher-model", "tests.support.rank_teacher:network"]
    argv = ["train", *setting.samples, *MODEL, *teacher, "--output-dir", str(tmp_path / "run")]
    ranks = Ranks(tmp_path / "log", run_fastdeit, argv)
    assert ranks.wait() == 2
    assert "differs from rank 0 in teacher weights: '" in ranks.output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", ["[]", "{", '{"teacher": 5}', '{"teacher": "' + "x" * 2**21])
def test_damaged_record_is_refused_by_name(content: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.inputs.write_text(content)
    with pytest.raises(ValueError, match=r"inputs\.json: damaged"):
        read_inputs(folder)


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    init_distributed()
    return Setting(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def stopped(setting: Setting) -> Path:
    """A run of two epochs that was stopped after step 2, with the weights of --finetune."""
    finetune = setting.root / "start"
    alone = ["--distillation-type", "none"]
    assert setting.train(finetune, *alone, epochs=1) == 0
    folder = setting.root / "stopped"
    flags = [*setting.taught, "--finetune", str(finetune / "model.safetensors")]
    assert setting.train(folder, *flags, "--stop-after-steps", "2", epochs=2) == 0
    return folder


class Case:
    """A copy of the stopped run with its own teacher and start, and the command that resumes it."""

    def __init__(self, setting: Setting, stopped: Path, root: Path) -> None:
        self.setting = setting
        self.folder = RunFolder(shutil.copytree(stopped, root / "run"))
        self.teacher = shutil.copy(setting.teacher, root / "teacher.safetensors")
        start = setting.root / "start" / "model.safetensors"
        self.start = shutil.copy(start, root / "start.safetensors")

    def train(self, *flags: str) -> int:
        taught = ["--teacher-model", "test_resnet", "--teacher-path", str(self.teacher)]
        flags = (*taught, "--finetune", str(self.start), *flags)
        return self.setting.train(self.folder.path, *flags, epochs=2)

    def replay(self, step: int, *flags: str) -> tuple[int, dict[str, Any]]:
        """Return the exit code of a replay with this teacher, and its step.json."""
        flags = ("--teacher-path", str(self.teacher), "--finetune", str(self.start), *flags)
        code = replay_command([str(self.folder), "--step", str(step), *flags])
        return code, json.loads((self.folder.replay(step) / "step.json").read_text())

    def change_teacher(self) -> None:
        write_teacher(Path(self.teacher), self.setting.data, seed=4)

    def change_start(self) -> None:
        state = load_file(self.start)
        torch.save({name: value + 1 for name, value in state.items()}, self.start)
        self.start = Path(self.start).rename(Path(self.start).with_suffix(".pth"))

    def make_older(self) -> None:
        """Remove what older versions did not write."""
        self.folder.inputs.unlink()
        for path in list_checkpoints(self.folder.checkpoints):
            state = json.loads((path / "state.json").read_text())
            state |= state.pop("inputs")["samples"]
            rewrite_state(path, state)


def rewrite_state(checkpoint: Path, state: dict[str, Any]) -> None:
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "manifest.json").unlink()
    _write_manifest(checkpoint)


@pytest.fixture
def case(setting: Setting, stopped: Path, tmp_path: Path) -> Case:
    return Case(setting, stopped, tmp_path)


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No data is loaded in this test."""

    def load(*_: object) -> None:
        raise AssertionError("loads data")

    monkeypatch.setattr(build, "build_data", load)
    yield


def test_the_record_has_every_hash_at_the_start_and_in_each_checkpoint(stopped: Path) -> None:
    inputs = read_inputs(RunFolder(stopped))
    assert inputs.keys() == INPUTS.keys()
    assert inputs["samples"].keys() == {"plan", "data set", "batch size", "augmentation"}
    assert len(inputs["teacher"]["weights"]) == len(inputs["finetune"]["sha256"]) == 64
    newest = list_checkpoints(stopped / "checkpoints")[0]
    assert json.loads((newest / "state.json").read_text())["inputs"] == inputs
    start = load_file(stopped.parent / "start" / "model.safetensors")
    assert inputs["initial weights"]["sha256"] == hash_tensors(start)


def test_moved_files_with_equal_content_resume(case: Case) -> None:
    about = {"input_size": "32", "note": "other bytes"}
    case.teacher = Path(case.teacher).with_name("moved.safetensors")
    save_file(load_file(case.setting.teacher), case.teacher, about)
    before = read_inputs(case.folder)
    assert case.train("--stop-after-steps", "1") == 0
    now = read_inputs(case.folder)
    moved = {"path": str(case.teacher), "file": hash_file(case.teacher)}
    assert now["teacher"] == before["teacher"] | moved
    assert now["initial weights"] == before["initial weights"]
    settings = [attempt.settings for attempt in read_attempts(case.folder)]
    assert [one["run"]["stop_after_steps"] for one in settings] == [2, 1]
    assert settings[1]["distill"]["teacher_path"] == str(case.teacher)


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.usefixtures("no_data")
def test_another_teacher_is_refused_before_data_is_loaded(
    finished: bool, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    if finished:
        case.folder.summary.write_text('{"results": {}}')
    case.change_teacher()
    assert case.train() == 2
    error = capfd.readouterr().err
    assert f"with other files: --teacher-path: {case.setting.teacher} (weights " in error
    assert f"now {case.teacher} (weights " in error and error.count("\n") == 1


@pytest.mark.usefixtures("no_data")
def test_other_weights_of_finetune_are_refused(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.change_start()
    assert case.train() == 2
    assert f"now {case.start} (sha256 " in capfd.readouterr().err


def test_cache_of_the_same_teacher_resumes_and_of_another_is_refused(
    case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    setting = case.setting
    for name, code in (("same", 0), ("other", 2)):
        if name == "other":
            case.change_teacher()
        teacher = ["--teacher-path", str(case.teacher)]
        assert setting.build(tmp_path / name, *teacher) == 0
        flags = ["--cache", str(tmp_path / name), "--finetune", str(case.start)]
        capfd.readouterr()
        stop = ["--stop-after-steps", "1"]
        assert setting.train(case.folder.path, *flags, *stop, epochs=2) == code
    error = capfd.readouterr().err
    assert "belongs to a run with other inputs: teacher: " in error
    assert f"now {tmp_path / 'other'} (weights " in error


def test_replay_with_another_teacher_says_so_and_exits_with_1(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    code, good = case.replay(1)
    assert (code, good["inputs"]["same"], good["notes"]) == (0, True, [])
    case.change_teacher()
    capfd.readouterr()
    code, bad = case.replay(1)
    assert (code, bad["inputs"]["same"]) == (1, False)
    assert bad["recorded"]["same_samples"] is True
    assert bad["now"]["loss"] != good["now"]["loss"]
    assert "another input than in the run, so another loss: teacher: " in bad["notes"][0]
    said = capfd.readouterr()
    assert "another input than in the run: teacher: " in said.err  # before the step is repeated
    assert "OTHER INPUTS" in said.out


def test_soft_loss_from_a_cache_of_the_same_teacher_is_another_output(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    soft = ["--distillation-type", "soft"]
    live = [*setting.taught, *soft, "--stop-after-steps", "2"]
    assert setting.train(run, *live, epochs=2) == 0
    assert setting.build(cache, *soft, "--kind", "topk", "--k", "2") == 0
    assert replay_command([str(run), "--step", "1", "--cache", str(cache)]) == 1
    (note,) = json.loads((run / "replay-1" / "step.json").read_text())["notes"]
    assert "teacher output: logits, now top 2" in note
    capfd.readouterr()
    cached = [*setting.taught, *soft, "--cache", str(cache), "--keep-checkpoints", "9"]
    assert setting.train(run, *cached, epochs=2) == 0
    assert "from here on the losses are others" in " ".join(capfd.readouterr().out.split())
    for step in (1, 2):  # the checkpoint of step 2 was saved with the live teacher
        assert replay_command([str(run), "--step", str(step)]) == 0


def test_replay_uses_the_settings_of_the_start_that_trained_the_step(
    case: Case, tmp_path: Path
) -> None:
    """The run is resumed with a cache, whose settings are then in config.yaml."""
    cache, flags = tmp_path / "cache", ["--finetune", str(case.start)]
    assert case.setting.build(cache, "--teacher-path", str(case.teacher)) == 0
    assert case.setting.train(case.folder.path, *flags, "--cache", str(cache), epochs=2) == 0
    shutil.rmtree(cache)
    assert replay_command([str(case.folder), "--step", "1", *flags]) == 0
    step = json.loads((case.folder.replay(1) / "step.json").read_text())
    assert step["inputs"]["now"]["teacher output"]["path"] == "the live teacher"
    with pytest.raises(SystemExit):
        replay_command([str(case.folder), "--step", "4", *flags])


def test_replay_compares_initial_weights_only_if_it_starts_from_them(case: Case) -> None:
    case.change_start()
    code, from_start = case.replay(1)
    assert code == 1
    notes = " ".join(from_start["notes"])
    assert "finetune: " in notes and "initial weights: as built (sha256 " in notes
    code, from_checkpoint = case.replay(2)
    assert (code, from_checkpoint["inputs"]["same"]) == (0, True)


def test_older_run_resumes_with_a_note_and_records_from_then_on(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.make_older()
    code, replayed = case.replay(1)
    assert (code, replayed["inputs"]["same"]) == (0, None)
    assert "had the same teacher: an older version" in replayed["notes"][0]
    assert "had the same initial weights: an older version" in " ".join(replayed["notes"])
    capfd.readouterr()
    assert case.train("--stop-after-steps", "1") == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "had the same teacher: an older version" in printed
    inputs = read_inputs(case.folder)
    assert inputs["teacher"] is not None and inputs["initial weights"] is None
    assert case.replay(1)[1]["inputs"]["same"] is None
    case.change_teacher()
    assert case.train() == 2


def test_other_initial_weights_are_a_note_and_the_record_stays(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    """As with another version of torch, in which a seed may mean other weights."""
    (checkpoint,) = list_checkpoints(case.folder.checkpoints)
    state = json.loads((checkpoint / "state.json").read_text())
    state["inputs"]["initial weights"]["sha256"] = "5" * 64
    rewrite_state(checkpoint, state)
    assert case.train("--stop-after-steps", "1") == 0
    printed = " ".join(capfd.readouterr().out.split())
    assert "a replay from step 0 would begin with other initial weights" in printed
    assert read_inputs(case.folder)["initial weights"]["sha256"] == "5" * 64
    assert case.replay(2)[0] == 0 and case.replay(1)[0] == 1


def test_run_that_starts_from_a_checkpoint_records_it(
    case: Case, setting: Setting, tmp_path: Path
) -> None:
    other = RunFolder(tmp_path / "other")
    checkpoint = list_checkpoints(case.folder.checkpoints)[0]
    flags = ["--epochs", "2", "--finetune", str(case.start), "--resume", str(checkpoint)]
    stop = ["--stop-after-steps", "2", "--output-dir", str(other)]
    assert train([*setting.samples, *MODEL, *setting.taught, *flags, *stop]) == 0
    recorded = read_inputs(other)["initial weights"]
    assert recorded["path"] == str(checkpoint)
    case.folder = other
    assert case.replay(2)[0] == 0
    state = json.loads((checkpoint / "state.json").read_text())
    rewrite_state(checkpoint, state | {"epoch": 7})
    code, replayed = case.replay(2)
    assert code == 1 and "initial weights: " in replayed["notes"][0]


BRANCH = "--lr 0.02 --epochs 3 --hflip 0.9 --weight-decay 0.2 --distillation-type none".split()


def test_a_run_with_other_settings_begins_from_a_checkpoint_of_another(
    case: Case, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Rate, length, augmentation and teacher are others; it resumes, replays, and shows where it
    comes from."""
    other = RunFolder(tmp_path / "other")
    checkpoint = list_checkpoints(case.folder.checkpoints)[0]
    flags = ["--finetune", str(case.start), "--resume", str(checkpoint), *BRANCH]
    argv = [*setting.samples, *MODEL, *flags, "--output-dir", str(other)]
    assert train([*argv, "--stop-after-steps", "2"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert "--hflip was 0.5, now 0.9" in said and "--epochs was 2, now 3" in said
    assert "samples: " in said and "from step 2 on" in said
    assert train(argv) == 0
    settings = other.config.read_text()
    (line,) = [line for line in settings.splitlines() if line.startswith("# begins from")]
    assert line.startswith(f"# begins from {checkpoint} (sha256 ") and "--lr was" in line
    metrics = [json.loads(text) for text in other.metrics.read_text().splitlines()]
    rates = [rate for line in metrics for rate in line.get("by_step", {}).get("lr", [])]
    assert len(rates) == 3 * 3 - 2 and max(rates) < 0.02
    case.folder = other
    assert case.replay(2)[0] == 0
    assert case.replay(5)[0] == 0
    third = RunFolder(tmp_path / "third")
    newest = list_checkpoints(other.checkpoints)[0]
    more = ["--epochs", "4", "--resume", str(newest), "--output-dir", str(third)]
    assert train([*argv, *more]) == 0
    origins = [line for line in third.config.read_text().splitlines() if "begins from" in line]
    assert [str(checkpoint) in origins[0], str(newest) in origins[1]] == [True, True]
    assert origins[1].endswith(": --epochs was 3, now 4")


def test_a_run_from_a_checkpoint_with_the_same_settings_is_the_same_run(
    case: Case, setting: Setting, tmp_path: Path
) -> None:
    checkpoint = tmp_path / "elsewhere" / "step-00000002"
    shutil.copytree(list_checkpoints(case.folder.checkpoints)[0], checkpoint)
    assert case.train() == 0
    other = tmp_path / "other"
    flags = [*setting.taught, "--finetune", str(case.start), "--resume", str(checkpoint)]
    assert setting.train(other, *flags, epochs=2) == 0
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (other, case.folder.path))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--epochs", "2", "--batch-size", "2"], "was saved with another batch size: 16, now 2"),
        (["--epochs", "2", "--patch-size", "4"], "(32, 3, 8, 8) float32, not (32, 3, 4, 4)"),
    ],
)
def test_a_checkpoint_that_cannot_begin_the_run_is_refused(
    case: Case,
    setting: Setting,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    flags: list[str],
    message: str,
) -> None:
    checkpoint = list_checkpoints(case.folder.checkpoints)[0]
    argv = [*setting.samples, *MODEL, *setting.taught, *flags, "--resume", str(checkpoint)]
    assert train([*argv, "--output-dir", str(tmp_path / "other")]) == 2
    assert message in " ".join(capfd.readouterr().err.split())
    assert not (tmp_path / "other" / "config.yaml").exists()


def test_a_run_that_ends_before_its_checkpoint_is_refused(
    case: Case, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert case.train() == 0
    checkpoint = list_checkpoints(case.folder.checkpoints)[0]
    flags = [*setting.taught, "--resume", str(checkpoint)]
    assert setting.train(tmp_path / "other", *flags, epochs=2) == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"--epochs must be more than 2, the epoch of the checkpoint {checkpoint}" in said


def test_the_refusal_of_other_settings_names_how_to_begin_another_run(
    case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = list_checkpoints(case.folder.checkpoints)[0]
    assert case.train("--lr", "0.3") == 2
    said = " ".join(capfd.readouterr().err.split())
    assert f"--resume {newest} --output-dir NEW begins another run from its newest" in said
