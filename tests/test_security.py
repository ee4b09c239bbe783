"""Hostile files: nothing in them runs, none takes more memory than it may, each error is one line.

Weights are in test_weights.py, checkpoints in test_store.py, DeepSpeed's file in
training/zero/test_config.py, tar members in test_shards.py, images in test_check.py.
"""

import functools
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy.io import savemat
from torch import nn

from fastdeit.config.cli import parse_config
from fastdeit.config.schema import Config
from fastdeit.data import table
from fastdeit.data.formats.check import MAX_PIXELS, check_image
from fastdeit.data.formats.imagenet import _synsets
from fastdeit.data.formats.listing import DataError
from fastdeit.data.graphs.options import PipelineOptions
from fastdeit.data.indexing import build_index
from fastdeit.data.loaders.train import TrainLoader
from fastdeit.data.quarantine import Quarantine, QuarantinedImage, read_quarantine
from fastdeit.data.remote.sources.web import _read_range, _read_size
from fastdeit.inference.load import load_model
from fastdeit.models.sources import fetch_weights, find_remote
from fastdeit.models.student import build_student
from fastdeit.models.teachers.teacher import Teacher, load_teacher
from fastdeit.models.teachers.view import Preprocessing
from fastdeit.models.weights import read_weights
from fastdeit.plan.plan import Plan
from fastdeit.plan.spec import PlanSpec
from fastdeit.reliability.failures import take_failures
from fastdeit.run.identity import check_same_run
from fastdeit.storage.run_folder import RunFolder
from fastdeit.teacher_cache.check import read_bad_images
from fastdeit.teacher_cache.format import CacheError, encode
from fastdeit.teacher_cache.reader import Cache
from fastdeit.teacher_cache.writer import CacheWriter
from tests.data.formats.test_check import JPEG, RGB, chunk, encoded
from tests.models.test_weights import Touch, at_most_mib
from tests.support.images import write_shapes
from tests.teacher_cache.test_reader import build as build_cache
from tests.teacher_cache.test_reader import images, logits_of, manifest

