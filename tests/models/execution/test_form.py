"""The form in which a teacher runs: in parts, with cuDNN's choice; its logits stay."""

import pytest
import torch

from fastdeit.models.execution.form import AS_IT_IS, Execution, choose_algorithms, run_in_parts


def test_a_batch_runs_in_parts_of_the_given_size_in_order() -> None:
    sizes = []

    def run(images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return images.flatten(1)

    images = torch.arange(5 * 12.0).view(5, 3, 2, 2)
    for batch, expected in ((0, [5]), (2, [2, 2, 1]), (5, [5]), (7, [5])):
        sizes.clear()
        assert torch.equal(run_in_parts(run, images, Execution(batch)), images.flatten(1))
        assert sizes == expected


@pytest.mark.parametrize("before", [False, True])
def test_algorithms_are_timed_within_alone(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", before)
    for asked in (False, True):
        with pytest.raises(KeyError), choose_algorithms(benchmark=asked):
            assert torch.backends.cudnn.benchmark == (asked or before)
            raise KeyError
        assert torch.backends.cudnn.benchmark == before


def test_the_log_names_what_is_not_usual() -> None:
    assert AS_IT_IS.describe() == []
    assert Execution(2, compiled=True, benchmark=True).describe() == [
        "compiled",
        "cuDNN times its algorithms",
    ]
