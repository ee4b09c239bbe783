"""The identity of a teacher: equal for equal outputs, whatever it is called or stored in."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from fastdeit.models.teachers.identity import hash_state, identify_file
from fastdeit.models.teachers.teacher import load_teacher
from fastdeit.models.teachers.view import Preprocessing

CLASSES = 6
STUDENT = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.3), 32)
TIMM = "test_resnet"


def identify(name: str, path: Path | None, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    teacher = load_teacher(
        name, path, num_classes=CLASSES, device="cpu", dtype=dtype, student=STUDENT
    )
    return json.loads(json.dumps(teacher.identity()))


def make_network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, CLASSES)).eval()


def save_script(model: nn.Module, path: Path) -> None:
    torch.jit.script(model).save(path)


def save_export(model: nn.Module, path: Path) -> None:
    batch = torch.export.Dim("batch", min=2)
    images = torch.zeros(2, 3, 32, 32)
    torch.export.save(torch.export.export(model, (images,), dynamic_shapes=({0: batch},)), path)


def test_weight_files_are_identified_by_their_tensors(tmp_path: Path) -> None:
    state = timm.create_model(TIMM, num_classes=CLASSES).state_dict()
    torch.save({"model": state}, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    first = identify(TIMM, tmp_path / "a.pth")
    assert first == identify(TIMM, tmp_path / "b.safetensors", torch.bfloat16)
    model = timm.create_model(TIMM, num_classes=CLASSES)
    model.load_state_dict(state)
    assert first["weights"] == hash_state(model)
    assert first["name"] == TIMM and first["program"] is None and first["input_size"] == 160
    for name in ("a.pth", "b.safetensors"):
        assert identify_file(TIMM, tmp_path / name) == {"weights": first["weights"]}
    state["fc.bias"][0] += 1e-6
    save_file(state, tmp_path / "b.safetensors")
    assert identify(TIMM, tmp_path / "b.safetensors")["weights"] != first["weights"]


# torch.export.load of torch 2.11
@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.parametrize(("save", "kind"), [(save_script, "torchscript"), (save_export, "export")])
def test_programs_are_identified_by_code_and_weights(
    save: Callable[[nn.Module, Path], None], kind: str, tmp_path: Path
) -> None:
    save(make_network(), tmp_path / "a.pt2")
    (tmp_path / "b.pt2").write_bytes((tmp_path / "a.pt2").read_bytes())
    save(make_network(1), tmp_path / "c.pt2")
    first = identify(kind, tmp_path / "a.pt2")
    assert first == identify(kind, tmp_path / "b.pt2", torch.bfloat16)
    assert first["name"] == kind
    assert identify_file(kind, tmp_path / "a.pt2") == {"program": first["program"]}
    other = identify(kind, tmp_path / "c.pt2")
    assert other["weights"] != first["weights"] and other["program"] != first["program"]


TEACHERS = """
import functools
import pathlib

import torch

state = torch.load(pathlib.Path(__file__).with_name("weights.pth"), weights_only=True)
network = torch.nn.Sequential(
    torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 6)
)
network.load_state_dict(state)
loaded = []

def make_network():
    return network

def use_global(images):
    return network(images)

def _use_another(images):
    return use_global(images)

def use_function(images):
    return _use_another(images)

def use_tensors(images):
    return torch.func.functional_call(network, state, images)

def _close_over(model):
    @torch.no_grad()
    def inner(images):
        return model(images)
    return inner

def load_late(images):
    if not loaded:
        loaded.append(network)
    return loaded[0](images)

class Callable:
    def __init__(self, model=network):
        self.model = model
    def __call__(self, images):
        return self.model(images)
    def method(self, images):
        return self.model(images)

instance = Callable()
method = instance.method
closure = _close_over(network)
partial = functools.partial(lambda images, model: model(images), model=network)
lambda_function = lambda images: network(images)
"""


@pytest.mark.parametrize(
    "thing",
    [
        "network",
        "make_network",
        "use_global",
        "use_function",
        "use_tensors",
        "load_late",
        "instance",
        "Callable",
        "method",
        "closure",
        "partial",
        "lambda_function",
    ],
)
def test_callables_are_identified_by_source_and_weights(
    thing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same source with other weights is another teacher, however it reaches its weights."""
    found = []
    for seed in (0, 0, 1):
        torch.save(make_network(seed).state_dict(), tmp_path / "weights.pth")
        (tmp_path / "own_teachers.py").write_text(TEACHERS)
        with monkeypatch.context() as patch:
            patch.syspath_prepend(tmp_path)
            patch.delitem(__import__("sys").modules, "own_teachers", raising=False)
            found.append(identify(f"own_teachers:{thing}", None))
    assert found[0] == found[1] and found[0]["weights"] is not None
    assert found[2]["weights"] != found[0]["weights"]
    assert found[2]["program"] == found[0]["program"]


def test_callable_with_a_weight_file_is_identified_by_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(make_network(0).state_dict(), tmp_path / "weights.pth")
    (tmp_path / "filled_teacher.py").write_text(TEACHERS)
    monkeypatch.syspath_prepend(tmp_path)
    first = identify("filled_teacher:network", None)
    save_file(make_network(1).state_dict(), tmp_path / "other.safetensors")
    second = identify("filled_teacher:network", tmp_path / "other.safetensors")
    assert second["weights"] != first["weights"] and second["program"] == first["program"]


def quantise(seed: int) -> nn.Module:
    quantization: Any = torch.ao.quantization
    return quantization.quantize_dynamic(make_network(seed), {nn.Linear})


def test_every_tensor_of_a_network_counts() -> None:
    """Also a buffer that is not saved, and quantised weights."""

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor(scale), persistent=False)

    assert hash_state(Scaled(1.0)) == hash_state(Scaled(1.0)) != hash_state(Scaled(2.0))
    with pytest.deprecated_call():  # networks that were quantised so are still in use
        small, other = map(quantise, (0, 1))
    assert hash_state(small) is not None and hash_state(small) != hash_state(other)
    assert hash_state(len) is None
    with pytest.raises(ValueError, match="weights without values"):
        hash_state(nn.LazyLinear(3))