DEEP = "[" * 100_000
SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that must not come to be."""
    return tmp_path / "canary"


def load(name: str, path: Path) -> Teacher:
    student = Preprocessing((0.5,) * 3, (0.5,) * 3, 8)
    return load_teacher(
        name, path, num_classes=3, device="cpu", dtype=torch.float32, student=student
    )


def script(canary: Path, path: Path) -> None:
    """TorchScript that makes a file while it is loaded."""

    class Program(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.file = torch.zeros(3), str(canary)

        @torch.jit.export
        def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
            return self.w, self.file, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
            self.w = state[0] + torch.from_file(state[1], True, 10).sum()
            self.file, self.training = state[1], state[2]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, :, 0, 0] + self.w

    torch.jit.script(Program()).save(path)


def export(canary: Path, path: Path) -> None:
    """An exported program with a command in the place of a size."""
    batch = torch.export.Dim("batch", min=2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    program = torch.export.export(net, (torch.zeros(4, 3, 8, 8),), dynamic_shapes=({0: batch},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as good, zipfile.ZipFile(path, "w") as bad:
        for name in good.namelist():
            data = good.read(name)
            if name.endswith("models/model.json"):
                command = f"__import__('os').system('touch {canary}') or Symbol("
                data = data.replace(b'"expr_str": "Symbol(', f'"expr_str": "{command}'.encode())
            bad.writestr(name, data)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "kind"), [(script, "torchscript"), (export, "export")])
def test_teacher_that_is_a_program_is_loaded_only_if_named_as_one(
    make: Callable[[Path, Path], None], kind: str, canary: Path, tmp_path: Path
) -> None:
    path = tmp_path / "teacher.pth"
    make(canary, path)
    canary.unlink(missing_ok=True)
    for name in ("", "test_resnet", "deit_tiny_patch16_224"):
        with pytest.raises(
            ValueError,
            match=f"is a program \\({kind}\\), not weights: if you trust it, use --teacher-model",
        ):
            load(name, path)
    with pytest.raises(ValueError, match="does not load as plain weights|holds no state dict"):
        read_weights(path)  # --finetune
    assert not canary.exists()
    load(kind, path)
    assert canary.exists()  # whoever asks for it by name trusts it


@pytest.mark.parametrize("teacher", ["own:teacher", "torchscript", "export"])
def test_config_file_cannot_name_a_program_as_teacher(
    teacher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "config.yaml"
    file.write_text(f"distill: {{teacher_model: '{teacher}'}}")
    with pytest.raises(
        ValueError,
        match=r"distill.teacher_model .* runs code; .* on the command line, too",
    ):
        parse_config(["--config", str(file)], "test")
    for flags in (["--teacher-model", teacher], [f"--teacher-model={teacher}"]):
        assert (
            parse_config(["--config", str(file), *flags], "test")[0].distill.teacher_model
            == teacher
        )


@pytest.mark.parametrize(
    "metadata",
    [
        {"input_size": "1000000"},
        {"input_size": "[]"},
        {"mean": "[0.5, 0.5]"},
        {"mean": '{"a": 1}'},
        {"std": "[0, 1, 1]"},
        {"std": "[NaN, 1, 1]"},
        {"classes": DEEP},
        {"classes": "[1, 2, 3]"},
        {"num_heads": "9" * 9},
        {"num_heads": "[1]"},
    ],
    ids=lambda metadata: str(metadata)[:30],
)
def test_metadata_of_a_teacher_file_is_checked(metadata: dict[str, str], tmp_path: Path) -> None:
    student = build_student(
        "deit_tiny_patch16_224",
        num_classes=3,
        image_size=8,
        patch_size=4,
        embed_dim=6,
        depth=1,
        num_heads=3,
    )
    about = {"model": "deit_tiny_patch16_224", "num_heads": "3"} | metadata
    save_file(student.state_dict(), tmp_path / "model.safetensors", about)
    (field,) = metadata
    with at_most_mib(64), pytest.raises(ValueError, match=rf"{field} must be "):
        load("", tmp_path)


def safetensors(*entries: str, data: int = 16) -> bytes:
    header = ("{" + ", ".join(entries) + "}").encode()
    return len(header).to_bytes(8, "little") + header + bytes(data)


def entry(name: str, start: int, end: int, shape: str = "[2]", dtype: str = "F32") -> str:
    return f'"{name}": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {end}]}}'


LYING = {
    "overlapping": safetensors(entry("a", 0, 8), entry("b", 4, 12)),
    "the same bytes": safetensors(entry("a", 0, 8), entry("b", 0, 8)),
    "a hole": safetensors(entry("a", 0, 8), entry("b", 12, 20), data=20),
    "beyond the file": safetensors(entry("a", 0, 8), entry("b", 8, 1 << 40)),
    "backwards": safetensors(entry("a", 8, 0), entry("b", 8, 16)),
    "negative": safetensors(entry("a", -8, 0), entry("b", 0, 8)),
    "a name twice": safetensors(entry("a", 0, 8), entry("a", 8, 16)),
    "another shape": safetensors(entry("a", 0, 8, "[3]"), entry("b", 8, 16)),
    "an overflow": safetensors(entry("a", 0, 8, "[4294967296, 4294967296]"), entry("b", 8, 16)),
    "no dtype": safetensors(entry("a", 0, 8, dtype="PICKLE"), entry("b", 8, 16)),
    "bytes behind": safetensors(entry("a", 0, 8)),
    "deep": safetensors(f'"a": {DEEP}'),
}


@pytest.mark.parametrize("kind", LYING)
def test_safetensors_file_with_false_claims_is_refused(kind: str, tmp_path: Path) -> None:
    (tmp_path / "weights.safetensors").write_bytes(LYING[kind])
    with at_most_mib(64), pytest.raises(ValueError, match="no whole safetensors file"):
        read_weights(tmp_path / "weights.safetensors")


LAUGHS = "run:\n  a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  {name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
YAML = {
    "a program": "!!python/object/apply:os.system ['touch {canary}']",
    "a program in a field": "run: {{seed: !!python/object/apply:os.system ['touch {canary}']}}",
    "a module": "run: {{output_dir: !!python/module:antigravity }}",
    "billion laughs": LAUGHS,
    "a mapping in itself": "run: &a {{seed: *a}}",
    "merged": "run: &a {{seed: 1}}\noptim: {{<<: *a}}",
    "a key twice": "optim: {{epochs: 1, epochs: 2}}",
    "a section twice": "run: {{seed: 1}}\nrun: {{seed: 2}}",
    "deep": DEEP,
    "huge": "# " + "x" * (1 << 17),
    "huge number": "run: {{seed: " + "9" * 10_000 + "}}",
    "no mapping": "- 1",
    "no section": "run: 3",
    "key of a list": "? [1]\n: 2",
    "no text": "\x00",
    "a date that is none": "run: {{seed: 2001-99-99}}",
    "two documents": "run: {{}}\n---\nrun: {{}}",
}


@pytest.mark.parametrize("kind", YAML)
def test_harmful_config_file_is_refused_in_one_line(
    kind: str, canary: Path, tmp_path: Path
) -> None:
    """Named by --config, and found in a run folder."""
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / "config.yaml"
    file.write_text(YAML[kind] if kind == "billion laughs" else YAML[kind].format(canary=canary))
    for use in (
        lambda: parse_config(["--config", str(file)], "test"),
        lambda: check_same_run(Config(), RunFolder(folder)),
    ):
        with at_most_mib(64), pytest.raises(ValueError, match="config.yaml") as caught:
            use()
        assert len(str(caught.value)) < 1000 and "\n" not in str(caught.value)
    assert not canary.exists()


MANIFESTS = {
    "deep": DEEP,
    "huge": "{" + " " * (1 << 21) + "}",
    "a list": "[]",
    "a number": "1" * 5000,
    "no text": "\ud800",
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_harmful_cache_manifest_is_refused(kind: str, tmp_path: Path) -> None:
    build_cache(tmp_path / "c", epochs=(0,))
    (tmp_path / "c" / "manifest.json").write_bytes(MANIFESTS[kind].encode("utf-8", "surrogatepass"))
    with at_most_mib(64), pytest.raises(CacheError, match=r"manifest.json: "):
        Cache(tmp_path / "c")


LINES = [DEEP, "[]", "null", '{"split": "train"}', '{"split": "train", "row": "x", "fault": "f"}']
LINES += [
    '{"split": "train", "row": -1, "fault": "f"}',
    '{"split": [], "row": 1, "fault": "f"}',
    '{"split": "train", "row": true}',
]


def test_invalid_lines_of_a_quarantine_file_are_skipped(
    tmp_path: Path,
) -> None:
    good = QuarantinedImage(split="train", row=3, fault="is bad")
    line = {"split": "train", "row": 3, "fault": "is bad"}
    (tmp_path / "quarantine.jsonl").write_text(
        "\n".join([*LINES, json.dumps(line), '{"row": 9999, "spl'])
    )
    assert read_quarantine(tmp_path / "quarantine.jsonl", "train") == [good]


def test_invalid_failure_files_are_removed(tmp_path: Path) -> None:
    for number, text in enumerate([DEEP, "[]", "{}", '{"time": []}', "\0", " " * (1 << 23)]):
        (tmp_path / f"failure-rank{number}.json").write_text(text)
    assert take_failures(RunFolder(tmp_path)) == [] and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [("hard", "", 300), ("topk", "classes", 300), ("topk", "logits", np.nan)],
)
def test_impossible_teacher_outputs_are_refused_whatever_their_hash(
    kind: str, field: str, value: float, tmp_path: Path
) -> None:
    cache = build_cache(tmp_path / "c", epochs=(), kind=kind, k=3 if kind == "topk" else 1)
    facts, ordinals = cache.manifest, cache.manifest.ordinals(0)
    assert facts == manifest(kind, facts.k)
    records = encode(logits_of(0, ordinals), facts)
    (records[field] if field else records)[5] = value
    recorder = CacheWriter(tmp_path / "c")
    recorder.write(0, 0, records, images(0, ordinals))
    recorder.close()
    fault = Cache(tmp_path / "c").find_fault(0, 0, images)
    assert fault and ("the class 300" in fault or "not finite" in fault)
    with pytest.raises(CacheError, match="output has a number that is not finite"):
        encode(torch.full((2, 300), torch.nan), manifest("topk", 3))


@pytest.fixture
def shapes(tmp_path: Path) -> Path:
    return write_shapes(tmp_path / "data", train=8, val=2)


class Unpickled(pa.ExtensionType):  # type: ignore[misc]
    """As old pyarrow had Python types in files: with a pickle in the schema."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary
        super().__init__(pa.binary(), "arrow.py_extension_type")

    def __arrow_ext_serialize__(self) -> bytes:
        return pickle.dumps(Touch(self.canary))

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> "Unpickled":
        raise AssertionError


