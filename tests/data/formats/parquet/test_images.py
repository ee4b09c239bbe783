"""Images in Parquet files: the bytes and labels that were written, in any order and after any
damage; and packed, the same bytes in shards."""

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastdeit.data.build import build_eval_index
from fastdeit.data.formats.listing import DataError
from fastdeit.data.formats.parquet import images as images_module
from fastdeit.data.formats.parquet.images import ParquetImages
from fastdeit.data.indexing import build_index
from fastdeit.data.packing import pack as pack_module
from fastdeit.data.packing.pack import pack
from tests.data.formats.parquet.test_files import ROW, jpeg
from tests.support.packing import COPY, contents, make_job
from tests.support.parquet import CLASSES, Row, describe, write_hub_folder, write_table

FORMS: dict[str, dict[str, Any]] = {
    "of datasets": {"compression": "none", "use_dictionary": False},
    "of pyarrow": {},
    "with zstd": {"compression": "zstd", "row_group_size": 7},
    "with pages": {"data_page_size": 1000, "data_page_version": "2.0"},
}


def make_rows(count: int) -> list[Row]:
    return [({"bytes": jpeg(i), "path": f"n{i}.JPEG"}, i % 2) for i in range(count)]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    for split, count in (("train", 5), ("val", 2)):
        for label in range(2):
            home = tmp_path / "folder" / split / f"class{label}"
            home.mkdir(parents=True)
            for number in range(count):
                (home / f"{number}.jpg").write_bytes(jpeg(100 * label + number))
    return write_hub_folder(tmp_path / "hub", tmp_path / "folder")


@pytest.mark.parametrize("form", FORMS)
def test_each_image_and_label_is_the_one_that_was_written(tmp_path: Path, form: str) -> None:
    rows = make_rows(100)
    write_table(tmp_path / "train.parquet", rows, **FORMS[form])
    index = build_index(tmp_path, "train")
    assert (index.kind, index.classes, len(index)) == ("parquet", CLASSES, 100)
    assert index.labels.tolist() == [label for _, label in rows]
    assert index.name(3) == "train.parquet/000003_n3.JPEG"
    assert (index.sizes == (9, 12)).all() and index.header_only is not None
    assert not index.header_only.any(), "each image was decoded"
    for row in [*range(100), 50, 3, 99, 0, 64, 31]:
        assert index.read(row) == jpeg(row), row
    assert [one.tobytes() for one in index.encoded(np.array([7, 2]))] == [jpeg(7), jpeg(2)]


def test_rows_in_order_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(90), row_group_size=10)
    starts = []
    iterate = images_module._iterate

    def spy(file: Path, columns: list[str], group: int) -> Iterator[pa.RecordBatch]:
        starts.append(group)
        return iterate(file, columns, group)

    monkeypatch.setattr(images_module, "_iterate", spy)
    images = ParquetImages(file)
    for row in range(0, 90, 3):
        assert images[row].tobytes() == jpeg(row)
    assert starts == [0]
    assert images[41].tobytes() == jpeg(41)
    assert starts == [0, 4], "an earlier row begins at its row group"


def test_a_row_far_ahead_does_not_read_those_between(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(90), row_group_size=10)
    images = ParquetImages(file)
    assert images[85].tobytes() == jpeg(85)
    assert images._first >= 80


def test_a_row_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    images = ParquetImages(write_table(tmp_path / "train.parquet", [ROW]))
    for row in (-1, 1):
        with pytest.raises(IndexError, match="has 1 rows"):
            images[row]


def test_odd_images_are_excluded_with_the_reason(tmp_path: Path) -> None:
    rows: list[Row] = [
        ({"bytes": jpeg(), "path": None}, 0),
        (None, 0),
        ({"bytes": None, "path": "folder/there.jpg"}, 1),
        ({"bytes": b"no image", "path": "x.jpg"}, 1),
        ({"bytes": jpeg()[:-40], "path": "cut.jpg"}, 1),
        ({"bytes": jpeg(), "path": "n.jpg"}, None),
        ({"bytes": jpeg(3), "path": "../../etc/x\n.jpg"}, 1),
        ({"bytes": jpeg(3), "path": 100_000 * "x" + ".jpg"}, 1),
    ]
    write_table(tmp_path / "train.parquet", rows)
    index = build_index(tmp_path, "train", bad_images="skip")
    assert [index.name(row) for row in range(3)] == [
        "train.parquet/000000",
        "train.parquet/000006_x\\n.jpg",
        f"train.parquet/000007_{196 * 'x'}.jpg",
    ]
    assert [line.partition(": ")[2][:20] for line in index.excluded] == [
        "is not in the file, ",
        "is not in the file, ",
        "is no JPEG, PNG, Web",
        "OSError: image file ",
        "has no label",
    ]


