"""Statistics of steps, kept on the device until they are read."""

import torch
import torch.distributed as dist


class Meter:
    """Statistics of each step as means over ranks, kept on the device until they are read."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._values: list[torch.Tensor] = []

    def add(self, step: int, values: torch.Tensor) -> None:
        """values: fp32 (K,), detached; does not wait for the device. All ranks add the same steps."""
        self._steps.append(step)
        self._values.append(values.clone())

    def read(self) -> list[tuple[int, list[float]]]:
        """The steps since the last call, each with its K means over all ranks.

        A collective that waits for the device; neither if there are none.
        """
        if not self._values:
            return []
        means = torch.stack(self._values) / dist.get_world_size()
        steps, self._steps, self._values = self._steps, [], []
        dist.all_reduce(means)
        return list(zip(steps, means.tolist(), strict=True))
