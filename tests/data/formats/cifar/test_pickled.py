"""Pickles are read as data: plain values and arrays of bytes, and nothing that runs."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from fastdeit.data.formats.cifar.pickled import read_pickle
from tests.support.cifar import pickle_array, pickle_dict, pickle_list, pickle_string


def test_values_of_python_2_are_read() -> None:
    array = np.arange(600, dtype=np.uint8).reshape(2, 300)
    data = pickle_dict(
        {
            b"labels": pickle_list([b"K\x03", b"M\x10'", b"J\xff\xff\xff\xff"]),
            b"data": pickle_array(array),
            b"name": pickle_string(b"\xff" * 300),
        }
    )
    content = read_pickle(data)
    assert content[b"labels"] == [3, 10000, -1]
    assert content[b"name"] == b"\xff" * 300
    np.testing.assert_array_equal(content[b"data"], array)


def test_an_array_in_the_order_of_fortran_has_its_values() -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    np.testing.assert_array_equal(read_pickle(b"\x80\x02" + pickle_array(array) + b"."), array)


def test_values_of_python_3_in_protocol_2_are_read() -> None:
    value: dict[str, object] = {"a": [1, 2.5, None, True], "b": ("x", (), (1, 2, 3)), "c": [[]] * 2}
    assert read_pickle(pickle.dumps(value, 2)) == value


class Evil:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, protocol: int) -> None:
    data = pickle.dumps({"data": Evil(tmp_path / "ran"), "labels": []}, protocol)
    with pytest.raises(ValueError, match="refused"):
        read_pickle(data)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}q\x01(K\x01u.",  # a key without a value
        b"\x80\x02]K\x01s.",
        b"\x80\x02(K\x01K\x02t\x85R.",  # calls a number
        b"\x80\x02h\x07.",  # a memo that is not there
        b"\x80\x02}]K\x01s.",  # a list as a key
        b"cnumpy\nndarray\nK\x00\x85R.",
        b"cnumpy.core.multiarray\nscalar\n.",
        b"cbuiltins\neval\n(U\x011tR.",
        b"\x80\x02T\xff\xff\xff\x7fabc.",
        b"cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R.",
    ],
)
def test_what_is_no_plain_value_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        read_pickle(data)


def test_a_small_pickle_of_a_huge_value_takes_no_time() -> None:
    # each dict holds the one before twice, each tuple, too
    dicts = b"}q\x00" + b"}(U\x01ah\x00U\x01bh\x00uq\x00" * 60
    assert list(read_pickle(b"\x80\x02" + dicts + b".")) == [b"a", b"b"]
    tuples = b"K\x01q\x00" + b"h\x00\x86q\x00" * 60
    with pytest.raises(ValueError, match="a key that is no text"):
        read_pickle(b"\x80\x02}(" + tuples + b"K\x01u.")


def test_an_array_of_objects_is_refused() -> None:
    array = pickle_array(np.zeros((1, 4), np.uint8))
    with pytest.raises(ValueError, match="not of bytes"):
        read_pickle(b"\x80\x02" + array.replace(b"u1", b"O8") + b".")
    with pytest.raises(ValueError, match="reshape"):
        read_pickle(b"\x80\x02" + array.replace(b"M\x04\x00", b"M\x05\x00") + b".")