def test_an_image_of_too_many_bytes_is_excluded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_table(tmp_path / "train.parquet", make_rows(2))
    monkeypatch.setattr(images_module, "MAX_BYTES", max(len(jpeg(0)), len(jpeg(1))) - 1)
    index = build_index(tmp_path, "train", bad_images="skip")
    assert len(index) == 1 and "bytes are more than" in index.excluded[0]


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", [({"bytes": jpeg(), "path": "a"}, 2)])
    with pytest.raises(DataError, match="train.parquet/000000_a has the label 2, not one of the 2"):
        build_index(tmp_path, "train")


def test_files_that_name_their_classes_in_another_order_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train-0.parquet", make_rows(2))
    swapped = describe(CLASSES[::-1])
    other = write_table(tmp_path / "train-1.parquet", make_rows(2), swapped)
    with pytest.raises(DataError, match=r"train-1.parquet names other classes than the files"):
        build_index(tmp_path, "train")
    other.rename(tmp_path / "val.parquet")
    assert len(build_index(tmp_path, "train")) == 2
    with pytest.raises(DataError, match=r"val.parquet names other classes than train"):
        build_index(tmp_path, "val")
    with pytest.raises(DataError, match=r"val.parquet names other classes than train, or in anoth"):
        build_index(tmp_path, "val", classes=CLASSES)  # as training, index and pack do
    assert len(build_index(tmp_path, "val", classes=("n01440764", "n01443537"))) == 2
    (tmp_path / "classes.txt").write_text("a\nb\n")
    assert build_index(tmp_path, "val").classes == ("a", "b")


def test_the_unlabelled_images_of_a_test_split_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "test.parquet", [({"bytes": jpeg(), "path": "a"}, -1)])
    with pytest.raises(DataError, match="the label -1"):
        build_eval_index(tmp_path, "test", CLASSES, "skip")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train-0.parquet", [ROW])
    second = write_table(tmp_path / "train-1.parquet", make_rows(20))
    os.truncate(second, second.stat().st_size - 10)
    with pytest.raises(DataError, match="train-1.parquet: is no Parquet file .*fetch it again"):
        build_index(tmp_path, "train")
    second.replace(tmp_path / "train-0.parquet")  # the first, by which the format is recognised
    with pytest.raises(DataError, match="train-0.parquet: is no Parquet file .*fetch it again"):
        build_index(tmp_path, "train")


def test_damaged_pages_are_refused(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(60), compression="zstd")
    damaged = bytearray(file.read_bytes())
    damaged[4:2000] = bytes(1996)  # with the header of the first page
    file.write_bytes(damaged)
    with pytest.raises(DataError, match="train.parquet: is no Parquet file that can be read"):
        build_index(tmp_path, "train")


def test_each_flipped_byte_gives_an_index_or_one_clear_error(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(4))
    whole = file.read_bytes()
    draws = np.random.default_rng(0)
    for place in draws.integers(0, len(whole), 40).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= int(draws.integers(1, 256))
        file.write_bytes(damaged)
        try:
            index = build_index(tmp_path, "train", cache_dir=tmp_path / str(place))
            assert len(index) <= 4
        except DataError as error:
            assert str(tmp_path) in str(error)


def test_an_exchanged_file_is_listed_again(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(4))
    before = build_index(tmp_path, "train").fingerprint()
    write_table(file, make_rows(5))
    assert build_index(tmp_path, "train").fingerprint() != before


def test_an_exchanged_file_is_read_anew(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(4))
    assert build_index(tmp_path, "train").read(2) == jpeg(2)
    write_table(file, make_rows(8)[4:])
    assert build_index(tmp_path, "train").read(2) == jpeg(6)


