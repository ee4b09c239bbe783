"""Training on a packed data set."""

from pathlib import Path

import pytest

from fastdeit.config.cli import parse_config
from fastdeit.data.formats.digits import write_digits
from fastdeit.data.packing.encode import Encoding
from fastdeit.data.packing.pack import pack
from fastdeit.distributed.world import init_distributed
from fastdeit.library.training import train_run
from tests.support.packing import make_job

FLAGS = "--recipe digits_teacher --data-set any --epochs 6 --warmup-epochs 1 --eval-epochs 6"


@pytest.mark.slow
def test_packed_digits_are_learnt_as_well_as_the_source(tmp_path: Path) -> None:
    init_distributed()
    source = write_digits(tmp_path / "source")
    # to 24 of 32 pixels, as 288 of 375
    pack(make_job(source, tmp_path / "packed", encoding=Encoding(resize=24)))
    top1 = {}
    for name in ("source", "packed"):
        folders = [
            "--data-path",
            str(tmp_path / name),
            "--output-dir",
            str(tmp_path / f"run-{name}"),
        ]
        config, _ = parse_config([*FLAGS.split(), *folders], "test")
        top1[name] = train_run(config)["results"]["ema/both/top1"]
    assert min(top1.values()) > 95
    assert abs(top1["source"] - top1["packed"]) < 2, top1