def with_pickle(kept: pa.Table, canary: Path) -> pa.Table:
    column = pa.ExtensionArray.from_storage(Unpickled(canary), kept["name"].combine_chunks())
    return kept.set_column(0, "name", column)


TABLES: dict[str, Callable[[pa.Table, Path], pa.Table]] = {
    "a pickle in the schema": with_pickle,
    "no facts": lambda kept, _: kept.replace_schema_metadata({"fastdeit": "nope"}),
    "deep facts": lambda kept, _: kept.replace_schema_metadata({"fastdeit": DEEP}),
    "a list of facts": lambda kept, _: kept.replace_schema_metadata({"fastdeit": "[]"}),
    "more rows than bytes": lambda kept, _: pa.table(
        {
            name: pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(10**7, np.int8)), kept[name].combine_chunks()[:1]
            )
            for name in ("name", "label")
        }
    ).replace_schema_metadata(kept.schema.metadata),
}


@pytest.mark.parametrize("kind", TABLES)
def test_invalid_index_table_is_built_again(kind: str, shapes: Path, canary: Path) -> None:
    for folder in (shapes / "train").iterdir():
        os.utime(folder, (1e9, 1e9))
    os.utime(shapes / "train", (1e9, 1e9))
    expected = build_index(shapes, "train")
    place = shapes / ".fastdeit" / "train.parquet"
    kept = pq.read_table(place)
    assert table.table_facts(kept)
    pq.write_table(TABLES[kind](kept, canary), place, compression="zstd")
    with at_most_mib(64):
        assert build_index(shapes, "train").fingerprint() == expected.fingerprint()
    assert not canary.exists()


