"""Lists of images and labels, and ImageNet's layouts, whose validation images have their labels in
a list."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from fastdeit.data.formats.listing import DataError
from fastdeit.data.indexing import build_index


def save(path: Path, height: int = 6) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, 8, 3), 90, np.uint8)).save(path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(4):
        save(tmp_path / f"pictures/{number}.png", 6 + number)
    return tmp_path


CSV = {
    "header": "label,path\ncat,pictures/3.png\nant,pictures/0.png\n",
    "header-other-names": "id,Filename,Class\n7,pictures/3.png,cat\n8,pictures/0.png,ant\n",
    "no-header": "pictures/3.png,cat\npictures/0.png,ant\n\n",
    "quoted": '"pictures/3.png","cat"\r\n"./pictures/0.png" , "ant"\r\n',
}


@pytest.mark.parametrize("kind", CSV)
def test_a_csv_list_is_read(root: Path, kind: str) -> None:
    (root / "train.csv").write_text(CSV[kind].replace(" , ", ","))
    index = build_index(root, "train")
    assert (index.kind, index.classes, index.labels.tolist()) == ("files", ("ant", "cat"), [1, 0])
    assert [index.name(row) for row in range(2)] == ["pictures/3.png", "pictures/0.png"]
    assert index.sizes.tolist() == [[9, 8], [6, 8]]
    assert bytes(index.encoded(np.array([1]))[0]).decode() == f"{root}/pictures/0.png"


def test_numeric_labels_are_classes_up_to_the_largest(root: Path) -> None:
    (root / "train.txt").write_text("pictures/0.png 0\npictures/1.png\t2\n")
    (root / "val.txt").write_text("pictures/2.png 1\n")
    assert build_index(root, "train").classes == ("0", "1", "2")
    assert build_index(root, "val").labels.tolist() == [1]


@pytest.mark.parametrize("labels", [[1, 0], ["b", "a"]])
def test_a_parquet_list_is_read(root: Path, labels: list) -> None:
    pq.write_table(
        pa.table({"image_path": ["pictures/0.png", f"{root}/pictures/1.png"], "target": labels}),
        root / "some.parquet",
    )
    index = build_index(root, "some.parquet")
    assert index.labels.tolist() == [1, 0]
    assert index.name(1) == "pictures/1.png"


def test_a_list_may_have_names_and_absolute_paths(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    far = save(tmp_path_factory.mktemp("far") / "with space.png", 11)
    (root / "train.txt").write_text(f"{far} cat\n")
    index = build_index(root, "train")
    assert index.sizes.tolist() == [[11, 8]] and index.check(0) is None


def test_missing_and_bad_files_are_excluded(root: Path) -> None:
    (root / "pictures/1.png").write_bytes(b"x")
    (root / "train.csv").write_text("pictures/0.png,a\npictures/1.png,a\npictures/9.png,b\n")
    with pytest.raises(DataError, match="2 bad image"):
        build_index(root, "train")
    index = build_index(root, "train", bad_images="skip")
    assert len(index) == 1 and index.classes == ("a", "b")
    assert index.excluded[1] == "pictures/9.png: cannot be read: No such file or directory"


WRONG = {
    "no-label": ("train.csv", "pictures/0.png\n", "line 1: pictures/0.png has no label"),
    "empty-label": ("train.csv", "pictures/0.png,a\npictures/1.png, \n", "line 2"),
    "columns": ("train.csv", "a,b\nx,y\n", "must have one of the columns path, .* .got a, b"),
    "empty": ("train.csv", "", "lists no images"),
    "only-header": ("train.csv", "path,label\n", "lists no images"),
    "twice": ("train.csv", "pictures/0.png,a\npictures/./0.png,b\n", "lists pictures/0.png twice"),
    "parquet": ("train.parquet", "no parquet", "is no Parquet file"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_lists_are_refused(root: Path, kind: str) -> None:
    name, text, message = WRONG[kind]
    (root / name).write_text(text)
    with pytest.raises(DataError, match=message):
        build_index(root, "train")


def test_labels_must_be_whole_numbers_or_names(root: Path) -> None:
    pq.write_table(pa.table({"path": ["pictures/0.png"], "label": [0.5]}), root / "train.parquet")
    with pytest.raises(DataError, match=r"row 0: pictures/0\.png has the label 0\.5; a label"):
        build_index(root, "train")


def test_a_label_that_train_does_not_have_is_refused(root: Path) -> None:
    (root / "train.csv").write_text("pictures/0.png,a\npictures/1.png,b\n")
    (root / "val.csv").write_text("pictures/2.png,c\n")
    with pytest.raises(
        DataError,
        match=r"csv, line 1: pictures/2\.png has the label 'c', not one of the 2 classes: a, b",
    ):
        build_index(root, "val")


def test_a_missing_list_is_refused(root: Path) -> None:
    with pytest.raises(DataError, match=r"mine\.csv: no such file; found pictures"):
        build_index(root, "mine.csv")


def test_a_changed_list_is_read_again(root: Path) -> None:
    (root / "train.csv").write_text("pictures/0.png,a\n")
    assert len(build_index(root, "train")) == 1
    (root / "train.csv").write_text("pictures/0.png,a\npictures/1.png,b\n")
    assert len(build_index(root, "train")) == 2


SYNSETS = ("n01440764", "n01443537", "n01484850")
TRUTH = (2, 0, 1, 2)  # places in the sorted synsets


@pytest.fixture
def imagenet(tmp_path: Path) -> Path:
    root = tmp_path / "imagenet"
    for name in SYNSETS:
        save(root / f"train/{name}/{name}_10026.JPEG")
    for number in range(len(TRUTH)):
        save(root / f"val/ILSVRC2012_val_{number + 1:08}.JPEG", 10 + number)
    return root


def write_caffe(root: Path) -> None:
    lines = [f"ILSVRC2012_val_{number + 1:08}.JPEG {label}" for number, label in enumerate(TRUTH)]
    (root / "val.txt").write_text("\n".join(lines[::-1]))


def write_synset_list(root: Path) -> None:
    lines = [
        f"ILSVRC2012_val_{number + 1:08}.JPEG {SYNSETS[label]}"
        for number, label in enumerate(TRUTH)
    ]
    (root / "val/val.txt").write_text("\n".join(lines))


def write_kaggle(root: Path) -> None:
    with (root / "LOC_val_solution.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["ImageId", "PredictionString"])
        for number in (3, 1, 0, 2):
            name = SYNSETS[TRUTH[number]]
            rows.writerow(
                [f"ILSVRC2012_val_{number + 1:08}", f"{name} 85 1 499 272 {name} 1 2 3 4 "]
            )


# the devkit's own numbers 1, 2, 3; then come groups of synsets
DEVKIT_ORDER = ("n01484850", "n01440764", "n01443537")


def write_devkit(root: Path, folder: str = "ILSVRC2012_devkit_t12/data") -> None:
    data = root / folder
    data.mkdir(parents=True, exist_ok=True)
    numbers = [DEVKIT_ORDER.index(SYNSETS[label]) + 1 for label in TRUTH]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(
        "".join(f"{number}\n" for number in numbers)
    )
    synsets = np.zeros((4, 1), [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")])
    for row, name in enumerate((*DEVKIT_ORDER, "n00001740")):
        synsets[row, 0] = (float(row + 1), name, 0.0 if row < 3 else 3.0)
    savemat(data / "meta.mat", {"synsets": synsets})


@pytest.mark.parametrize("write", [write_caffe, write_synset_list, write_kaggle, write_devkit])
def test_flat_validation_images_are_labelled(imagenet: Path, write) -> None:
    write(imagenet)
    val = build_index(imagenet, "val")
    assert (val.classes, val.labels.tolist()) == (SYNSETS, list(TRUTH))
    assert (
        val.sizes[:, 0].tolist() == [10, 11, 12, 13]
        and val.name(0) == "val/ILSVRC2012_val_00000001.JPEG"
    )


def test_class_folders_need_no_list(imagenet: Path) -> None:
    for number, label in enumerate(TRUTH):
        name = f"ILSVRC2012_val_{number + 1:08}.JPEG"
        (imagenet / "val" / SYNSETS[label]).mkdir(exist_ok=True)
        (imagenet / "val" / name).rename(imagenet / "val" / SYNSETS[label] / name)
    assert build_index(imagenet, "val").labels.tolist() == sorted(TRUTH)


def test_kaggles_folders_are_found(imagenet: Path, tmp_path: Path) -> None:
    kaggle = tmp_path / "kaggle/ILSVRC/Data/CLS-LOC"
    kaggle.parent.mkdir(parents=True)
    imagenet.rename(kaggle)
    write_kaggle(tmp_path / "kaggle")
    for root in (kaggle, tmp_path / "kaggle"):
        assert build_index(root, "val").labels.tolist() == list(TRUTH)


def test_flat_images_without_a_list_are_refused(imagenet: Path) -> None:
    with pytest.raises(DataError, match="no file with labels"):
        build_index(imagenet, "val")


def test_a_list_without_an_image_is_refused(imagenet: Path) -> None:
    write_caffe(imagenet)
    save(imagenet / "val/ILSVRC2012_val_00000009.JPEG")
    with pytest.raises(
        DataError, match=r"val\.txt: has no class for ILSVRC2012_val_00000009\.JPEG"
    ):
        build_index(imagenet, "val")


def test_a_devkit_that_does_not_fit_is_refused(imagenet: Path) -> None:
    write_devkit(imagenet)
    truth = imagenet / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    for text, message in (
        ("1\n2\n", r"must have a number for each of the 4 images \(got 2"),
        ("1\n2\n3\n9\n", "class number 9"),
    ):
        truth.write_text(text)
        with pytest.raises(DataError, match=message):
            build_index(imagenet, "val")
    truth.with_name("meta.mat").write_bytes(b"no mat file")
    with pytest.raises(DataError, match="is not the devkit's table"):
        build_index(imagenet, "val")
    truth.with_name("meta.mat").unlink()
    with pytest.raises(DataError, match=r"meta\.mat: no such file"):
        build_index(imagenet, "val")


ENCODED = {
    "utf-8 with a byte order mark": ("utf-8-sig", "train.csv", "path,label\n{},0\n{},1\n"),
    "the same without a heading": ("utf-8-sig", "train.csv", "{},0\n{},1\n"),
    "Excel's Unicode text": ("utf-16", "train.txt", "path\tlabel\r\n{}\t0\r\n{}\t1\r\n"),
    "lines of Windows": ("utf-8", "train.csv", "path,label\r\n{},0\r\n{},1\r\n"),
    "lines of the old Macintosh": ("utf-8", "train.csv", "path,label\r{},0\r{},1\r"),
    "semicolons": ("utf-8", "train.csv", "label;path\n0;{}\n1;{}\n"),
    "semicolons without a heading": ("utf-8", "train.csv", "{};0\n{};1\n"),
    "tabs": ("utf-8", "train.tsv", "path\tlabel\n{}\t0\n{}\t1\n"),
    "commas in a text file": ("utf-8", "train.txt", '"{}",0\n{},1\n'),
    "quotes in a text file": ("utf-8", "train.txt", '"{}" 0\n"{}"  1\n'),
    "blanks before quotes": ("utf-8", "train.csv", '"{}", "0"\n"{}", "1"\n'),
    "upper case": ("utf-8", "train.CSV", "PATH,Label\n{},0\n{},1\n"),
}


@pytest.mark.parametrize("kind", ENCODED)
def test_lists_of_other_programs_are_read(root: Path, kind: str) -> None:
    encoding, name, form = ENCODED[kind]
    names = ("pictures/a, b;c d.png", "pictures/1.png")
    (root / "pictures/0.png").rename(root / names[0])
    if '"' not in form and name.lower().endswith(".csv"):
        form = form.replace("{}", '"{}"', 1)
    (root / name).write_bytes(form.format(*names).encode(encoding))
    index = build_index(root, name)
    assert [index.name(row) for row in range(2)] == list(names)
    assert index.labels.tolist() == [0, 1]


UNREADABLE = {
    "UTF-16 without a mark": "a.png,0\n".encode("utf-16-le"),
    "UTF-16, cut": "a.png,0\n".encode("utf-16")[:-1],
    "UTF-32": "a.png,0\n".encode("utf-32"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_a_list_in_another_encoding_is_refused(root: Path, kind: str) -> None:
    (root / "train.csv").write_bytes(UNREADABLE[kind])
    with pytest.raises(DataError, match=r"train\.csv: must be text in UTF-8"):
        build_index(root, "train")


def test_a_list_of_any_size_is_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastdeit.data.formats.listing.MAX_LIST_BYTES", 100)
    (root / "train.csv").write_text("pictures/0.png,0\n" * 10)
    with pytest.raises(DataError, match=r"train\.csv: must be at most 100 bytes"):
        build_index(root, "train")


def test_paths_of_windows_are_read(root: Path) -> None:
    (root / r"odd\0.png").write_bytes((root / "pictures/0.png").read_bytes())
    (root / "train.csv").write_text("pictures\\1.png,0\nodd\\0.png,1\n")
    index = build_index(root, "train")
    assert [index.name(row) for row in range(2)] == ["pictures/1.png", r"odd\0.png"]


def test_classes_may_begin_with_a_byte_order_mark(root: Path) -> None:
    (root / "train.csv").write_text("pictures/0.png,ant\n")
    (root / "classes.txt").write_text("ant\ncat\n", "utf-8-sig")
    assert build_index(root, "train").classes == ("ant", "cat")


def test_an_odd_label_is_refused_by_its_line(root: Path) -> None:
    (root / "train.csv").write_text(
        "path,label\n\npictures/0.png,0\npictures/1.png,1\npictures/2.png,unknown\n"
    )
    with pytest.raises(DataError, match=r"line 5: pictures/2\.png has the label 'unknown', which"):
        build_index(root, "train")
    (root / "classes.txt").write_text("0\n1\nunknown\n")
    assert build_index(root, "train").labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pa.array([2.0, 10.0]), [2, 10]),
        (pa.array(["2", "10"]), [2, 10]),
        (pa.array(["2.0", "10.0"]).dictionary_encode(), [2, 10]),
        (pa.array([2, 10], pa.uint8()), [2, 10]),
        (pa.array([True, False]), [1, 0]),
        (pa.array(["cat", "ant"], pa.large_string()), [1, 0]),
        (pa.array([b"cat", b"ant"]), [1, 0]),
    ],
    ids=lambda value: str(getattr(value, "type", "")),
)
def test_columns_of_all_types_follow_one_rule(root: Path, values: pa.Array, labels: list) -> None:
    table = pa.table({"path": ["pictures/0.png", "pictures/1.png"], "label": values})
    pq.write_table(table, root / "train.parquet")
    assert build_index(root, "train").labels.tolist() == labels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([2.0, None]), r"row 1: pictures/1\.png has no label \(got None\); remove"),
        (pa.array([2.0, float("nan")]), r"row 1: pictures/1\.png has no label \(got nan\)"),
        (pa.array([2.0, 2.5]), r"row 1: pictures/1\.png has the label 2\.5"),
        (pa.array([[1], [2]]), r"row 0: pictures/0\.png: a label must be .* \(got \[1\]\)"),
    ],
    ids=["null", "nan", "fraction", "lists"],
)
def test_a_column_with_what_is_no_label_is_refused(
    root: Path, values: pa.Array, message: str
) -> None:
    table = pa.table({"path": ["pictures/0.png", "pictures/1.png"], "label": values})
    pq.write_table(table, root / "train.parquet")
    with pytest.raises(DataError, match=message):
        build_index(root, "train")


def test_a_path_with_a_zero_byte_is_refused(root: Path) -> None:
    pq.write_table(pa.table({"path": ["a\0.png"], "label": [0]}), root / "train.parquet")
    with pytest.raises(DataError, match=r"row 0: 'a\\x00\.png' is no path of an image"):
        build_index(root, "train")


def test_a_long_value_that_is_no_path_is_shown_in_part(root: Path) -> None:
    pixels = pa.array([[7] * 10_000])
    pq.write_table(pa.table({"image": pixels, "label": [0]}), root / "train.parquet")
    with pytest.raises(DataError, match=r"row 0: \[7, 7, .{1,100} is no path of an image"):
        build_index(root, "train")


def test_labels_that_begin_at_1_are_noted(root: Path) -> None:
    (root / "train.csv").write_text("pictures/0.png,1\npictures/1.png,2\n")
    (note,) = build_index(root, "train").notes
    assert note == "no training image has the class 0, of 3 classes; labels count from 0"
    (root / "val.csv").write_text("pictures/2.png,1\n")
    assert build_index(root, "val").notes == ()


def test_litter_in_a_list_is_ignored_and_noted(root: Path) -> None:
    (root / "train.csv").write_text("pictures/0.png,0\n__MACOSX/pictures/._0.png,1\n")
    index = build_index(root, "train")
    assert (len(index), index.classes) == (1, ("0",))
    assert "no part of a data set are ignored: 1, such as __MACOSX/" in index.notes[0]
