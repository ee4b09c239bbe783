"""`fastdeit doctor` on two ranks: which of them differs, is missing, or is broken."""

from pathlib import Path

from tests.support import doctor_ranks
from tests.support.ranks import Ranks


def test_a_rank_that_differs_is_named_and_rank_0_prints_once(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", doctor_ranks.doctor, tmp_path, 60)
    assert ranks.wait() == 1
    lines = ranks.output.splitlines()
    (line,) = [line for line in lines if "import Pillow, rank 1 (" in line]
    assert line.startswith("broken") and "version 11.0" in line
    assert "make it equal to rank 0's: version 12" in lines[lines.index(line) + 1]
    (line,) = [line for line in lines if "variables, rank 1 (" in line]
    assert line.startswith("warning") and "NCCL_P2P_DISABLE=1" in line
    assert sum(" output folder " in line for line in lines) == 1
    assert "all 2 are here" in ranks.output
    assert lines[-1].startswith("1 broken, ")
    assert not list(tmp_path.glob(".fastdeit-doctor*"))


def test_a_missing_rank_is_named_after_the_limit(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", doctor_ranks.doctor_without_rank1, tmp_path, 1)
    assert ranks.wait() == 1
    assert "rank 1 of 2 missing; here are those on" in ranks.output
    assert "1 broken" in ranks.output


def test_a_rank_without_torch_prints_what_it_found_and_is_named_missing(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", doctor_ranks.doctor_without_torch, tmp_path, 2)
    assert ranks.wait() == 1
    lines = ranks.output.splitlines()
    (line,) = [line for line in lines if "import torch, rank 1 (" in line]
    assert line.startswith("broken") and "no libcudart" in line
    assert "rank 1 of 2 missing" in ranks.output


def test_ranks_sum_a_tensor_and_exclude_each_other_from_a_lock(tmp_path: Path) -> None:
    ranks = Ranks(tmp_path / "log", doctor_ranks.group, tmp_path)
    assert ranks.wait() == 0, ranks.output
    for rank in (0, 1):
        found = (tmp_path / f"found-{rank}").read_text()
        assert found.startswith("ok: 2 ranks sum 4 MiB over gloo at "), found
        assert found.endswith("the lock of rank 0 excludes all others"), found