def test_list_of_more_rows_than_bytes_is_refused(shapes: Path) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10**7, np.int8)), ["a.jpg"])
    pq.write_table(
        pa.table({"path": column, "label": pa.array(np.zeros(10**7, np.int8))}),
        shapes / "train.parquet",
    )
    with at_most_mib(64), pytest.raises(DataError, match="10,000,000 rows in"):
        build_index(shapes, "train.parquet")


def test_list_may_name_any_file_but_only_images_are_read(shapes: Path, tmp_path: Path) -> None:
    """Its paths are as trustworthy as the list: what they lead to is looked at as any image is, and
    never opened if no file."""
    (tmp_path / "elsewhere.jpg").write_bytes(JPEG)
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to("/dev/zero")
    (tmp_path / "text.jpg").write_text("root:x:0:0")
    names = [
        "../elsewhere.jpg",
        "../fifo.jpg",
        str(tmp_path / "link.jpg"),
        "../text.jpg",
        "/proc/self/mem.jpg",
    ]
    (shapes / "train.csv").write_text("".join(f"{name},0\n" for name in names))
    index = build_index(shapes, "train.csv", bad_images="skip")
    assert [index.name(row) for row in range(len(index))] == ["../elsewhere.jpg"]
    assert (
        sum("no regular file" in line for line in index.excluded) == 2 and len(index.excluded) == 4
    )


def shard_with(root: Path, *members: tuple[tarfile.TarInfo, bytes]) -> list[str]:
    """Return what is excluded of a shard with one good sample, then these members."""
    path = root / "train" / "s-00.tar"
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for info, data in (member("0.jpg", JPEG), member("0.cls", b"0"), *members):
            tar.addfile(info, io.BytesIO(data))
    index = build_index(root, "train", bad_images="skip")
    assert [index.name(row) for row in range(len(index))] == ["train/s-00.tar/0.jpg"]
    files = sorted(file.name for file in root.rglob("*") if file.is_file())
    own = [".train.parquet.lock", "train.parquet"]
    assert files == sorted([*own, "s-00.tar"]), "nothing is unpacked"
    return list(index.excluded)


