"""`fastdeit export`: its line, its JSON, and each mistake as one line that writes nothing."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from fastdeit.commands.models.export import export_command
from fastdeit.storage.run_folder import RunFolder
from fastdeit.storage.tensor_files import read_tensors
from tests.support.images import CLASSES
from tests.support.trained import write_student


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_student(tmp_path_factory.mktemp("run"), CLASSES)
    other = write_student(tmp_path_factory.mktemp("other"), CLASSES, seed=1)
    RunFolder(folder).model_ema.write_bytes(RunFolder(other).model.read_bytes())
    return folder


def test_the_path_decides_the_form(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime")
    assert export_command([str(run), "--output", str(tmp_path / "v1.0")]) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{tmp_path / 'v1.0'}: deit_tiny_distilled_patch16_224, fp32, ")
    assert "(1.0e-04 is allowed), 8 of 8 photographs have the same class" in line
    for name, form in (("x.pt2", "program"), ("x.onnx", "onnx")):
        argv = [str(run), "--output", str(tmp_path / name), "--json", "--heads", "both"]
        (tmp_path / name).write_bytes(b"an older file, which is replaced")
        assert export_command(argv) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["form"], said["heads"], said["path"]) == (form, "both", str(tmp_path / name))
        assert said["difference"]["largest"] < 1e-5
        assert said["size"] == (tmp_path / name).stat().st_size
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v1.0", "x.onnx", "x.pt2"]


def test_the_ema_and_another_view_are_exported(run: Path, tmp_path: Path) -> None:
    argv = ["--ema", "--eval-input-size", "48", "--mean", "0.1", "0.2", "0.3"]
    assert export_command([str(run), *argv, "--output", str(tmp_path / "x")]) == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True)
    seen = timm.data.resolve_model_data_config(model)
    assert (seen["input_size"], seen["mean"]) == ((3, 48, 48), [0.1, 0.2, 0.3])
    ema = timm.create_model(
        f"local-dir:{run}", checkpoint_path=str(RunFolder(run).model_ema), img_size=32
    )
    assert torch.equal(model.head.weight, ema.head.weight)


def test_a_mistake_is_one_line_and_writes_nothing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = write_student(tmp_path / "plain", CLASSES, distilled=False)
    nan = tmp_path / "nan.safetensors"
    state, metadata = read_tensors(RunFolder(run).model)
    named = metadata | {"num_heads": "3"}
    save_file(state | {"norm.bias": state["norm.bias"] * torch.nan}, nan, named)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    before = sorted(tmp_path.rglob("*"))
    new = tmp_path / "new"
    for argv, message in (
        ([run], "--output must be given"),
        (["--output", new], "CHECKPOINT must be given (--help explains it)"),
        ([run, run, "--output", new], f"{str(run)!r} belongs to no flag"),
        (
            [run, "--output", tmp_path / "x.pth"],
            "--output must be a new or empty folder, FILE.onnx",
        ),
        (
            [run, "--output", tmp_path / "taken"],
            "--output must be a new or empty folder, FILE.onnx",
        ),
        ([run, "--output", run], "--output must be a new or empty folder, FILE.onnx or FILE.pt2"),
        ([run, "--output", new / "x.onnx"], "--output must be in a folder that exists"),
        ([run, "--output", tmp_path / "x.onnx", "--precision", "bf16"], "--precision must be fp32"),
        ([run, "--output", new, "--precision", "int8"], "--precision must be fp32, fp16 or bf16"),
        ([run, "--output", new, "--heads", "both"], "--heads must be mean for a folder"),
        ([plain, "--output", tmp_path / "x.pt2", "--heads", "both"], "--heads must be mean, as"),
        ([run, "--output", new, "--eval-input-size", "44"], "--eval-input-size must be a size for"),
        ([tmp_path / "none", "--output", new], "none"),
        ([nan, "--output", new], "differ from the model's by nan"),
    ):
        with pytest.raises(SystemExit) as end:
            export_command(list(map(str, argv)))
        shown = capsys.readouterr()
        assert end.value.code == 2 and not shown.out
        assert shown.err.startswith("fastdeit: error: ") and shown.err.count("\n") == 1
        assert message in shown.err
        assert sorted(tmp_path.rglob("*")) == before


def test_help_has_groups_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        export_command(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("--precision {fp32,fp16,bf16}", "Exit codes: 0; 2", "(default: fp32)", "--ema"):
        assert part in shown
