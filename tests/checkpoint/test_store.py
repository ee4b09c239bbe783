"""Checkpoint folders: whole or absent, damage named, best and newest kept."""

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastdeit.checkpoint import files as checkpoint_files
from fastdeit.checkpoint import store as checkpoint
from fastdeit.checkpoint.files import JSON_LIMIT, NewerFormat
from fastdeit.checkpoint.store import (
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    remove_temporary,
    save_checkpoint,
    set_aside,
)
from fastdeit.config.schema import CheckpointConfig
from fastdeit.distributed.world import World, init_distributed
from fastdeit.training.build import build_trainer
from fastdeit.training.trainer import Trainer
from tests.support.full_disk import limit_file_size
from tests.support.ranks import Ranks
from tests.support.tiny_student import configure, make_trainer, run_steps

MODEL = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor(3)}
TENSORS = {
    "model": MODEL,
    "exp_avg": {"a": torch.ones(2, 3)},
    "exp_avg_sq": {"a": torch.ones(2, 3)},
    "ema": MODEL,
}
STATE = {"step": 7, "adam_step": 6, "skipped": 1, "note": "ü"}
LAYOUT = {
    stem: {name: value.to("meta") for name, value in named.items()}
    for stem, named in TENSORS.items()
}


def save(folder: Path, step: int, keep: int = 5, scores: dict[int, float] | None = None) -> Path:
    return save_checkpoint(folder, step, TENSORS, STATE | {"step": step}, keep, scores)


def save_with(folder: Path, step: int, stem: str, named: dict[str, torch.Tensor]) -> Path:
    return save_checkpoint(folder, step, TENSORS | {stem: named}, STATE | {"step": step}, keep=5)


def names(folder: Path) -> list[str]:
    """The steps that are there, newest first, and whatever else."""
    steps = list_checkpoints(folder)
    return [str(int(path.name[5:])) for path in steps] + sorted(
        p.name for p in folder.iterdir() if p not in steps
    )


def rewrite(path: Path, file: str, content: bytes) -> None:
    """Replaces a file of a checkpoint and what the manifest says of it, as an attacker would."""
    (path / file).write_bytes(content)
    listed = json.loads((path / "manifest.json").read_text())
    listed["files"][file] = {
        "bytes": len(content),
        "sha256": checkpoint_files.hash_file(path / file),
    }
    (path / "manifest.json").write_text(json.dumps(listed))


