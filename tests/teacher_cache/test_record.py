"""Recording of a teacher: stopped, shared among jobs, merged or damaged, the records are the same
or are not used."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fastdeit.commands.cache.flags import parse_epochs, parse_part
from fastdeit.commands.cache.record import find_spans
from fastdeit.config.cli import parse_config
from fastdeit.data import quarantine
from fastdeit.data.build import build_train_index
from fastdeit.data.loaders.train import OrdinalLoader
from fastdeit.distributed.world import init_distributed
from fastdeit.plan.build import build_plan
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.teacher_cache import writer as cache_writer
from fastdeit.teacher_cache.format import CacheError, Manifest, choose_chunk_size
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.record import ChunkBatches, JobShard
from tests.support.cache_runs import (
    FILES,
    MODEL,
    Setting,
    cache,
    flip,
    same_files,
    write_teacher,
)
from tests.support.compare_runs import assert_same_weights
from tests.support.launching import ROOT
from tests.support.ranks import Ranks, run_fastdeit


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Make an uninterrupted recording of three epochs in the folder whole."""
    init_distributed()
    made = Setting(tmp_path_factory.mktemp("recording"))
    assert made.build(made.root / "whole") == 0
    return made


def environment() -> dict[str, str]:
    """Return the environment without the variables of this process's group."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in ("RANK", "WORLD_SIZE", "MASTER_PORT")
    }


def command(setting: Setting, folder: Path, *flags: str) -> list[str]:
    return [
        *setting.samples,
        *setting.taught,
        "--micro-batch",
        "8",
        "--epochs",
        "0-2",
        "-o",
        str(folder),
        *flags,
    ]


def test_folder_contains_the_documented_files(setting: Setting) -> None:
    folder = setting.root / "whole"
    assert {path.name for path in folder.iterdir()} == {
        "manifest.json",
        "records.bin",
        "chunks.bin",
        "lock",
    }
    assert (folder / "records.bin").stat().st_size == 3 * 48 * 2 and (
        folder / "chunks.bin"
    ).stat().st_size == 3 * 6 * 32
    assert b"\x80\x04" not in (folder / "manifest.json").read_bytes()  # no pickle


@pytest.mark.parametrize(
    "attempt", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)]
)
def test_killed_recording_restarts_to_the_same_bytes(
    attempt: int, setting: Setting, tmp_path: Path
) -> None:
    argv = command(setting, tmp_path / "c", "--epochs", "0-60")
    log = tmp_path / "log"
    builder = Ranks(log, run_fastdeit, ["cache", "build", *argv], world_size=1)
    deadline, chunks = time.monotonic() + 120, tmp_path / "c" / "chunks.bin"
    while (
        not (chunks.exists() and chunks.stat().st_size)
        and time.monotonic() < deadline
        and builder.is_alive
    ):
        time.sleep(0.002)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))
    builder.kill()
    done = int(Cache(tmp_path / "c").coverage().sum())
    assert 0 < done < 61 * 6, f"it was killed too late or too early: {done} chunks"
    # what lies beyond the epochs that are compared; a chunk's records are written before its mark
    if done >= 18:
        for name, size in zip(FILES, (3 * 48 * 2, 3 * 6 * 32), strict=True):
            os.truncate(tmp_path / "c" / name, size - 32 if name == "chunks.bin" else size)
    assert setting.build(tmp_path / "c") == 0
    whole = [(setting.root / "whole" / name).read_bytes() for name in FILES]
    assert [(tmp_path / "c" / name).read_bytes() for name in FILES] == whole


@pytest.mark.parametrize(
    ("writes", "later"), [(0, False), (1, False), (2, False), (1, True), (13, True), (22, True)]
)
def test_recording_cut_within_a_write_restarts_to_the_same_bytes(
    writes: int, later: bool, setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk accepts some writes and then half of one; chunks recorded before are not recorded
    again."""
    if later:
        assert setting.build(tmp_path / "c", "--part", "3/3") == 0
    wrote = os.pwrite
    sizes = []

    def cut_off(handle: int, data: bytes, offset: int) -> int:
        sizes.append(len(data))
        if len(sizes) <= writes:
            return wrote(handle, data, offset)
        wrote(handle, data[: len(data) // 2], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    def counted(handle: int, data: bytes, offset: int) -> int:
        sizes.append(len(data))
        return wrote(handle, data, offset)

    monkeypatch.setattr(cache_writer.os, "pwrite", cut_off)
    assert setting.build(tmp_path / "c") == 1
    sizes.clear()
    monkeypatch.setattr(cache_writer.os, "pwrite", counted)
    assert setting.build(tmp_path / "c") == 0
    assert same_files(tmp_path / "c", setting.root / "whole")
    assert len(sizes) == 2 * ((12 if later else 18) - writes // 2)


def test_full_disk_exits_with_code_1_and_one_line(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache_writer.os, "pwrite", full)
    assert setting.build(tmp_path / "c") == 1
    said = capfd.readouterr().err
    assert (
        f"{tmp_path / 'c'}: cannot be written: No space left on device; what is recorded stays"
        in said
    )
    assert len(said.strip().splitlines()) == 1


def test_training_command_records_what_it_will_read(setting: Setting, tmp_path: Path) -> None:
    """Every flag of a training is accepted; those that decide no sample change nothing."""
    training = [*setting.samples, *MODEL, *setting.taught, "--micro-batch", "8"]
    training += ["--epochs", "3", "--output-dir", str(tmp_path / "run"), "--lr", "0.01"]
    training += [
        "--trainable",
        "heads",
        "--finetune",
        "/no/file",
        "--resume",
        "/no/folder",
        "--zero-stage",
        "2",
    ]
    folder = tmp_path / "c"
    assert cache(["build", *training, "-o", str(folder)]) == 0
    assert same_files(folder, setting.root / "whole")
    assert not (tmp_path / "run").exists()
    # with --cache as in the training that reads it, which repeats its epochs
    period = ["--cache", str(tmp_path / "d"), "--cache-period", "2", "--cache-miss", "live"]
    assert cache(["build", *training, *period]) == 0
    assert Cache(tmp_path / "d").coverage().tolist() == [[True] * 6] * 2
    # the command that recorded, and the training command, behind `sample`
    recording = [*training, "-o", str(folder), "--epochs", "1-2", "--kind", "hard", "--part", "1/3"]
    assert cache(["sample", str(folder), *recording, "--number", "8"]) == 0
    assert cache(["sample", str(folder), *training, "--number", "8"]) == 0
    assert cache(["sample", str(folder), *training, "--epochs", "7-9"]) == 2


@pytest.mark.parametrize("action", ["build", "sample"])
def test_help_describes_the_action_itself(action: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert cache([action, "--help"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    about = {"build": "record a teacher's output", "sample": "run the live teacher"}[action]
    assert about in said and "FLAGS OF THE TRAINING COMMAND" in said
    assert "300: the first 300, as in training" in said and "--batch-size" not in said


def test_several_jobs_record_into_one_folder(setting: Setting, tmp_path: Path) -> None:
    for number in (2, 3, 1):
        assert setting.build(tmp_path / "c", "--part", f"{number}/3") == 0
        assert int(Cache(tmp_path / "c").coverage().sum()) == {2: 6, 3: 12, 1: 18}[number]
    assert same_files(tmp_path / "c", setting.root / "whole")


def test_jobs_of_several_folders_are_merged(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A damaged chunk comes from another folder; the output may be one of the inputs."""
    parts = [tmp_path / str(number) for number in range(3)]
    for number, folder in enumerate(parts, 1):
        assert setting.build(folder, "--part", f"{number}/3") == 0
    capfd.readouterr()
    assert cache(["merge", *map(str, parts), "-o", str(tmp_path / "c")]) == 0
    assert (
        "18 chunks copied, 0 were present already, 0 damaged ones skipped" in capfd.readouterr().out
    )
    assert same_files(tmp_path / "c", setting.root / "whole")
    flip(tmp_path / "c" / "records.bin", 4)
    assert cache(["merge", str(tmp_path / "c"), str(parts[0]), "-o", str(tmp_path / "d")]) == 0
    assert (
        "18 chunks copied, 5 were present already, 1 damaged ones skipped" in capfd.readouterr().out
    )
    assert same_files(tmp_path / "d", setting.root / "whole")
    assert cache(["merge", str(parts[1]), str(parts[2]), str(parts[0]), "-o", str(parts[1])]) == 0
    assert same_files(parts[1], setting.root / "whole")


def test_merge_of_different_samples_fails(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert setting.build(tmp_path / "other", "--seed", "5", "--epochs", "0-0") == 0
    assert (
        cache(
            [
                "merge",
                str(setting.root / "whole"),
                str(tmp_path / "other"),
                "-o",
                str(tmp_path / "c"),
            ]
        )
        == 2
    )
    assert (
        "differ: facts.plan.seed 0 in the cache, 5 here" in capfd.readouterr().err
        and not (tmp_path / "c").exists()
    )


def test_two_processes_record_the_same_bytes(setting: Setting, tmp_path: Path) -> None:
    argv = ["cache", "build", *command(setting, tmp_path / "c")]
    both = Ranks(tmp_path / "log", run_fastdeit, argv)
    assert both.wait() == 0, both.output
    assert same_files(tmp_path / "c", setting.root / "whole")
    assert (
        both.output.count("18 of 18 chunks of part 1/1 recorded") == 1
        and "on this rank of 2" in both.output
    )


def test_second_builder_of_a_part_fails(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert setting.build(tmp_path / "c", "--part", "1/3") == 0
    code = (
        "import sys, time; from pathlib import Path\n"
        "from fastdeit.teacher_cache.writer import CacheWriter\n"
        "CacheWriter(Path(sys.argv[1])).reserve(6, 12); print('ready', flush=True); time.sleep(60)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "c")]
    other = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "ready\n"
        capfd.readouterr()
        for flags in (["--part", "2/3"], []):
            assert setting.build(tmp_path / "c", *flags) == 2
            said = capfd.readouterr().err.strip().splitlines()
            assert (
                len(said) == 1
                and "another process is recording the same part; wait for it or stop it" in said[0]
            )
        assert setting.build(tmp_path / "c", "--part", "3/3") == 0
    finally:
        other.kill()
        other.wait()


def test_builders_that_start_together_make_one_folder(setting: Setting, tmp_path: Path) -> None:
    """The first one makes the manifest, whatever the others see of the folder meanwhile."""
    manifest = Cache(setting.root / "whole").manifest
    folder = tmp_path / "c"
    folder.mkdir()
    for name in (
        "lock",
        "records.bin",
        "manifest.json.tmp",
    ):  # what another, or one that was killed, has made so far
        (folder / name).touch()
    cache_writer.create_cache(folder, manifest)
    assert Cache(folder).manifest == manifest
    with pytest.raises(CacheError, match="was begun with other settings"):
        cache_writer.create_cache(folder, Manifest("topk", 2, 3, 48, manifest.facts, {}, 8))


def test_another_micro_batch_continues_and_sample_reports_agreement(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert setting.build(tmp_path / "c", epochs="0-0") == 0
    assert setting.build(tmp_path / "c", micro_batch=6) == 0
    argv = [*setting.samples, *setting.taught, "--number", "96", "--micro-batch", "16"]
    capfd.readouterr()
    assert cache(["sample", str(tmp_path / "c"), *argv]) == 0
    assert "the live teacher agrees on 96 of 96 samples (100.00 %)" in capfd.readouterr().out
    assert (
        cache(["sample", str(tmp_path / "c"), *argv, "--precision", "bf16", "--number", "10"]) == 0
    )
    assert "of 10 samples" in capfd.readouterr().out


def test_sample_finds_another_teacher(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The manifest names one teacher, the records are another's."""
    other = write_teacher(tmp_path / "other.safetensors", setting.data, seed=1)
    assert (
        setting.build(tmp_path / "c", "--teacher-path", str(other), "--kind", "topk", "--k", "2")
        == 0
    )
    argv = [*setting.samples, *setting.taught, "--number", "60"]
    assert cache(["sample", str(tmp_path / "c"), *argv]) == 2
    assert "recorded from something else: teacher.weights" in capfd.readouterr().err
    manifest = tmp_path / "c" / "manifest.json"
    shas = [
        Cache(folder).manifest.facts["teacher"]["weights"]
        for folder in (tmp_path / "c", setting.root / "whole")
    ]
    manifest.write_text(manifest.read_text().replace(*shas))
    assert cache(["sample", str(tmp_path / "c"), *argv]) == 0
    said = capfd.readouterr().out
    assert "of 60 samples" in said and "60 of 60" not in said and "recorded logits within" in said


def test_image_that_goes_bad_during_recording_is_excluded(
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """In the end all chunks are recorded without it, also those done before; a run excludes it from
    its start."""
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    data = Path(shutil.copytree(setting.data, tmp_path / "data"))
    asked = []
    config, _ = parse_config([*setting.samples, "--data-path", str(data)], "test")
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    row = np.intersect1d(plan.images(0, np.arange(8)), plan.images(2, np.arange(8, 48)))[0]
    name = index.name(row)
    shutil.copy2(data / name, tmp_path / "saved")

    class Damaging(OrdinalLoader):
        def plan_batch(self, number: int) -> tuple:
            asked.append(number)
            if len(asked) == 6:
                (data / name).write_bytes(b"")
            return super().plan_batch(number)

    monkeypatch.setattr("fastdeit.commands.cache.record.OrdinalLoader", Damaging)
    assert setting.build(tmp_path / "c", "--data-path", str(data)) == 0
    assert "18 of 18 chunks of part 1/1 recorded" in capfd.readouterr().out
    assert name in (tmp_path / "c" / "quarantine.jsonl").read_text()
    assert len(asked) > 18 + 2  # some were made again
    shutil.copy2(tmp_path / "saved", data / name)  # the storage is well again: the same data set
    flags = ["--data-path", str(data)]
    assert setting.train(tmp_path / "run", *flags, "--cache", str(tmp_path / "c")) == 0
    assert name in (tmp_path / "run" / "quarantine.jsonl").read_text()
    flags += ["--cache", str(tmp_path / "c")]
    assert setting.train(tmp_path / "live", *flags, *setting.taught, "--cache-miss", "live") == 0
    assert not any(
        line.get("unrecorded") for line in read_json_lines(tmp_path / "live" / "metrics.jsonl")
    )
    assert_same_weights(tmp_path / "run", tmp_path / "live")
    assert setting.train(tmp_path / "error", *flags, "--bad-images", "error") == 1
    assert "excluded when" in capfd.readouterr().err


def test_quarantine_of_a_run_applies_to_the_recording(setting: Setting, tmp_path: Path) -> None:
    """With the run's list in the cache's folder, the same command records again the chunks with
    those images, and no others."""
    folder = Path(shutil.copytree(setting.root / "whole", tmp_path / "c"))
    config, _ = parse_config(setting.samples, "test")
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    holds = [
        [bool((plan.images(epoch, chunk) == 7).any()) for chunk in np.split(np.arange(48), 6)]
        for epoch in range(3)
    ]
    entry = {"split": "train", "row": 7, "name": index.name(7), "fault": "is empty"}
    (folder / "quarantine.jsonl").write_text(json.dumps(entry) + "\n")
    assert setting.build(folder) == 0
    plan.exclude([7])
    cache, whole = Cache(folder), Cache(setting.root / "whole")
    again = [
        [cache.read_entry(epoch, chunk) != whole.read_entry(epoch, chunk) for chunk in range(6)]
        for epoch in range(3)
    ]
    assert again == holds and 0 < np.sum(holds) < 18
    assert not any(
        cache.find_fault(epoch, chunk, plan.images) for epoch in range(3) for chunk in range(6)
    )


WRONG = {
    "no action": (
        ["frob"],
        "cache ACTION must be one of build, merge, info, verify, sample (got 'frob')",
    ),
    "nothing": ([], "cache ACTION must be one of build"),
    "no epoch": (
        ["build", "-o", "{c}", "--epochs", "0"],
        "--epochs must be a number of epochs, as 300, or spans from 0, as 0-299",
    ),
    "epochs that repeat": (
        ["build", "-o", "{c}", "{samples}", "{taught}", "--epochs", "4-6", "--cache-period", "3"],
        "--epochs must be below 3, as --cache-period repeats the first 3 (got [4])",
    ),
    "a span backwards": (["build", "-o", "{c}", "--epochs", "5-2"], "(got '5-2')"),
    "words for epochs": (["build", "-o", "{c}", "--epochs", "all"], "(got 'all')"),
    "part 0": (
        ["build", "-o", "{c}", "--part", "0/3"],
        "--part must be NUMBER/JOBS with NUMBER from 1 to JOBS (got 0/3)",
    ),
    "part 4 of 3": (["build", "-o", "{c}", "--part", "4/3"], "(got 4/3)"),
    "part in words": (
        ["build", "-o", "{c}", "--part", "third"],
        "--part must be NUMBER/JOBS, as 3/8 (got 'third')",
    ),
    "no folder": (["build"], "-o must be the cache's folder (got '')"),
    "unknown kind": (["build", "-o", "{c}", "--kind", "soft"], "invalid choice: 'soft'"),
    "unknown flag": (
        ["build", "-o", "{c}", "{samples}", "--epoch", "0-1"],
        "--epoch is not a flag; near: --epochs",
    ),
    "no teacher": (
        ["build", "-o", "{c}", "{samples}", "--teacher-path", "/no/file"],
        "--teacher-path must be an existing file",
    ),
    "no distillation": (
        ["build", "-o", "{c}", "{samples}", "--distillation-type", "none"],
        "--distillation-type must be soft or hard: a teacher is recorded (got 'none')",
    ),
    "more logits than classes": (
        ["build", "-o", "{c}", "{samples}", "{taught}", "--kind", "topk", "--k", "10"],
        "k must be 1 to 3 (got 10)",
    ),
    "classes for soft": (
        ["build", "-o", "{c}", "{samples}", "{taught}", "--kind", "hard"]
        + ["--distillation-type", "soft"],
        "--kind must be topk with --distillation-type soft (got 'hard')",
    ),
    "no data": (
        ["build", "-o", "{c}", "{taught}", "--data-path", "/no/data"],
        "--data-path must be an existing folder",
    ),
    "odd micro-batch": (
        ["build", "-o", "{c}", "{samples}", "{taught}", "--micro-batch", "7"],
        "--micro-batch must be an even number",
    ),
    "info of nothing": (["info", "{c}"], "manifest.json: No such file or directory"),
    "sample of none": (["sample", "{c}", "--number", "0"], "--number must be 1 or more (got 0)"),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_mistake_exits_with_code_2_and_one_line(
    case: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv, words = WRONG[case]
    lists = {"{samples}": setting.samples, "{taught}": setting.taught, "{c}": [str(tmp_path / "c")]}
    assert cache([part for item in argv for part in lists.get(item, [item])]) == 2
    said = capfd.readouterr().err
    assert words in " ".join(said.replace("│", " ").split()) and "Traceback" not in said
    assert not (tmp_path / "c").exists()


def test_folder_of_other_settings_is_not_changed(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(setting.root / "whole", tmp_path / "c")
    assert setting.build(tmp_path / "c", "--reprob", "0.1") == 2
    assert (
        "was begun with other settings: facts.plan.reprob 0.25 in the cache, 0.1 here"
        in capfd.readouterr().err
    )
    assert same_files(tmp_path / "c", setting.root / "whole")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert setting.build(tmp_path / "mine") == 2
    assert os.listdir(tmp_path / "mine") == ["thesis.txt"]


def test_info_shows_the_recorded_epochs(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert setting.build(tmp_path / "c", "--part", "1/2", epochs="0-0,2-4") == 0
    capfd.readouterr()
    assert cache(["info", str(tmp_path / "c")]) == 0
    said = " ".join(capfd.readouterr().out.replace("│", " ").split())
    for words in (
        "kind hard",
        "48 per epoch of 2 bytes",
        "epochs, whole 0, 2",
        "epochs, in part none",
        "plan.reprob 0.25",
    ):
        assert words in said
    assert "teacher.precision float32" in said and "versions.torch" in said
    assert setting.build(tmp_path / "c", "--part", "1/4", epochs="5-6") == 0
    assert cache(["info", str(tmp_path / "c")]) == 0
    assert "epochs, in part 5 (50%)" in " ".join(capfd.readouterr().out.replace("│", " ").split())


def test_info_and_sample_show_what_the_largest_logits_leave(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kind follows the loss, k the number of classes; of three classes all are exact."""
    soft = ["--distillation-type", "soft", "--distillation-tau", "4"]
    kept = {}
    for k in (1, None):
        folder = tmp_path / str(k)
        flags = [*soft, *(["--k", str(k)] if k else [])]
        assert setting.build(folder, *flags, epochs="0-0") == 0
        assert Cache(folder).manifest.k == (k or 3)
        capfd.readouterr()
        assert cache(["info", str(folder)]) == 0
        argv = [*setting.samples, *setting.taught, *soft, "--number", "48"]
        assert cache(["sample", str(folder), *argv]) == 0
        said = " ".join(capfd.readouterr().out.replace("│", " ").split())
        shares = re.findall(r"probability kept at tau (\S+) (\S+) %, mean of 48 samples", said)
        kept[k] = {float(tau): float(share) for tau, share in shares}
        assert ("the other 2 classes share the rest evenly" in said) == (k == 1)
        losses = re.search(r"tau 4, .*: loss (\S+) recorded, (\S+) live; .* gradients (\S+)", said)
        assert losses is not None
        recorded, live, cosine = map(float, losses.groups())
        assert (recorded == pytest.approx(live, rel=1e-2)) == (k is None)
        assert (cosine > 0.9999) == (k is None)
    assert kept[None] == {1: 100, 4: 100}
    assert 34 < kept[1][4] < kept[1][1] < 99
    # what is begun is continued with its own k
    assert setting.build(tmp_path / "1", *soft, epochs="0-1") == 0
    assert cache(["verify", str(tmp_path / "1")]) == 0


def test_verify_names_damaged_chunks(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(setting.root / "whole", tmp_path / "c")
    assert cache(["verify", str(tmp_path / "c")]) == 0
    assert "18 chunks recorded, 0 damaged" in capfd.readouterr().out
    flip(tmp_path / "c" / "records.bin", 2 * (48 + 17))
    os.truncate(tmp_path / "c" / "records.bin", 2 * 3 * 48 - 1)
    assert cache(["verify", str(tmp_path / "c")]) == 1
    said = capfd.readouterr().out
    assert (
        "epoch 1, ordinals from 16: damaged, another checksum" in said
        and "epoch 2, ordinals from 40: records.bin ends" in said
    )
    assert "18 chunks recorded, 2 damaged" in said
    assert setting.build(tmp_path / "c") == 0
    assert same_files(tmp_path / "c", setting.root / "whole")


def test_shards_of_a_job_cover_all_chunks() -> None:
    manifest = Manifest("hard", 1, 10, 5000, {})
    for of in (1, 3, 7, 40):
        shares = [JobShard(number, of).chunks(manifest, [0, 4, 9]) for number in range(1, of + 1)]
        assert sum(shares, []) == [(epoch, chunk) for epoch in (0, 4, 9) for chunk in range(2)]


@pytest.mark.parametrize("micro_batch", [2, 6, 100, 5000])
def test_chunk_batches_have_the_ordinals_in_order(micro_batch: int) -> None:
    manifest = Manifest("hard", 1, 10, 300, {}, chunk=128)
    chunks = [(0, 1), (0, 2), (3, 0)]
    windows = ChunkBatches(manifest, chunks, micro_batch)
    found = [(epoch, int(ordinal)) for epoch, ordinals in windows for ordinal in ordinals]
    assert found == [
        (epoch, int(ordinal)) for epoch, chunk in chunks for ordinal in manifest.ordinals(chunk)
    ]
    assert max(len(ordinals) for _, ordinals in windows) == windows.micro_batch <= micro_batch
    assert len(list(windows)) == len(windows)


def test_chunk_size_follows_the_data_set() -> None:
    assert [choose_chunk_size(samples) for samples in (2, 48, 1000, 60_000, 1_281_166)] == [
        8,
        8,
        32,
        2048,
        4096,
    ]


def test_epochs_and_parts_are_parsed() -> None:
    assert parse_epochs("3") == [0, 1, 2] and parse_epochs("3-3") == [3]
    assert parse_epochs(None) == [] and parse_epochs("0-2,9, 5-5") == [0, 1, 2, 5, 9]
    for text in ("0-9999999", "\u0663", ""):
        with pytest.raises(ValueError, match="--epochs must be"):
            parse_epochs(text)
    assert parse_part("3/8") == JobShard(3, 8) and find_spans([0, 1, 2, 5, 9, 10]) == [
        (0, 3),
        (5, 6),
        (9, 11),
    ]
