"""A recorded teacher in training: bit-equal to the live one, and not used where it differs."""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fastdeit.checkpoint.store import list_checkpoints
from fastdeit.config.cli import parse_config
from fastdeit.data import quarantine
from fastdeit.data.build import build_train_index, build_train_loader, pipeline_options
from fastdeit.data.loaders import train as loaders_train
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.distributed.world import init_distributed
from fastdeit.kernels.mix import mix
from fastdeit.models import build as models_build
from fastdeit.models.build import build_teacher
from fastdeit.plan.build import build_plan
from fastdeit.storage.file_hash import hash_file
from fastdeit.storage.jsonl import read_json_lines
from fastdeit.teacher_cache.format import decode
from fastdeit.teacher_cache.reader import Cache, CachedTeacher, make_entry
from tests.commands.runs.test_train import damaging_loader
from tests.support.cache_runs import MODEL, Setting, cache, flip, write_teacher
from tests.support.compare_runs import assert_other_weights, assert_same_weights
from tests.support.ranks import Ranks, run_fastdeit

LOADED = "load_teacher was called"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """Make recordings of three epochs in the folders hard and topk, and a run with the live teacher
    in live."""
    init_distributed()
    made = Setting(tmp_path_factory.mktemp("replay"))
    assert made.build(made.root / "hard") == 0
    assert made.build(made.root / "topk", "--kind", "topk", "--k", "3") == 0
    assert made.train(made.root / "live", *made.taught) == 0
    return made


@pytest.fixture
def no_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError(LOADED)

    monkeypatch.setattr(models_build, "load_teachers", load)


def copy_of(setting: Setting, folder: Path, kind: str = "hard") -> Path:
    return Path(shutil.copytree(setting.root / kind, folder))


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 8), (1, 16), (2, 8), (2, 16)])
def test_recorded_outputs_equal_the_live_teacher_for_every_sample(
    setting: Setting, world_size: int, micro_batch: int
) -> None:
    """All ordinals of two epochs on every rank, with repeated augmentation, Mixup, CutMix and
    erasing."""
    config, _ = parse_config([*setting.samples, *setting.taught], "test")
    world = init_distributed()
    index = build_train_index(config)
    teacher = build_teacher(config, world, index.classes)
    cache = Cache(setting.root / "hard")
    decisions: dict[tuple[int, int], int] = {}
    cut = blended = False
    assert teacher is not None
    for rank in range(world_size):
        plan = build_plan(config, index.sizes)
        loader = TrainLoader(
            index,
            plan,
            pipeline_options(config, world),
            batch_size=16 * world_size,
            micro_batch=micro_batch,
            rank=rank,
            world_size=world_size,
            teacher_records=CachedTeacher(cache, "error", plan.images),
        )
        for epoch in range(2):
            for batch in loader.epoch(epoch):
                assert batch.teacher_record is not None
                recorded = decode(batch.teacher_record, cache.manifest, hard=True)
                logits = teacher(mix(batch.images, batch.lam, batch.box))
                assert torch.equal(recorded, logits.argmax(1))
                # so it holds on any processor: another batch size changes a logit by about 1e-6
                first, second = logits.topk(2).values.unbind(1)
                assert (first - second).min() > 1e-4
                for ordinal, decision in zip(batch.ordinals, recorded, strict=True):
                    assert (epoch, int(ordinal)) not in decisions
                    decisions[epoch, int(ordinal)] = int(decision)
                cut |= bool(batch.box.any())
                blended |= bool(((batch.lam < 1) & ~batch.box.any(1)).any())
        loader.close()
    samples = 48 // (16 * world_size) * 16 * world_size
    assert set(decisions) == {(epoch, o) for epoch in range(2) for o in range(samples)}
    assert plan.spec.repeats == 2 and cut and blended
    # a teacher with one decision for all images would prove nothing
    assert np.bincount(list(decisions.values())).max() < 0.7 * len(decisions)