def test_checkpoint_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    for layout in (None, LAYOUT):
        tensors, state = load_checkpoint(save(tmp_path, 7), layout)
        assert state == STATE
        assert {stem: set(named) for stem, named in tensors.items()} == {
            stem: set(named) for stem, named in TENSORS.items()
        }
        for stem, named in TENSORS.items():
            for name, value in named.items():
                assert (
                    torch.equal(tensors[stem][name], value)
                    and tensors[stem][name].dtype == value.dtype
                )


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_of_a_trainer_matches_its_layout(stage: int, precision: str, tmp_path: Path) -> None:
    trainer = make_trainer(configure(zero_stage=stage, precision=precision), init_distributed())
    run_steps(trainer, 1)
    load_checkpoint(
        save_checkpoint(tmp_path, 1, *trainer.state.gather(), keep=2), trainer.state.layout()
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_batch_statistics_are_in_the_layout(precision: str, tmp_path: Path) -> None:
    trainer = convnet(init_distributed(), precision)
    layout, (tensors, state) = trainer.state.layout(), trainer.state.gather()
    load_checkpoint(save_checkpoint(tmp_path, 1, tensors, state, keep=2), layout)
    assert "bn1.running_mean" in layout["ema"] and "bn1.running_mean" not in layout["exp_avg"]


def convnet(world: World, precision: str) -> Trainer:
    import timm

    config = configure(precision=precision).replace(distill={"distillation_type": "none"})
    model = timm.create_model("test_resnet", num_classes=5)
    return build_trainer(config, world, model, None, 6)


def test_ema_is_optional_in_a_checkpoint(tmp_path: Path) -> None:
    without = {stem: named for stem, named in LAYOUT.items() if stem != "ema"}
    assert "ema" not in load_checkpoint(save(tmp_path, 7), without)[0]
    path = save_checkpoint(
        tmp_path, 8, {stem: TENSORS[stem] for stem in without}, STATE | {"step": 8}, keep=2
    )
    assert "ema" not in load_checkpoint(path, LAYOUT)[0]


@pytest.mark.parametrize(
    "damage", ["flip", "cut", "delete", "manifest", "no manifest", "older format"]
)
def test_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    path = save(tmp_path, 9)
    file, manifest = path / "model.safetensors", path / "manifest.json"
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "older format":
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    else:
        manifest.unlink()
    for layout in (None, LAYOUT):
        with pytest.raises(ValueError, match=f"{path.name}.*(damaged|no checkpoint|no whole)"):
            load_checkpoint(path, layout)


def test_newer_format_is_refused_as_newer(tmp_path: Path) -> None:
    manifest = save(tmp_path, 9) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(
        NewerFormat, match="written by a later version .format 99., this one reads format 1"
    ):
        load_checkpoint(manifest.parent)


STRANGE: dict[str, tuple[str, Any]] = {
    "above": ("../../canary", {"bytes": 1, "sha256": "x"}),
    "absolute": ("/etc/passwd", {"bytes": 1, "sha256": "x"}),
    "pickle": ("optimizer.pt", {"bytes": 1, "sha256": "x"}),
    "no size": ("model.safetensors", {"sha256": "x"}),
    "size as text": ("model.safetensors", {"bytes": "1", "sha256": "x"}),
    "no facts": ("model.safetensors", None),
    "empty": ("", {"bytes": 1, "sha256": "x"}),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_manifest_with_strange_entries_is_refused(kind: str, tmp_path: Path) -> None:
    path, (name, facts) = save(tmp_path, 9), STRANGE[kind]
    listed = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(
        json.dumps(listed | {"files": listed["files"] | {name: facts}})
    )
    with pytest.raises(ValueError, match="manifest.json lists .*, not a file of a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("file", ["manifest.json", "state.json"])
@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b"[]", b'"x"', b"\xff\xfe", b"{" + b" " * JSON_LIMIT + b"}"],
    ids=["deep", "list", "text", "bytes", "long"],
)
def test_json_of_another_shape_is_refused(file: str, content: bytes, tmp_path: Path) -> None:
    path = save(tmp_path, 9)
    (path / file).write_bytes(content) if file == "manifest.json" else rewrite(path, file, content)
    with pytest.raises(ValueError, match=rf"{file}: damaged"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "change", [{"step": "7"}, {"step": -1}, {"adam_step": None}, {"skipped": True}]
)
def test_state_without_its_counts_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = save(tmp_path, 9)
    rewrite(path, "state.json", json.dumps(STATE | change).encode())
    with pytest.raises(ValueError, match=f"state.json: {next(iter(change))} must be"):
        load_checkpoint(path)


MISFIT: dict[str, tuple[str, dict[str, torch.Tensor], str]] = {
    "shape": (
        "model",
        MODEL | {"a": torch.zeros(3, 2)},
        r"a: \(3, 2\) float32, not \(2, 3\) float32",
    ),
    "dtype": (
        "model",
        MODEL | {"a": torch.zeros(2, 3, dtype=torch.float64)},
        r"a: \(2, 3\) float64, not",
    ),
    "missing": ("exp_avg", {}, r"a: none, not"),
    "more": ("ema", MODEL | {"z": torch.zeros(1 << 20)}, r"z: \(1048576,\) float32, not none"),
}


@pytest.mark.parametrize("kind", MISFIT)
def test_tensors_of_another_model_are_refused_before_any_is_read(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stem, named, said = MISFIT[kind]
    path = save_with(tmp_path, 9, stem, named)
    monkeypatch.setattr(checkpoint, "read_tensors", lambda _: pytest.fail("was read"))
    monkeypatch.setattr(checkpoint_files, "hash_file", lambda _: pytest.fail("was read"))
    with pytest.raises(ValueError, match=rf"{stem}.safetensors does not fit the model: {said}"):
        load_checkpoint(path, LAYOUT)


def test_missing_set_of_tensors_is_named(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 9, {"model": MODEL}, STATE, keep=2)
    with pytest.raises(ValueError, match=r"lists no exp_avg.safetensors"):
        load_checkpoint(path, LAYOUT)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("stem", ["model", "ema", "exp_avg_sq"])
def test_values_that_are_not_finite_are_neither_saved_nor_loaded(
    stem: str, value: float, tmp_path: Path
) -> None:
    spoilt = TENSORS[stem] | {"a": torch.tensor([[0.0, 1, 2], [3, value, 5]])}
    with pytest.raises(ValueError, match=f"not finite: a of {stem}"):
        save_with(tmp_path, 8, stem, spoilt)
    assert names(tmp_path) == []
    path = save(tmp_path, 9)
    save_file(spoilt, tmp_path / "spoilt.safetensors")
    rewrite(path, f"{stem}.safetensors", (tmp_path / "spoilt.safetensors").read_bytes())
    with pytest.raises(ValueError, match=f"step-00000009: not finite: a of {stem}"):
        load_checkpoint(path)


def test_file_that_the_manifest_does_not_list_is_not_read(tmp_path: Path) -> None:
    path = save(tmp_path, 9)
    save_file({"a": torch.full((2, 3), torch.nan)}, path / "more.safetensors")
    (path / "latest").write_bytes(b"\0garbage")
    assert set(load_checkpoint(path)[0]) == set(TENSORS)
    (tmp_path / "latest").write_text("step-00000001")
    (tmp_path / "step-00000010").symlink_to(tmp_path / "gone")
    assert list_checkpoints(tmp_path) == [path]


def test_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 9)
    (path / "ema.safetensors").rename(tmp_path / "elsewhere")
    (path / "ema.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"ema.safetensors is not what"):
        load_checkpoint(path)


class Canary:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch canary",)


def _deepspeed(path: Path) -> None:
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        (path / name).write_bytes(pickle.dumps(Canary()))
    (path / "zero_to_fp32.py").write_text("open('canary', 'w')")


FOREIGN: dict[str, tuple[Callable[[Path], object], str]] = {
    "deepspeed": (_deepspeed, "DeepSpeed's or another pickled form"),
    "deepspeed, above": (
        lambda path: (path / "latest").write_text("global_step5"),
        "DeepSpeed's or another pickled form",
    ),
    "torch": (
        lambda path: torch.save(Canary(), path / "last.pth"),
        "DeepSpeed's or another pickled form",
    ),
    "empty": (lambda path: None, "manifest.json is missing"),
    "run folder": (
        lambda path: save(path / "checkpoints", 9),
        "name one below it, such as .*step-00000009",
    ),
    "checkpoints": (lambda path: save(path, 9), "name one below it, such as .*step-00000009"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_folder_of_another_kind_is_refused_and_described(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make, said = FOREIGN[kind]
    (tmp_path / "theirs").mkdir()
    make(tmp_path / "theirs")
    with pytest.raises(ValueError, match=f"theirs: no checkpoint: .*{said}"):
        load_checkpoint(tmp_path / "theirs", LAYOUT)
    assert not (tmp_path / "canary").exists()


def test_file_in_place_of_a_checkpoint_is_refused_and_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint.pth").write_bytes(pickle.dumps(Canary()))
    for path in (tmp_path / "checkpoint.pth", tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no checkpoint"):
            load_checkpoint(path)
    assert not (tmp_path / "canary").exists()


def test_newest_checkpoints_stay_and_never_fewer_than_two(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["100", "20"]
    for step in (200, 300):
        save(tmp_path, step, keep=3)
    assert names(tmp_path) == ["300", "200", "100"]


def test_keep_checkpoints_below_two_is_refused() -> None:
    with pytest.raises(ValueError, match="--keep-checkpoints must be 2 or more"):
        CheckpointConfig(keep_checkpoints=1).check()


def test_best_checkpoint_stays_and_of_equals_the_later(tmp_path: Path) -> None:
    scores = {1: 50.0, 2: 70.0, 3: 60.0, 4: 70.0, 5: 10.0, 99: 100.0}
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2, scores=scores)
    assert names(tmp_path) == ["3", "2"]
    for step in (4, 5, 6, 7):
        save(tmp_path, step, keep=2, scores=scores)
    assert names(tmp_path) == ["7", "6", "4"]


@pytest.mark.parametrize("damage", [b"", b"x" * 300])
def test_damaged_checkpoint_does_not_count_as_kept(damage: bytes, tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    (tmp_path / "step-00000004" / "model.safetensors").write_bytes(damage)
    prune_checkpoints(tmp_path, 2, {})
    assert names(tmp_path) == ["3", "2"]


def test_nothing_is_removed_while_the_disk_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path, step)
    monkeypatch.setattr(checkpoint_files, "hash_file", refuse)
    prune_checkpoints(tmp_path, 2, {})
    assert names(tmp_path) == ["4", "3", "2", "1"]


def test_step_saved_again_replaces_the_old_checkpoint(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    (path / "model.safetensors").write_bytes(b"")
    save(tmp_path, 7)
    load_checkpoint(path)
    assert names(tmp_path) == ["7"]


def refuse(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("point", ["write_tensors", "hash_file", "sync", "rename"])
def test_failed_save_leaves_older_checkpoints_and_no_temporary_folder(
    tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 5), save(tmp_path, 9)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os if point == "rename" else checkpoint_files, point, refuse)
        for step in (9, 12):
            with pytest.raises(OSError, match="No space"):
                save(tmp_path, step)
    assert names(tmp_path) == ["9", "5"]
    load_checkpoint(tmp_path / "step-00000009")


def test_full_disk_in_safetensors_is_an_os_error(tmp_path: Path) -> None:
    """The error of safetensors itself on a full disk, here at a limit of the process."""
    refused = pytest.raises(OSError, match=r"model.safetensors: .*File too large")
    with limit_file_size(1 << 16), refused:
        save_with(tmp_path, 9, "model", {"a": torch.zeros(1 << 16)})
    assert names(tmp_path) == []


def test_every_file_is_on_the_disk_before_the_final_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of what reaches the disk: files, the manifest that lists them, their folder, its
    name, the name's folder."""
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def recorded_sync(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}"))
        done.append("work" if ".tmp-" in place.name else place.name)
        sync(handle)

    def recorded_rename(old: Path, new: Path) -> None:
        done.append(f"name {new.name}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    save(tmp_path / "checkpoints", 9)
    files = {"state.json", *(f"{stem}.safetensors" for stem in TENSORS)}
    assert set(done[: len(files)]) == files
    assert done[len(files) :] == [
        "manifest.json",
        "work",
        "name step-00000009",
        "checkpoints",
        tmp_path.name,
    ]


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def write_half(path: Path, *_: Any) -> None:
    path.write_bytes(b"half of it")
    die()


POINTS: dict[str, tuple[Any, str, Callable[..., None]]] = {
    "in a file": (checkpoint_files, "write_tensors", write_half),
    "before fsync": (checkpoint_files, "sync", die),
    "before the manifest": (checkpoint_files, "_write_manifest", die),
    "before the name": (checkpoint, "_put_in_place", die),
    "before older ones go": (checkpoint, "prune_checkpoints", die),
}


def save_and_be_killed(root: Path) -> None:
    """Write two checkpoints for each point, and the third in a child that is killed there."""
    for point, (module, name, planted) in POINTS.items():
        folder = root / point
        save(folder, 3), save(folder, 5)
        child = os.fork()
        if not child:
            setattr(module, name, planted)
            save(folder, 9, keep=2)
            os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_save_killed_at_any_point_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    process = Ranks(tmp_path / "log", save_and_be_killed, tmp_path / "saves", world_size=1)
    assert process.wait() == 0, process.output
    folder = tmp_path / "saves"
    for point in POINTS:
        left = folder / point
        assert len(names(left)) == 3, point
        remove_temporary(left)
        late = point == "before older ones go"
        assert names(left) == (["9", "5", "3"] if late else ["5", "3"]), point
        for path in list_checkpoints(left):
            load_checkpoint(path, LAYOUT)


def test_later_checkpoints_are_set_aside_unharmed(tmp_path: Path) -> None:
    for _ in range(2):
        for step in (1, 2, 3):
            save(tmp_path, step)
        assert len(set_aside(tmp_path, 1)) == 2
    assert names(tmp_path) == [
        "1",
        *(
            "step-00000002.aside",
            "step-00000002.aside-1",
            "step-00000003.aside",
            "step-00000003.aside-1",
        ),
    ]
    assert load_file(tmp_path / "step-00000003.aside" / "model.safetensors").keys() == MODEL.keys()
    assert set_aside(tmp_path, 1) == [] and set_aside(tmp_path / "nowhere", 1) == []


def test_checkpoint_is_set_aside_beside_the_rest_of_several(tmp_path: Path) -> None:
    for _ in range(2):
        save(tmp_path, 2)
        set_aside(tmp_path, 1)
    shutil.rmtree(tmp_path / "step-00000002.aside")
    for name in ("step-00000002.aside", "step-00000002.aside-2"):
        save(tmp_path, 2)
        assert set_aside(tmp_path, 1) == [tmp_path / name]


def test_missing_folder_has_no_checkpoints(tmp_path: Path) -> None:
    assert list_checkpoints(tmp_path / "nowhere") == []
    remove_temporary(tmp_path / "nowhere")


@pytest.mark.parametrize(("source", "stage"), [(1, 2), (2, 3), (3, 1)])
def test_every_parameter_group_resumes_with_its_decay_and_adam_step(
    source: int, stage: int
) -> None:
    """Universal checkpoints of DeepSpeed 0.19.8 give each group the other's decay, and count a step
    for every group."""
    world = init_distributed()
    first = make_trainer(configure(zero_stage=source), world)
    run_steps(first, 3)
    tensors, state = first.state.gather()
    second = make_trainer(configure(zero_stage=stage), world)
    run_steps(second, 1)
    second.state.load(tensors, state)
    assert adam(second) == adam(first) == ([0.0, 0.05], [3, 3])
    run_steps(second, 1)
    assert adam(second) == ([0.0, 0.05], [4, 4])


def adam(trainer: Trainer) -> tuple[list[float], list[int]]:
    """Of each parameter group: weight decay, and the steps that Adam has counted."""
    optimizer = trainer.engine.optimizer.optimizer
    counts = [int(state["step"]) for state in optimizer.state.values()]
    return [group["weight_decay"] for group in optimizer.param_groups], counts
