"""Weight files of unknown origin: nothing in them runs, none needs more memory than its size."""

import argparse
import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file

from fastdeit.models.teachers.teacher import load_teacher
from fastdeit.models.teachers.view import Preprocessing
from fastdeit.models.weights import check_expansion, read_weights
from fastdeit.storage.tensor_files import HEADER_LIMIT

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch.save's older form


class Touch:
    """An object that creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.canary}",)


def older_form(content: bytes) -> bytes:
    system = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {}}
    return b"".join(
        [
            *(pickle.dumps(part, 2) for part in (MAGIC, PROTOCOL, system)),
            content,
            pickle.dumps([], 2),
        ]
    )


def zipped(content: bytes, compression: int = zipfile.ZIP_STORED, **more: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in {
            "data.pkl": content,
            "version": b"3\n",
            "byteorder": b"little",
            **more,
        }.items():
            archive.writestr(f"archive/{name}", data)
    return buffer.getvalue()


def saved(value: object, older: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not older)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "form", ["pickle", "older form", "zip", "in a state dict", "in the command line"]
)
def test_pickle_with_a_program_fails_and_does_not_run(form: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "weights.pth"
    program = pickle.dumps({"head.weight": Touch(canary)}, 2)
    contents = {
        "pickle": program,
        "older form": older_form(program),
        "zip": zipped(program),
        "in a state dict": saved(
            {"model": {"head.weight": torch.zeros(3)}, "epoch": Touch(canary)}
        ),
        "in the command line": saved(
            {"model": {"a": torch.zeros(3)}, "args": argparse.Namespace(hook=Touch(canary))}
        ),
    }
    path.write_bytes(contents[form])
    with pytest.raises(ValueError, match="does not load as plain weights"):
        read_weights(path)
    student = Preprocessing((0.5,) * 3, (0.5,) * 3, 32)
    with pytest.raises(ValueError):
        load_teacher(
            "test_resnet",
            path,
            num_classes=3,
            device="cpu",
            dtype=torch.float32,
            student=student,
        )
    assert not canary.exists()
    # the program does run where torch may unpickle it
    runs = form in ("older form", "in a state dict")
    if runs:
        torch.load(path, weights_only=False)
    assert canary.exists() == runs


def byte_array(count: int) -> bytes:
    """Return a pickle that calls bytearray(count)."""
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + count.to_bytes(6, "little") + b"\x85R."


EXPANDING: dict[str, Callable[[], bytes]] = {
    "byte array": lambda: zipped(byte_array(1 << 28)),
    "byte array, older form": lambda: older_form(byte_array(1 << 28)),
    "compressed": lambda: zipped(
        pickle.dumps({}, 2), zipfile.ZIP_DEFLATED, **{"data/0": bytes(1 << 24)}
    ),
    "compressed beside much else": lambda: zipped(
        pickle.dumps({}, 2), zipfile.ZIP_DEFLATED, **{"data/0": os.urandom(1 << 16)}
    ),
    "one number as many": lambda: saved({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}),
    "one number as many, older form": lambda: saved(
        {"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, older=True
    ),
    "no memory": lambda: saved({"a": torch.zeros(1 << 20, 1 << 20, device="meta")}),
    "out of nothing": lambda: zipped(
        b"\x80\x02}X\x01\x00\x00\x00actorch\nFloatTensor\nM\xff\xffM\xff\xff\x86Rs."
    ),
}


@pytest.mark.parametrize("kind", EXPANDING)
def test_file_that_would_fill_the_memory_fails(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(EXPANDING[kind]())
    assert path.stat().st_size < 1 << 18
    with at_most_mib(64), pytest.raises(ValueError, match="does not load as plain weights"):
        read_weights(path)


@contextmanager
def at_most_mib(limit: int) -> Iterator[None]:
    """Fail if this process needs, even for a moment, `limit` MiB more within than before."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = peak_mib()
    yield
    assert peak_mib() - before < limit


