"""Names of classes: those of the weights, those of ImageNet, numbers."""

import pytest

from fastdeit.inference.class_names import name_classes


def test_names_of_the_weights_are_used() -> None:
    assert name_classes(("cat", "dog"), 2) == [("cat", ""), ("dog", "")]


def test_codes_of_imagenet_get_their_meaning() -> None:
    names = name_classes(("n02085620", "other", "n99999999"), 3)
    assert names == [("n02085620", "Chihuahua"), ("other", ""), ("n99999999", "")]


def test_weights_without_names_of_1000_classes_are_of_imagenet() -> None:
    names = name_classes(None, 1000)
    assert names[0] == ("n01440764", "tench, Tinca tinca")
    assert names[999].name == "n15075141" and all(meaning for _, meaning in names)
    assert len(name_classes(None, 21843)) == 21843


def test_other_classes_have_numbers() -> None:
    assert [name for name, _ in name_classes(None, 3)] == ["0", "1", "2"]


def test_another_number_of_names_is_refused() -> None:
    with pytest.raises(ValueError, match="name 2 classes, but have 3 outputs"):
        name_classes(("cat", "dog"), 3)
