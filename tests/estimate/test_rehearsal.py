"""Counts of the estimate beside those that the rehearsals of ImageNet found."""

import csv
import json
from collections import defaultdict

import pytest

from fastdeit.estimate.outputs import count_cache_bytes
from fastdeit.estimate.samples import IMAGENET, Samples
from fastdeit.teacher_cache.format import choose_chunk_size
from tests.support.launching import ROOT

EPOCHS = 300
Row = dict[str, str]


def read_rehearsals() -> dict[str, dict[str, Row]]:
    """Return the newest row of each stage by scale, of the scales with a plan."""
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    with (ROOT / "benchmarks" / "results" / "cpu-rehearsal.csv").open() as file:
        for row in csv.DictReader(file):
            found[row["scale"]][row["stage"]] = row
    return {scale: stages for scale, stages in found.items() if {"start", "plan"} <= set(stages)}


REHEARSALS = read_rehearsals()


def test_a_rehearsal_has_the_images_of_imagenet() -> None:
    assert int(REHEARSALS["1.0"]["start"]["samples"]) == IMAGENET.images
    assert int(REHEARSALS["1.0"]["evaluate"]["samples"]) == IMAGENET.val_images


@pytest.mark.parametrize("scale", REHEARSALS)
def test_steps_and_different_images_are_those_of_the_rehearsal(scale: str) -> None:
    stages = REHEARSALS[scale]
    facts = json.loads(stages["plan"]["facts"])
    images = int(stages["start"]["samples"])
    # the stage draws an epoch of each of three ordinals
    batch = int(stages["plan"]["samples"]) // (3 * facts["steps"])
    for copies in (2, 3):
        found = Samples(images, batch, EPOCHS, copies)
        assert found.epoch_steps == facts["steps"]
        assert found.different == facts[f"images with {copies} copies"]
        if "log" in stages:
            assert found.epochs * found.epoch_samples == int(stages["log"]["samples"])


@pytest.mark.parametrize(
    "row", [stages["cache merge"] for stages in REHEARSALS.values() if "cache merge" in stages]
)
def test_a_hard_cache_has_the_bytes_of_the_rehearsal(row: Row) -> None:
    images, records = int(row["samples"]), json.loads(row["facts"])["bytes"]
    chunks = -(-images // choose_chunk_size(images))
    # records.bin and, of each chunk, the 32 bytes of chunks.bin
    assert count_cache_bytes("hard", images, IMAGENET.classes, 1) == records + 32 * chunks
