"""The Parquet files of a split: where they are found, and which are refused before any is read."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fastdeit.data.formats.detect import find_split, refuse_unordered
from fastdeit.data.formats.listing import DataError
from fastdeit.data.formats.parquet.files import find_columns, find_parquet
from fastdeit.data.indexing import build_index
from tests.support.parquet import CLASSES, IMAGE, describe, write_table


def jpeg(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


ROW = ({"bytes": jpeg(), "path": "a.JPEG"}, 0)


@pytest.mark.parametrize(
    "name",
    [
        "data/train-00000-of-00001.parquet",
        "train-00000-of-00001.parquet",
        "train/0000.parquet",
        "train.parquet",
        "imagenet-train-7.parquet",
    ],
)
def test_a_split_is_found_in_each_layout_of_the_hub(tmp_path: Path, name: str) -> None:
    file = write_table(tmp_path / name, [ROW])
    found = find_split(tmp_path, "train")
    assert (found.kind, found.feeding, found.paths) == ("parquet", "parquet", (file,))


def test_a_name_that_ends_in_that_of_a_split_is_of_another(tmp_path: Path) -> None:
    for name in ("pretrain-0", "retrain_1", "train-0", "new_train-1", "trained-0"):
        write_table(tmp_path / f"{name}.parquet", [ROW])
    names = [file.name for file in find_split(tmp_path, "train").paths]
    assert names == ["new_train-1.parquet", "train-0.parquet"]


def test_what_macos_writes_beside_a_file_is_of_no_split(tmp_path: Path) -> None:
    file = write_table(tmp_path / "data/train-0.parquet", [ROW])
    (tmp_path / "data/._train-0.parquet").write_bytes(b"attributes")
    assert find_split(tmp_path, "train").paths == find_parquet(file.parent) == (file,)


def test_a_pattern_names_the_files(tmp_path: Path) -> None:
    files = [write_table(tmp_path / f"part{i}.parquet", [ROW]) for i in range(3)]
    assert find_split(tmp_path, "part*.parquet").paths == tuple(files)
    assert find_split(tmp_path, "part1.parquet").paths == (files[1],)


def test_validation_stands_for_val(tmp_path: Path) -> None:
    for split in ("test", "train", "validation"):
        write_table(tmp_path / f"data/{split}-00000-of-00001.parquet", [ROW])
    assert find_split(tmp_path, "val").paths[0].name == "validation-00000-of-00001.parquet"


def test_a_list_of_image_files_stays_a_list(tmp_path: Path) -> None:
    table = pa.table({"path": ["a.jpg"], "label": [0]})
    pq.write_table(table, tmp_path / "train.parquet")
    assert find_split(tmp_path, "train").kind == "list"
    assert find_parquet(tmp_path) == ()
    pq.write_table(table, tmp_path / "train-2.parquet")
    with pytest.raises(DataError, match=r"train-2.parquet and 1 more hold no images; name one"):
        find_split(tmp_path, "train*.parquet")


def test_a_missing_file_of_a_numbered_set_is_named(tmp_path: Path) -> None:
    for number in (0, 2):
        write_table(tmp_path / f"train-{number:05}-of-00004.parquet", [ROW])
    with pytest.raises(DataError, match="2 of 4 .* such as train-00001-of-00004.parquet"):
        find_split(tmp_path, "train")


@pytest.mark.parametrize(
    "names",
    [
        ["00000-of-00001", "00000-of-00002", "00001-of-00002"],
        ["00000-of-00002-a", "00001-of-00002-a", "00000-of-00002-b", "00001-of-00002-b"],
    ],
)
def test_a_set_that_is_there_in_two_versions_is_refused(names: list[str], tmp_path: Path) -> None:
    for name in names:
        write_table(tmp_path / f"data/train-{name}.parquet", [ROW])
    with pytest.raises(DataError, match=r"holds train-00000-of-0000\d in two versions"):
        find_split(tmp_path, "train")
    assert len(find_split(tmp_path, f"data/train-{names[1]}*.parquet").paths) == 1


def test_sets_of_several_names_and_a_hash_for_each_file_are_one_split(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002-a", "train-00001-of-00002-b", "new-train-00000-of-00001"):
        write_table(tmp_path / f"{name}.parquet", [ROW])
    assert len(find_split(tmp_path, "train").paths) == 3


def test_training_is_refused_with_the_command_that_helps(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", [ROW])
    with pytest.raises(DataError, match=f"fastdeit pack {tmp_path} OUTPUT --copy"):
        refuse_unordered(tmp_path, "train")


def test_columns_are_those_that_datasets_describes(tmp_path: Path) -> None:
    schema = pa.schema([("id", pa.int64()), ("image", IMAGE), ("label", pa.int64())], describe())
    found = find_columns(tmp_path, schema)
    assert found == ("image.bytes", "image.path", "label", CLASSES)


def test_the_fine_label_is_read_wherever_a_coarse_one_stands(tmp_path: Path) -> None:
    names = ("coarse_label", "fine_label")
    features = {name: {"_type": "ClassLabel", "names": [name]} for name in names}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for order in (names, names[::-1]):
        labels = [(name, pa.int64()) for name in order]
        found = find_columns(tmp_path, pa.schema([("image", IMAGE), *labels], metadata))
        assert (found.label, found.classes) == ("fine_label", ("fine_label",))


def test_a_described_label_wins_over_a_name(tmp_path: Path) -> None:
    features = {"species": {"_type": "ClassLabel", "names": ["a"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    columns = [("image", IMAGE), ("class", pa.int64()), ("species", pa.int64())]
    assert find_columns(tmp_path, pa.schema(columns, metadata)).label == "species"


def test_plain_columns_are_found_by_their_types_and_names(tmp_path: Path) -> None:
    schema = pa.schema([("jpg", pa.large_binary()), ("class", pa.string())])
    assert find_columns(tmp_path, schema) == ("jpg", "", "class", None)


def test_the_column_called_image_is_read_where_several_hold_images(tmp_path: Path) -> None:
    label = ("label", pa.int64())
    masks_first = pa.schema([("mask", IMAGE), ("image", IMAGE), label])
    assert find_columns(tmp_path, masks_first).encoded == "image.bytes"
    with pytest.raises(DataError, match="must have a column of images"):
        find_columns(tmp_path, pa.schema([("left", IMAGE), ("right", IMAGE), label]))


@pytest.mark.parametrize("text", ["no json", "[]", '{"info": 3}', "[" * 100_000])
def test_other_metadata_describes_nothing(tmp_path: Path, text: str) -> None:
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], {"huggingface": text})
    assert find_columns(tmp_path, schema).classes is None


@pytest.mark.parametrize(
    "names, message", [(["a", "b", "a"], "two classes are called 'a'"), ([1, 2], "list of texts")]
)
def test_names_of_classes_must_be_different_texts(
    tmp_path: Path, names: list[object], message: str
) -> None:
    write_table(tmp_path / "train.parquet", [ROW], describe(names))
    with pytest.raises(DataError, match=message):
        build_index(tmp_path, "train")


def test_a_file_of_more_rows_than_bytes_is_refused(tmp_path: Path) -> None:
    rows = [({"bytes": b"", "path": ""}, 0)] * 200_000
    write_table(tmp_path / "train-0.parquet", [ROW])
    write_table(tmp_path / "train-1.parquet", rows, compression="zstd")
    with pytest.raises(
        DataError, match=r"train-1.parquet: .*\(200,000 rows are more than its bytes"
    ):
        build_index(tmp_path, "train")


def test_a_file_without_labels_is_refused(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", [ROW], {}, ("image", "caption"))
    with pytest.raises(DataError, match="one of labels, label, .*got image: struct.*caption"):
        build_index(tmp_path, "train")