def member(name: str, data: bytes, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


@pytest.mark.parametrize(
    "kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK]
)
def test_header_as_long_as_a_shard_is_not_read(kind: bytes, tmp_path: Path) -> None:
    long = member("x", bytes(1 << 26), type=kind)
    with at_most_mib(48):
        left_out = shard_with(tmp_path, long, member("1.jpg", JPEG))
    assert len(left_out) == 1 and "what follows is no member" in left_out[0]


def test_tar_members_with_false_sizes_are_refused(tmp_path: Path) -> None:
    sparse = member(
        "1.jpg",
        JPEG,
        pax_headers={
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.realsize": "9" * 15,
        },
    )
    left_out = shard_with(tmp_path, sparse, *[member(f"{name}.cls", b"0") for name in "1"])
    assert any("1.jpg" in line or "no member" in line for line in left_out)
    path = tmp_path / "train" / "s-00.tar"
    end = 1024 + 512 * -(-len(JPEG) // 512) + 512  # of the good sample
    info = tarfile.TarInfo("2.jpg")
    info.size = 8**11 - 1
    path.write_bytes(path.read_bytes()[:end] + info.tobuf() + bytes(2048))
    with at_most_mib(48):
        index = build_index(tmp_path, "train", bad_images="skip")
    assert len(index) == 1 and any(
        "2.jpg: is cut: the shard ends 85899" in line for line in index.excluded
    )


def png_of(width: int, height: int, *chunks: bytes) -> bytes:
    """A black PNG, and chunks before its pixels."""
    packer, row = zlib.compressobj(9), bytes(1 + 3 * width)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + b"".join(
        [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    )


@functools.cache
def bomb() -> bytes:
    return png_of(9_000, 9_000)


def tall(side: int) -> bytes:
    """A JPEG whose header says that it is so high and wide."""
    place = JPEG.index(b"\xff\xc0") + 5
    return JPEG[:place] + struct.pack(">HH", side, side) + JPEG[place + 4 :]


@functools.cache
def blown() -> bytes:
    return zlib.compress(bytes(1 << 28), 9)


EXIF = Image.Exif()
EXIF[0x010E] = "x" * 65_000
IMAGES: dict[str, Callable[[], bytes]] = {
    "bomb": bomb,
    "jpeg that lies": lambda: tall(60_000),
    "zTXt": lambda: png_of(8, 8, chunk(b"zTXt", b"Comment\0\0" + blown())),
    "iTXt": lambda: png_of(8, 8, chunk(b"iTXt", b"Comment\0\1\0\0\0" + blown())),
    "iCCP": lambda: png_of(8, 8, chunk(b"iCCP", b"profile\0\0" + blown())),
    "many texts": lambda: png_of(
        8, 8, *[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1 << 20), 9))] * 200
    ),
    "svg": lambda: (
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'>"
        b"<image href='file:///etc/passwd'/></svg>"
    ),
    "tiff": lambda: encoded(RGB, "TIFF"),
    "exif": lambda: encoded(RGB, "JPEG", exif=EXIF),
    "postscript": lambda: encoded(RGB, "EPS"),
}
WELL = ("exif", "iCCP", "zTXt", "iTXt", "many texts")  # may be taken, at the cost of the picture


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("kind", IMAGES)
def test_image_takes_no_more_memory_than_its_pixels(kind: str) -> None:
    data = IMAGES[kind]()
    assert len(data) < 1 << 20
    with at_most_mib(96):
        checked = check_image(data)
    assert isinstance(checked, str) or kind in WELL, checked
    if kind in ("bomb", "jpeg that lies"):
        assert str(MAX_PIXELS) in str(checked)


