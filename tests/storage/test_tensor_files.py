"""The hash of named tensors."""

import json
import os

import pytest
import torch
from torch import nn

from fastdeit.storage.tensor_files import (
    hash_tensors,
    read_metadata,
    read_tensors,
    write_tensors,
)


def _make_tensors():
    return {
        "w": torch.arange(6, dtype=torch.float32).reshape(2, 3),
        "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "count": torch.tensor(3),
        "none": torch.empty(0, 4),
    }


def test_hash_is_a_function_of_the_values_alone():
    tensors = _make_tensors()
    turned = {name: tensors[name] for name in reversed(tensors)}
    # the same values in another memory layout, and as a parameter
    turned["w"] = nn.Parameter(tensors["w"].T.contiguous().T)
    assert hash_tensors(turned) == hash_tensors(tensors)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("w", torch.arange(6, dtype=torch.float32).reshape(3, 2)),
        ("w", torch.arange(6, dtype=torch.float64).reshape(2, 3)),
        ("w", torch.tensor([[0.0, 1, 2], [3, 4, 5.0000005]])),
        ("half", torch.tensor([1.5, -2.0])),
        ("other", torch.zeros(1)),
    ],
)
def test_any_change_gives_another_hash(name, value):
    assert hash_tensors(_make_tensors() | {name: value}) != hash_tensors(_make_tensors())


def test_metadata_and_bytes_do_not_vary(tmp_path):
    """The library writes the metadata in an order that differs from file to file."""
    metadata = {name: json.dumps([name, 'é"\n\x01\u2028']) for name in "hcfadgbe"}
    metadata["name"] = 'é"\\\n\x01\u2028'
    path = tmp_path / "a.safetensors"
    contents = set()
    for _ in range(5):
        write_tensors(path, _make_tensors(), metadata)
        contents.add(path.read_bytes())
    assert len(contents) == 1
    tensors, found = read_tensors(path)
    assert found == read_metadata(path) == metadata
    assert hash_tensors(tensors) == hash_tensors(_make_tensors())


def test_path_that_is_not_utf8_is_read(tmp_path):
    path = tmp_path / os.fsdecode(b"r\xe9sum\xe9.safetensors")
    write_tensors(path, _make_tensors(), {})
    assert hash_tensors(read_tensors(path)[0]) == hash_tensors(_make_tensors())
    path.write_bytes(b"\x02\0\0\0\0\0\0\0{")
    with pytest.raises(ValueError, match="is no whole safetensors file"):
        read_tensors(path)