def peak_mib() -> int:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"hello",
        b"<html>",
        older_form(b"\x80\x02h\x05."),
        older_form(b"\x80\x02R."),
    ],
)
def test_other_content_fails_with_one_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(ValueError, match="does not load as plain weights"):
        read_weights(tmp_path / "weights.pth")


@pytest.mark.parametrize("extra", [0, 1])
def test_archive_may_claim_its_own_size_and_no_byte_more(extra: int, tmp_path: Path) -> None:
    """The directory of a stored archive is changed to claim as much as the file has, or one byte
    more."""
    path = tmp_path / "weights.pth"
    path.write_bytes(zipped(pickle.dumps({"a": torch.zeros(1)}, 2)))
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    others = sum(entry.file_size for entry in entries[1:])
    claimed = path.stat().st_size - others + extra
    entries[0].file_size = claimed
    with mock.patch.object(zipfile.ZipFile, "infolist", lambda archive: entries):
        if extra:
            with pytest.raises(ValueError, match="compressed"):
                check_expansion(path)
        else:
            check_expansion(path)


def test_plain_weights_are_read_in_every_form(tmp_path: Path) -> None:
    tied = torch.randn(4, 3)
    state = {
        "a": tied,
        "b": tied,
        "c": tied[1:],
        "d": tied.t(),
        "e": torch.tensor(3),
        "f": torch.zeros(0, 3),
    }
    for older in (False, True):
        path = tmp_path / "weights.pth"
        path.write_bytes(
            saved({"model": state, "args": argparse.Namespace(lr=0.1), "epoch": 3}, older)
        )
        found, _ = read_weights(path)
        assert set(found) == set(state) and all(
            torch.equal(found[name], value) for name, value in state.items()
        )


@pytest.mark.parametrize(
    "name",
    [
        "module.blocks.0.attn.qkv.weight",
        "_orig_mod.module.blocks.0.attn.qkv.weight",
        "module._orig_mod.blocks.0.attn.qkv.weight",
        "module.module.blocks.0.attn.qkv.weight",
        "blocks.0._orig_mod.attn.qkv.weight",
        "module.blocks.0._checkpoint_wrapped_module._orig_mod.attn.qkv.weight",
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_names_of_wrappers_are_removed(name: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"weights{suffix}"
    write = save_file if suffix == ".safetensors" else torch.save
    write({name: torch.zeros(3)}, path)
    assert list(read_weights(path)[0]) == ["blocks.0.attn.qkv.weight"]


HEADERS = {
    "huge": (1 << 40).to_bytes(8, "little") + b"{}",
    "larger than allowed": (HEADER_LIMIT + 1).to_bytes(8, "little")
    + b"{"
    + b" " * HEADER_LIMIT
    + b"}",
    "no JSON": (4).to_bytes(8, "little") + b"nope",
    "short": b"\x02",
    "shape": json.dumps(
        {"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 4]}}
    ).encode(),
    "offsets": json.dumps(
        {"a": {"dtype": "F32", "shape": [1 << 30], "data_offsets": [0, 1 << 32]}}
    ).encode(),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors_file_that_claims_too_much_fails(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    content = HEADERS[kind]
    path.write_bytes(
        len(content).to_bytes(8, "little") + content + bytes(4) if content[:1] == b"{" else content
    )
    with at_most_mib(64), pytest.raises(ValueError, match="no whole safetensors file"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"# a text\n", "it is neither a safetensors file nor one of torch.save"),
        (b"", "it is neither a safetensors file nor one of torch.save"),
        (b"PK\x03\x04 cut", "it is damaged"),
        (b"\x80\x02cposix\nsystem\n.", "it names posix.system, which is code"),
    ],
)
def test_a_file_that_holds_no_weights_is_explained_in_plain_words(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_weights(path)
    said = str(error.value)
    assert said.startswith(f"{path}: does not load as plain weights: {reason}")
    assert "weights_only" not in said and "\n" not in said
