"""`FlatUpdate` with its parts between collectives as CUDA graphs.

A micro-batch is one graph: student, loss, backward, the sum of gradients. The sums of squares and
the update of the weights are two more; on several ranks the collectives lie between them. Mixing
and the teacher come before, as they read the loader's memory, the EMA after.
"""

from typing import Any

import torch

from fastdeit.training.forward import MicroLoss
from fastdeit.training.graphs.recorded import Recorded, Recorder
from fastdeit.training.zero.flat_update import FlatUpdate


class GraphUpdate(FlatUpdate):
    """Our own backward and step, recorded by `prepare`; as `FlatUpdate` until then, and if the
    recording fails.

    recorder: makes the graphs; the others: as of `FlatUpdate`.
    """

    def __init__(self, recorder: Recorder, *flat: Any) -> None:
        super().__init__(*flat)
        self._recorder = recorder
        self._prepared: MicroLoss | None = None

    def prepare(self, loss: MicroLoss, micro_steps: int) -> str:
        """Record the parts of a step; weights and moments stay as they are. Returns on one line why
        that was not possible, "" if it was.

        loss: of a micro-batch with the shapes of all that follow; micro_steps: of a step.
        """
        try:
            self._record(loss, min(micro_steps, 2))
        except Exception as error:
            # whatever CUDA, Triton or a library raises: the run trains without graphs
            return f"the step cannot be recorded: {' '.join(str(error).split())[:300]}"
        self._prepared = loss
        return ""

    def _record(self, loss: MicroLoss, forms: int) -> None:
        """Record the first micro-batch, which sets the gradients, and the others, which add; then
        the rest."""
        self._backwards = [self._record_backward(loss, number) for number in range(forms)]
        self._sum = Recorded(super()._sum_squares, self._recorder)
        self._sum.record()
        self._step = Recorded(super()._update, self._recorder)
        # squares that are not finite make it a skipped step, which changes no weight and no moment
        self._squares.fill_(torch.inf)
        self._step.record()

    def _record_backward(self, loss: MicroLoss, number: int) -> Recorded:
        def backward(*tensors: torch.Tensor | None) -> torch.Tensor:
            return FlatUpdate.backward(self, loss.with_tensors(tensors), number)

        recorded = Recorded(backward, self._recorder, self._gradients.wholes)
        recorded.record(*loss.tensors)
        return recorded

    def backward(self, compute: Any, number: int) -> torch.Tensor:
        if self._prepared is None or not self._prepared.is_like(compute):
            return super().backward(compute, number)
        return self._backwards[min(number, 1)](*compute.tensors).clone()

    def _sum_squares(self) -> None:
        super()._sum_squares() if self._prepared is None else self._sum()

    def _update(self) -> None:
        super()._update() if self._prepared is None else self._step()
