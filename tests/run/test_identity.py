"""Identity of a run: the hash of the code, and differences between ranks."""

from pathlib import Path

import pytest

import fastdeit
from fastdeit.config.schema import Config
from fastdeit.distributed import collectives
from fastdeit.distributed.world import init_distributed
from fastdeit.run import identity
from fastdeit.run.identity import check_same_everywhere, code_digest


def test_ranks_with_different_settings_or_code_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    init_distributed()
    config = Config()
    ours = identity._describe_process(config)
    check_same_everywhere(config)
    theirs = ours | {"--lr": 0.1, "code": "0123"}
    ranks = [("a", ours), ("a", ours), ("b", theirs)]
    monkeypatch.setattr(collectives, "on_every_rank", lambda action: ranks)
    message = r"rank 2 \(b\) differs from rank 0 in --lr: 0.0005, there 0.1; code: "
    with pytest.raises(ValueError, match=message):
        check_same_everywhere(config)


def test_code_digest_changes_with_every_python_file_and_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kernels" / "op_kernels").mkdir(parents=True)
    for name in ("identity.py", "kernels/op_kernels/a.py"):
        (tmp_path / name).write_text("x")
    monkeypatch.setattr(fastdeit, "__file__", str(tmp_path / "__init__.py"))
    digests = set()
    nested = "kernels/op_kernels/a.py"
    launches = "kernels/launch_configs.json"
    changes = ((nested, "x"), (nested, "y"), ("b.py", "x"), (launches, "x"), ("b.txt", "x"))
    for name, text in changes:
        (tmp_path / name).write_text(text)
        code_digest.cache_clear()
        digests.add(code_digest())
    code_digest.cache_clear()
    assert len(digests) == 4  # b.txt does not count