@pytest.mark.usefixtures("no_teacher")
def test_run_with_a_cache_equals_the_live_run(
    setting: Setting,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert setting.train(tmp_path, "--cache", str(setting.root / "hard")) == 0
    assert_same_weights(tmp_path, setting.root / "live")
    assert losses(tmp_path) == losses(setting.root / "live") and len(losses(tmp_path)) == 9
    said = " ".join(capfd.readouterr().out.split())
    assert f"test_resnet recorded in {setting.root / 'hard'}: hard, 3 epochs, miss: error" in said
    assert "unrecorded" not in read_json_lines(tmp_path / "metrics.jsonl")[0]
    with pytest.raises(AssertionError, match=LOADED):  # the trap works
        setting.train(tmp_path / "live", *setting.taught)


def test_other_outputs_change_the_run(setting: Setting, tmp_path: Path) -> None:
    """With another teacher's outputs the weights differ: the comparisons can fail."""
    folder = copy_of(setting, tmp_path / "c")
    records = 2 - np.fromfile(folder / "records.bin", np.uint16)
    records.tofile(folder / "records.bin")
    entries = np.fromfile(folder / "chunks.bin", np.uint8).reshape(-1, 32)
    for entry, chunk in zip(
        entries, records.reshape(-1, Cache(folder).manifest.chunk), strict=True
    ):
        entry[:] = np.frombuffer(make_entry(chunk.tobytes(), entry[:16].tobytes()), np.uint8)
    entries.tofile(folder / "chunks.bin")
    assert setting.train(tmp_path / "run", "--cache", str(folder)) == 0
    assert_other_weights(tmp_path / "run", setting.root / "live")


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("live", "cached"),
        ("cached", "live"),
        pytest.param("cached", "cached", marks=pytest.mark.slow),
    ],
)
def test_run_stopped_in_mid_epoch_resumes_from_the_cache(
    first: str, then: str, setting: Setting, tmp_path: Path
) -> None:
    ways = {
        "cached": ["--cache", str(setting.root / "hard"), "--teacher-path", ""],
        "live": setting.taught,
    }
    teacher = ["--teacher-model", "test_resnet"]
    assert setting.train(tmp_path, *teacher, *ways[first], "--stop-after-steps", "4") == 0
    assert list_checkpoints(tmp_path / "checkpoints")[0].name == "step-00000004"
    assert setting.train(tmp_path, *teacher, *ways[then]) == 0
    assert_same_weights(tmp_path, setting.root / "live")


def test_two_processes_read_the_same_cache(setting: Setting, tmp_path: Path) -> None:
    """The losses equal those of one process with the live teacher, except for the order of a sum;
    both count missing records."""
    flags = [
        *setting.samples,
        *MODEL,
        "--epochs",
        "3",
        "--cache",
        str(setting.root / "hard"),
        "--stop-after-steps",
        "4",
    ]
    folder = tmp_path / "run"
    command = ["train", *flags, "--cache-miss", "ground-truth", "--output-dir", str(folder)]
    both = Ranks(tmp_path / "log", run_fastdeit, command)
    assert both.wait() == 0, both.output
    assert losses(folder) == pytest.approx(losses(setting.root / "live")[:4], rel=1e-4)
    assert [
        line["unrecorded"] for line in read_json_lines(folder / "metrics.jsonl") if "loss" in line
    ] == [0] * 4


@pytest.mark.slow
def test_two_processes_with_a_cache_equal_two_with_the_teacher(
    setting: Setting, tmp_path: Path
) -> None:
    for name, more in (
        ("live", setting.taught),
        ("cached", ["--cache", str(setting.root / "hard")]),
    ):
        command = ["train", *setting.samples, *MODEL, "--epochs", "3", *more]
        command += ["--output-dir", str(tmp_path / name)]
        both = Ranks(tmp_path / f"{name}.log", run_fastdeit, command)
        assert both.wait() == 0, both.output
    assert (
        losses(tmp_path / "cached") == losses(tmp_path / "live")
        and len(losses(tmp_path / "live")) == 9
    )
    assert_same_weights(tmp_path / "cached", tmp_path / "live")


def test_soft_distillation_from_the_largest_logits(setting: Setting, tmp_path: Path) -> None:
    """With three of three classes the loss differs from the live run's by fp16 rounding only."""
    soft = ["--distillation-type", "soft"]
    assert setting.train(tmp_path / "live", *setting.taught, *soft, epochs=1) == 0
    assert (
        setting.train(tmp_path / "cached", "--cache", str(setting.root / "topk"), *soft, epochs=1)
        == 0
    )
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert cached == pytest.approx(live, rel=2e-3) and cached != live
    parts = [
        line["distill"]
        for line in read_json_lines(tmp_path / "cached" / "metrics.jsonl")
        if "distill" in line
    ]
    assert all(part > 0 for part in parts)