SWAPPED = {
    "bomb": IMAGES["bomb"],
    "jpeg that lies": IMAGES["jpeg that lies"],
    "larger": lambda: png_of(2000, 3000),
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("backend", ["exact", "native"])
@pytest.mark.parametrize("kind", SWAPPED)
def test_image_exchanged_during_a_run_is_not_decoded(kind: str, backend: str, shapes: Path) -> None:
    index = build_index(shapes, "train")
    held, options = (
        Quarantine(index),
        PipelineOptions((0.5,) * 3, (0.5,) * 3, num_threads=1, backend=backend),
    )
    plan = Plan(PlanSpec(seed=3, input_size=16), index.sizes)
    loader = TrainLoader(index, plan, options, batch_size=8, micro_batch=8, quarantine=held)
    assert len(list(loader.epoch(0))) == 3
    (shapes / index.name(5)).write_bytes(SWAPPED[kind]())
    with at_most_mib(128):  # of which the pipeline that is built anew takes half
        assert len(list(loader.epoch(1))) == 3
    loader.close()
    assert held.rows.tolist() == [5]
    fault = index.check(5)
    assert fault and ("more than" in fault or "was it replaced?" in fault)


def test_bad_images_of_a_foreign_cache_must_be_rows_of_the_index(
    shapes: Path, tmp_path: Path
) -> None:
    index, cache = build_index(shapes, "train"), build_cache(tmp_path / "c", epochs=(0,))
    rows = (3, 10**9)
    lines = [
        json.dumps({"split": "train", "row": row, "name": "x", "fault": "is bad"}) for row in rows
    ]
    (tmp_path / "c" / "quarantine.jsonl").write_text("\n".join([*LINES, *lines]))
    assert list(read_bad_images(cache, index)) == [3]


def test_header_as_long_as_an_archive_of_cifar_is_not_read(tmp_path: Path) -> None:
    """A megabyte that is a gigabyte of zeros, in a header that tarfile would read whole."""
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 1 << 26
    with gzip.open(tmp_path / "cifar-10-binary.tar.gz", "wb") as file:
        file.write(header.tobuf() + bytes(1 << 26))
    with at_most_mib(48), pytest.raises(DataError, match="holds no|header of 67,108,864 bytes"):
        build_index(tmp_path, "train")


@pytest.mark.parametrize("flag", ["--finetune", "--teacher-path", "--data-path", "--output-dir"])
def test_no_setting_holds_a_secret(flag: str, shapes: Path) -> None:
    scheme = "s3" if flag == "--output-dir" else "https"
    flags = ["--data-path", str(shapes), flag, f"{scheme}://me:secret@host/x.pth?sig=secret"]
    with pytest.raises(ValueError, match=f"{flag} must be without .*{scheme}://host/x") as caught:
        parse_config(flags, "test")
    assert "secret" not in str(caught.value).replace("?sig=secret", "" if scheme == "s3" else "x")
    with pytest.raises(ValueError, match="must be without a password or a token") as caught:
        read_weights(fetch_weights("https://host/x.pth?access_token=secret"))
    assert "secret" not in str(caught.value)


def test_revision_of_a_repository_leads_nowhere() -> None:
    for name in ("hf-hub:a/b@../../x", "hf-hub:a/b@main/../../x"):
        with pytest.raises(ValueError, match="a repository must be"):
            find_remote(name)
    assert find_remote("hf-hub:a/b@refs/pr/1")


def test_table_of_synsets_that_claims_millions_is_not_read(tmp_path: Path) -> None:
    savemat(tmp_path / "meta.mat", {"synsets": np.zeros((1, 1 << 23))}, do_compression=True)
    with pytest.raises(DataError, match="8,388,608 rows, at most 100,000"):
        _synsets(tmp_path / "meta.mat")
    cells = io.BytesIO()
    savemat(cells, {"synsets": np.array([[np.array([["a"]], object)]], object)})
    inner = cells.getvalue().rindex(struct.pack("<ii", 1, 1), 0, -40)
    data = bytearray(cells.getvalue())
    data[inner : inner + 8] = struct.pack("<ii", 1 << 30, 1 << 10)
    (tmp_path / "meta.mat").write_bytes(data)
    with pytest.raises(DataError, match="is not the devkit's table of synsets"):
        _synsets(tmp_path / "meta.mat")


def test_sizes_of_thousands_of_digits_are_no_sizes() -> None:
    for text in ("bytes 0-0/" + "9" * 5000, "bytes " + "9" * 5000 + "-1/x"):
        response = httpx2.Response(206, headers={"Content-Range": text})
        assert _read_size(response) is None
        assert "9" * 5000 not in str(_read_range(response) or "")


TOO_LARGE: list[dict[str, object]] = [
    {"model_args": {"embed_dim": 24_000}},
    {"model_args": {"depth": 10**9}},
    {"model_args": {"embed_dim": 24, "depth": 1, "num_heads": 3}, "num_classes": 10**9},
]


@pytest.mark.parametrize("described", TOO_LARGE, ids=str)
def test_config_of_a_model_larger_than_its_weights_is_refused(
    described: dict[str, object], tmp_path: Path
) -> None:
    shape = {"depth": 1, "embed_dim": 24, "num_heads": 3}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **shape)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    about = {"architecture": "vit_tiny_patch16_224", "num_classes": 0, "model_args": shape}
    (tmp_path / "config.json").write_text(json.dumps(about))
    load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(about | described))
    with at_most_mib(64), pytest.raises(ValueError, match="far larger than its [0-9,]+ weights"):
        load_model(tmp_path)
