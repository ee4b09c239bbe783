"""CIFAR's files with few images, laid out byte for byte as they are published.

The pickled form was written by Python 2, whose strings are bytes; `pickle` cannot write it any
more, so its opcodes are written here one by one.
"""

import io
import struct
import tarfile
from pathlib import Path

import numpy as np

CLASSES10 = "airplane automobile bird cat deer dog frog horse ship truck".split()
CLASSES100 = [f"class_{number:02d}" for number in range(100)]
PER_FILE = 6


def pickle_string(text: bytes) -> bytes:
    """Return a string of Python 2, a pickle of protocol 2 without its ends."""
    if len(text) < 256:
        return b"U" + bytes([len(text)]) + text
    return b"T" + struct.pack("<i", len(text)) + text


def pickle_array(array: np.ndarray) -> bytes:
    """Return a NumPy array of bytes as NumPy under Python 2 wrote it, in its own order."""
    shape = b"".join(b"M" + struct.pack("<H", side) for side in array.shape)
    dtype = b"cnumpy\ndtype\nq\x65U\x02u1K\x00K\x01\x87q\x66Rq\x67"
    dtype += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\nq\x60cnumpy\nndarray\nq\x61"
    empty += b"K\x00\x85U\x01b\x87Rq\x62"
    return (
        empty
        + b"(K\x01"
        + shape
        + b"\x86"
        + dtype
        + (b"\x88" if array.flags.fnc else b"\x89")
        + pickle_string(array.tobytes("A"))
        + b"tb"
    )


def pickle_dict(content: dict[bytes, bytes]) -> bytes:
    """Return a whole pickle of a dict; content: values that are pickled already, by key."""
    items = b"".join(pickle_string(key) + value for key, value in content.items())
    return b"\x80\x02}q\x01(" + items + b"u."


def pickle_list(items: list[bytes]) -> bytes:
    return b"]q\x05(" + b"".join(items) + b"e"


def _pickle_labels(labels: np.ndarray) -> bytes:
    return pickle_list([b"K" + bytes([label]) for label in labels.tolist()])


def draw_batch(number: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return random images uint8 (N, 3072), and labels."""
    rng = np.random.default_rng(number)
    images = rng.integers(0, 256, (PER_FILE, 3072), dtype=np.uint8)
    return images, (np.arange(PER_FILE) + number) % classes


def files10(binary: bool) -> dict[str, bytes]:
    """Return the files of CIFAR-10 by path."""
    folder = "cifar-10-batches-bin" if binary else "cifar-10-batches-py"
    files = {}
    for number in range(6):
        images, labels = draw_batch(number, 10)
        name = f"data_batch_{number + 1}" if number < 5 else "test_batch"
        if binary:
            records = np.concatenate((labels[:, None].astype(np.uint8), images), axis=1)
            files[f"{folder}/{name}.bin"] = records.tobytes()
        else:
            files[f"{folder}/{name}"] = pickle_dict(
                {
                    b"batch_label": pickle_string(b"training batch 1 of 5"),
                    b"labels": _pickle_labels(labels),
                    b"data": pickle_array(images),
                    b"filenames": pickle_list([pickle_string(b"x.png")] * PER_FILE),
                }
            )
    if binary:
        files[f"{folder}/batches.meta.txt"] = "\n".join([*CLASSES10, "", ""]).encode()
    else:
        names = pickle_list([pickle_string(name.encode()) for name in CLASSES10])
        meta = {b"num_cases_per_batch": b"M\x10'", b"label_names": names, b"num_vis": b"M\x00\x0c"}
        files[f"{folder}/batches.meta"] = pickle_dict(meta)
    files[f"{folder}/readme.html"] = b"<meta HTTP-EQUIV='REFRESH' content='0; url=http://x'>"
    return files


def files100(binary: bool) -> dict[str, bytes]:
    """Return the files of CIFAR-100 by path."""
    folder = "cifar-100-binary" if binary else "cifar-100-python"
    files = {}
    for number, name in enumerate(("train", "test")):
        images, labels = draw_batch(number, 100)
        coarse = labels // 5
        if binary:
            pairs = np.stack((coarse, labels), 1).astype(np.uint8)
            files[f"{folder}/{name}.bin"] = np.concatenate((pairs, images), axis=1).tobytes()
        else:
            files[f"{folder}/{name}"] = pickle_dict(
                {
                    b"fine_labels": _pickle_labels(labels),
                    b"coarse_labels": _pickle_labels(coarse),
                    b"data": pickle_array(images),
                }
            )
    if binary:
        files[f"{folder}/fine_label_names.txt"] = "\n".join([*CLASSES100, ""]).encode()
    else:
        names = pickle_list([pickle_string(name.encode()) for name in CLASSES100])
        files[f"{folder}/meta"] = pickle_dict({b"fine_label_names": names})
    return files


def write_files(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below `root`; return it."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def write_archive(archive: Path, files: dict[str, bytes]) -> Path:
    """Write files as a .tar.gz; return the folder that it lies in."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as opened:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            opened.addfile(member, io.BytesIO(data))
    return archive.parent