def test_hard_distillation_from_the_largest_logits(setting: Setting, tmp_path: Path) -> None:
    assert setting.train(tmp_path, "--cache", str(setting.root / "topk")) == 0
    assert_same_weights(tmp_path, setting.root / "live")


def test_one_cache_serves_two_studies(setting: Setting, tmp_path: Path) -> None:
    """Other students, learning rates, DropPath rates, batch sizes, and fewer epochs; each equal to
    its live run."""
    studies = {
        "wide": [
            "--embed-dim",
            "48",
            "--num-heads",
            "3",
            "--batch-size",
            "8",
            "--micro-batch",
            "4",
            "--epochs",
            "1",
        ],
        "deep": [
            "--depth",
            "3",
            "--drop-path",
            "0.1",
            "--epochs",
            "2",
            "--weight-decay",
            "0.1",
            "--distillation-alpha",
            "0.7",
        ],
    }
    for name, flags in studies.items():
        for way, more in (
            ("live", setting.taught),
            ("cached", ["--cache", str(setting.root / "hard")]),
        ):
            assert setting.train(tmp_path / way / name, *flags, *more) == 0
        assert_same_weights(tmp_path / "live" / name, tmp_path / "cached" / name)
    shapes = [
        load_file(tmp_path / "cached" / name / "model.safetensors")["pos_embed"].shape
        for name in studies
    ]
    assert shapes[0] != shapes[1]


def _no_cache(folder: Path) -> None:
    shutil.rmtree(folder)


def _newer(folder: Path) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(values | {"format": 3}))


def _hole(folder: Path) -> None:
    """Remove a chunk of epoch 1 and all chunks of epoch 2."""
    data = bytearray((folder / "chunks.bin").read_bytes())
    data[8 * 32 : 9 * 32] = bytes(32)
    (folder / "chunks.bin").write_bytes(data[: 12 * 32])