def test_a_file_with_fewer_rows_than_before_is_a_fault(tmp_path: Path) -> None:
    file = write_table(tmp_path / "train.parquet", make_rows(70))
    images = ParquetImages(file)
    write_table(file, make_rows(40))
    for row in (69, 50):
        with pytest.raises(DataError, match=f"has no row {row} any more: was it replaced"):
            images[row]
    assert images[3].tobytes() == jpeg(3) and images[39].tobytes() == jpeg(39)


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view()], ids=str)
def test_each_arrow_type_of_bytes_is_read(tmp_path: Path, kind: pa.DataType) -> None:
    """Also in a column whose name has a dot, as that of a field in a struct has."""
    images = pa.array([jpeg(i) for i in range(3)], kind)
    pq.write_table(pa.table({"my.image": images, "label": [0, 1, 0]}), tmp_path / "train.parquet")
    index = build_index(tmp_path, "train")
    assert [index.read(row) for row in range(3)] == [jpeg(row) for row in range(3)]


def test_packed_shards_have_the_same_bytes_classes_and_labels(tmp_path: Path, hub: Path) -> None:
    source = build_index(hub, "train")
    summary = pack(make_job(hub, tmp_path / "out", encoding=COPY))
    packed = build_index(tmp_path / "out", "train")
    assert summary.trial.psnr_db == () and packed.classes == CLASSES == source.classes
    assert packed.labels.tolist() == source.labels.tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 1]
    assert [packed.read(row) for row in range(10)] == [source.read(row) for row in range(10)]


def test_evaluation_reads_no_training_image(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scanned = []
    scan = images_module._check_file

    def spy(file: Path) -> object:
        scanned.append(file.name)
        return scan(file)

    monkeypatch.setattr(images_module, "_check_file", spy)
    val = build_eval_index(hub, "val", ["other"], "skip")
    assert val.classes == CLASSES and len(val) == 4
    assert scanned == [f"validation-{n:05}-of-00002.parquet" for n in (0, 1)]


def test_an_interrupted_packing_continues_to_the_same_bytes(
    tmp_path: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(make_job(hub, tmp_path / "whole"))
    write_part = pack_module.write_part

    def fail_at_second(part: Any) -> Any:
        if part.number == 1:
            raise KeyboardInterrupt
        return write_part(part)

    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "write_part", fail_at_second)
        with pytest.raises(KeyboardInterrupt):
            pack(make_job(hub, tmp_path / "out", workers=1))
    assert pack(make_job(hub, tmp_path / "out")).written_before >= 1
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_large_files_are_read_by_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        write_table(tmp_path / f"train-{number}.parquet", make_rows(2))
    monkeypatch.setattr(images_module, "_PROCESSES_FROM", 1)
    assert len(build_index(tmp_path, "train", workers=2)) == 6


def test_images_decode_as_pillow_does(tmp_path: Path) -> None:
    from tests.support.decoding import decode_by_dali

    write_table(tmp_path / "train.parquet", make_rows(2))
    index = build_index(tmp_path, "train")
    whole, _ = decode_by_dali(index.encoded(np.array([1]))[0])
    np.testing.assert_array_equal(whole, np.asarray(Image.open(io.BytesIO(jpeg(1)))))


def test_the_form_is_that_of_the_hub(hub: Path) -> None:
    schema = pq.read_schema(hub / "data" / "train-00000-of-00002.parquet")
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("label").type == pa.int64()


def test_a_read_fault_that_passes_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = make_rows(100)
    images = ParquetImages(write_table(tmp_path / "train.parquet", rows))
    read = pq.ParquetFile.iter_batches
    faults = [OSError("Input/output error")]

    def fail_once(self: pq.ParquetFile, *arguments: Any, **settings: Any) -> Iterator[Any]:
        if faults:
            raise faults.pop()
        return read(self, *arguments, **settings)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", fail_once)
    with pytest.raises(DataError, match="Input/output"):
        images[3]
    assert [images[row].tobytes() for row in (3, 99)] == [jpeg(3), jpeg(99)]