REFUSED = {
    "other seed": (
        None,
        ["--seed", "1"],
        "recorded for another run: plan.seed 0 in the cache, 1 here",
    ),
    "other erasing": (None, ["--reprob", "0"], "plan.reprob 0.25 in the cache, 0.0 here"),
    "other mixing": (
        None,
        ["--mixup", "0.2", "--cutmix", "0.5"],
        "plan.mixup 0.8 in the cache, 0.2 here; plan.cutmix 1.0",
    ),
    "other operations": (
        None,
        ["--aa", "rand-m7-mstd0.5-inc1"],
        "plan.ra_magnitude 9.0 in the cache, 7.0 here",
    ),
    "no repeats": (None, ["--no-repeated-aug"], "plan.repeats 2 in the cache, 1 here"),
    "other input": (None, ["--input-size", "40"], "plan.input_size 32 in the cache, 40 here"),
    "other normalisation": (
        None,
        ["--mean", "0.5", "0.5", "0.5"],
        "mean [0.485, 0.456, 0.406] in the cache",
    ),
    "other backend": (
        None,
        ["--augment-backend", "native"],
        "augmentation 'exact backend, cpu decoder' in the cache, 'native",
    ),
    "epochs missing": (
        None,
        ["--epochs", "12"],
        "epochs not recorded: 3, 4, 5, 6, 7, 8, 9, 10 and 1 more",
    ),
    "a hole": (
        _hole,
        [],
        "epochs not recorded: 1, 2; record them, or use --cache-miss live or ground-truth",
    ),
    "classes for soft": (
        None,
        ["--distillation-type", "soft"],
        r"must have --kind topk for --distillation-type soft",
    ),
    "truth for soft": (
        None,
        ["--distillation-type", "soft", "--cache-miss", "ground-truth"],
        "--cache-miss must be error or live with --distillation-type soft",
    ),
    "no distillation": (
        None,
        ["--distillation-type", "none"],
        "--cache must be empty with --distillation-type none",
    ),
    "newer format": (_newer, [], "manifest.json: format must be 1 or 2 (got 3)"),
    "no cache": (
        _no_cache,
        [],
        "--cache must be an existing folder that fastdeit cache build has written",
    ),
    "no period": (None, ["--cache-period", "-1"], "--cache-period must be 0 or more (got -1)"),
    "live without a teacher": (
        None,
        ["--cache-miss", "live", "--teacher-path", "/no/file"],
        "--teacher-path must be an existing file",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_cache_that_does_not_fit_fails_before_any_work(
    case: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, flags, words = REFUSED[case]
    folder = copy_of(setting, tmp_path / "c")
    run = tmp_path / "run"
    if spoil is not None:
        spoil(folder)
    before = (
        sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
        if folder.exists()
        else None
    )
    assert setting.train(run, "--cache", str(folder), *flags) == 2
    said = capfd.readouterr().err
    assert words in " ".join(said.replace("│", " ").split()) and "Traceback" not in said
    assert not run.exists()
    assert (
        sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
        if folder.exists()
        else None
    ) == before


@pytest.mark.parametrize("miss", ["error", "live"])
def test_cache_of_another_teacher_fails(
    miss: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_teacher(tmp_path / "other.safetensors", setting.data, seed=1)
    flags = [
        "--cache",
        str(setting.root / "hard"),
        *setting.taught,
        "--teacher-path",
        str(other),
        "--cache-miss",
        miss,
    ]
    assert setting.train(tmp_path / "run", *flags) == 2
    assert "was recorded for another run: teacher.weights '" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_soft_distillation_at_another_temperature_fails(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """At the recorded one and at 1 it works; hard distillation needs none."""
    flags = ["--cache", str(setting.root / "topk"), "--stop-after-steps", "1"]
    soft = ["--distillation-type", "soft", "--distillation-tau"]
    assert setting.train(tmp_path / "run", *flags, *soft, "2") == 2
    said = capfd.readouterr().err
    assert "--distillation-tau must be 1 or 3, as recorded in" in said and "(got 2)" in said
    assert "--kind topk --distillation-tau 2 -o NEW" in said
    assert not (tmp_path / "run").exists()
    assert setting.train(tmp_path / "one", *flags, *soft, "1") == 0
    assert setting.train(tmp_path / "hard", *flags, "--distillation-tau", "2") == 0


@pytest.mark.parametrize("miss", ["error", "live"])
def test_cache_of_another_view_fails(
    miss: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = ["--cache", str(setting.root / "hard"), *setting.taught, "--cache-miss", miss]
    flags += ["--teacher-mean", "0.4", "0.5", "0.6"]
    assert setting.train(tmp_path / "run", *flags) == 2
    words = "teacher.mean [0.5, 0.5, 0.5] in the cache, [0.4, 0.5, 0.6] here"
    assert words in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


CALLABLE = """
import pathlib
import timm
import torch

def make():
    model = timm.create_model("test_resnet", num_classes=3)
    path = pathlib.Path(__file__).with_name("weights.pth")
    model.load_state_dict(torch.load(path, weights_only=True))
    return model
"""


def test_cache_of_a_callable_with_other_weights_fails(
    setting: Setting,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when it is continued; an older cache, which does not name them, cannot be compared."""
    (tmp_path / "cached_callable.py").write_text(CALLABLE)
    monkeypatch.syspath_prepend(tmp_path)
    weights = tmp_path / "weights.pth"
    torch.save(load_file(setting.teacher), weights)
    named = ["--teacher-model", "cached_callable:make", "--teacher-path", ""]
    folder = tmp_path / "c"
    assert setting.build(folder, *named) == 0
    flags = ["--cache", str(folder), "--cache-miss", "live", *named, "--stop-after-steps", "1"]
    assert setting.train(tmp_path / "run", *flags) == 0
    torch.save(load_file(setting.teacher) | {"fc.bias": torch.zeros(3)}, weights)
    capfd.readouterr()
    assert setting.train(tmp_path / "other", *flags) == 2
    said = capfd.readouterr().err
    assert "recorded for another run: teacher.weights" in said and "teacher.program" not in said
    assert setting.build(folder, *named) == 2
    assert "begun with other settings: facts.teacher.weights" in capfd.readouterr().err
    values = json.loads((folder / "manifest.json").read_text())
    del values["facts"]["teacher"]["weights"]
    (folder / "manifest.json").write_text(json.dumps(values))
    assert setting.train(tmp_path / "other", *flags) == 2
    assert "older cache, which does not name the weights of" in capfd.readouterr().err


@pytest.mark.parametrize("miss", ["error", "live"])
def test_cache_with_the_hash_of_the_file_is_read(
    miss: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As versions before the hash of the weights wrote it; the same file is the same teacher."""
    folder = copy_of(setting, tmp_path / "c")
    values = json.loads((folder / "manifest.json").read_text())
    recorded = values["facts"]["teacher"]
    del recorded["weights"], recorded["program"]
    recorded["sha256"] = hash_file(setting.teacher)
    (folder / "manifest.json").write_text(json.dumps(values))
    flags = ["--cache", str(folder), "--cache-miss", miss, "--stop-after-steps", "1"]
    assert setting.train(tmp_path / "run", *flags, *setting.taught) == 0
    assert setting.build(folder) == 0  # continues it
    assert cache(["sample", str(folder), *setting.samples, *setting.taught, "--number", "9"]) == 0
    other = write_teacher(tmp_path / "other.safetensors", setting.data, seed=1)
    capfd.readouterr()
    taught = [*setting.taught, "--teacher-path", str(other)]
    assert setting.train(tmp_path / "other", *flags, *taught) == 2
    assert "was recorded for another run: teacher.sha256 '" in capfd.readouterr().err


def test_cache_of_another_data_set_fails(
    setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(setting.data, tmp_path / "data"))
    (data / "train/circle/00.png").rename(data / "train/square/zz.png")
    flags = ["--cache", str(setting.root / "hard"), "--data-path", str(data)]
    assert setting.train(tmp_path / "run", *flags) == 2
    said = capfd.readouterr().err
    assert "data set '" in said and not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["flipped", "truncated", "hole"])
def test_live_teacher_replaces_damaged_records_exactly(
    fault: str, setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(setting, tmp_path / "c")
    if fault == "flipped":
        flip(folder / "records.bin", 2 * (48 + 9))
    elif fault == "truncated":
        os.truncate(folder / "records.bin", 2 * (2 * 48 + 5))
    else:
        _hole(folder)
    assert (
        setting.train(
            tmp_path / "run", "--cache", str(folder), *setting.taught, "--cache-miss", "live"
        )
        == 0
    )
    assert_same_weights(tmp_path / "run", setting.root / "live")
    words = {
        "flipped": "epoch 1, ordinals from 8: damaged, another checksum: the live teacher instead",
        "truncated": "ordinals from 0: records.bin ends before them: the live teacher instead",
        "hole": "epoch 1, ordinals from 16: not recorded: the live teacher instead",
    }[fault]
    assert words in caplog.text
    counts = [
        line["unrecorded"]
        for line in read_json_lines(tmp_path / "run" / "metrics.jsonl")
        if "loss" in line
    ]
    expected = {
        "flipped": [0, 0, 0, 16] + 5 * [16],
        "truncated": 6 * [0] + [16, 32, 48],
        "hole": 4 * [0] + [16, 16, 32, 48, 64],
    }
    assert counts == expected[fault]


def test_label_replaces_damaged_records(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(setting, tmp_path / "c")
    _hole(folder)
    assert (
        setting.train(tmp_path / "run", "--cache", str(folder), "--cache-miss", "ground-truth") == 0
    )
    assert_other_weights(tmp_path / "run", setting.root / "live")
    assert losses(tmp_path / "run")[:4] == losses(setting.root / "live")[:4]
    assert "not recorded: the label instead" in caplog.text


@pytest.mark.parametrize("fault", ["flipped", "truncated"])
def test_damage_found_in_mid_run_ends_the_run(
    fault: str, setting: Setting, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """With code 1 and one line; the checkpoints stay, and with the repaired cache the run resumes
    and equals the live run."""
    folder = copy_of(setting, tmp_path / "c")
    if fault == "flipped":
        flip(folder / "records.bin", 2 * (48 + 20))
    else:
        os.truncate(folder / "records.bin", 2 * (48 + 20))
    flags = ["--cache", str(folder), "--save-steps", "1"]
    assert setting.train(tmp_path / "run", *flags) == 1
    said = capfd.readouterr().err.strip().splitlines()
    words = {
        "flipped": "epoch 1, ordinals from 16: damaged",
        "truncated": "epoch 1, ordinals from 16: records.bin ends",
    }[fault]
    assert (
        len(said) == 1
        and said[0].startswith("fastdeit: error: ")
        and words in said[0]
        and "--cache-miss live" in said[0]
    )
    assert list_checkpoints(tmp_path / "run" / "checkpoints")[0].name == "step-00000004"
    assert setting.build(folder) == 0  # records what is damaged again
    assert setting.train(tmp_path / "run", *flags) == 0
    assert_same_weights(tmp_path / "run", setting.root / "live")


def test_file_cut_while_open_is_a_fault_and_no_crash(setting: Setting, tmp_path: Path) -> None:
    folder = copy_of(setting, tmp_path / "c")
    cache = Cache(folder)
    known = cache.look_up(0, np.arange(8), lambda epoch, ordinals: _rows(setting, epoch, ordinals))
    os.truncate(folder / "records.bin", 0)
    again = cache.look_up(0, np.arange(8), lambda epoch, ordinals: _rows(setting, epoch, ordinals))
    assert known[1] is None
    assert again[1] is None  # checked before
    assert np.array_equal(known[0], again[0])
    assert "ends before them" in str(cache.find_fault(0, 1))


def _rows(setting: Setting, epoch: int, ordinals: np.ndarray) -> np.ndarray:
    config, _ = parse_config(setting.samples, "test")
    return build_plan(config, build_train_index(config).sizes).images(epoch, ordinals)


@pytest.mark.parametrize("miss", ["error", "live"])
def test_record_of_a_bad_image_is_not_used_for_another(
    miss: str,
    setting: Setting,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Another image takes its place: the records of that chunk do not fit, here and in all later
    epochs."""
    monkeypatch.setattr(quarantine, "RETRIES_S", (0.01,))
    ways = {
        "live": setting.taught,
        "cached": ["--cache", str(setting.root / "hard"), *setting.taught, "--cache-miss", miss],
    }
    ends = {}
    for way in ways if miss == "live" else ["cached"]:
        data = Path(shutil.copytree(setting.data, tmp_path / way / "data"))
        with monkeypatch.context() as patch:
            patch.setattr(
                loaders_train, "TrainLoader", damaging_loader(data / "train/square/02.jpg")
            )
            ends[way] = setting.train(tmp_path / way / "run", "--data-path", str(data), *ways[way])
    if miss == "live":
        assert ends == {"live": 0, "cached": 0}
        assert_same_weights(tmp_path / "live" / "run", tmp_path / "cached" / "run")
        assert (
            "recorded with other images: some were found bad then or now: the live teacher"
            in caplog.text
        )
        return
    assert ends == {"cached": 1}
    said = [line for line in capfd.readouterr().err.splitlines() if "error" in line]
    assert len(said) == 1 and "recorded with other images" in said[0]


def test_period_repeats_samples_but_not_drop_path(setting: Setting) -> None:
    config, _ = parse_config(setting.samples, "test")
    world = init_distributed()
    index = build_train_index(config)
    plan = build_plan(config, index.sizes)
    config = config.replace(distill={"cache": str(setting.root / "hard"), "cache_period": 2})
    cached_teacher = CachedTeacher(Cache(setting.root / "hard"), "error", plan.images)
    loader = build_train_loader(
        config,
        world,
        index,
        plan,
        drop_path=(0.3, 0.3),
        quarantine=quarantine.Quarantine(index),
        teacher_records=cached_teacher,
    )
    epochs = [list(loader.epoch(epoch)) for epoch in range(4)]
    loader.close()
    for early, late in zip([*epochs[0], *epochs[1]], [*epochs[2], *epochs[3]], strict=True):
        for name in ("images", "labels", "lam", "box", "image_index", "ordinals", "teacher_record"):
            assert torch.equal(getattr(early, name), getattr(late, name)), name
        assert not torch.equal(early.drop_path_mask, late.drop_path_mask)
    assert not torch.equal(epochs[0][0].images, epochs[1][0].images)


@pytest.mark.usefixtures("no_teacher")
def test_period_extends_a_run_beyond_the_recorded_epochs(setting: Setting, tmp_path: Path) -> None:
    flags = ["--cache", str(setting.root / "hard"), "--cache-period", "3"]
    assert setting.train(tmp_path, *flags, "--stop-after-steps", "8", epochs=5) == 0
    assert setting.train(tmp_path, *flags, epochs=5) == 0
    assert len(losses(tmp_path)) == 15 and (tmp_path / "summary.json").is_file()
    assert (
        setting.train(tmp_path, "--cache", str(setting.root / "hard"), epochs=5) == 2
    )  # another run without it


def test_lookup_of_a_batch_is_fast(setting: Setting) -> None:
    """A generous bound for a busy machine; benchmarks/bench_teacher.py has the figures."""
    cache = Cache(setting.root / "hard")
    rows = {epoch: _rows(setting, epoch, np.arange(48)) for epoch in range(3)}
    ordinals = np.arange(48)
    spent = []
    for _ in range(20):
        start = time.perf_counter()
        cache.look_up(1, ordinals, lambda epoch, at: rows[epoch][at])
        spent.append(time.perf_counter() - start)
    assert min(spent) < 2e-3
