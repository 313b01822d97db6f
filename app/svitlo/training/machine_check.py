"""Whether this machine computes correctly: one step is computed twice from the same state and compared bit for bit.

Desktop memory corrects no errors, and a CPU that is overclocked a little too far makes one mistake in a day. Such a
mistake shows in no loss, and it breaks the promise of identical weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from svitlo.errors import SvitloError

if TYPE_CHECKING:
    from torch import Tensor, nn

_MOST_COST = 0.002
"""Share of the training time that the check may take."""
MOST_FAULTS = 3
"""So many in a run, and the trainer no longer tries again by itself."""


class MachineFault(SvitloError):  # noqa: N818 — says what is wrong
    """The same step gave two results. Not permanent: the trainer starts again from its last checkpoint."""

    is_permanent = False


class MachineCheck:
    """Says when the next step is to be computed twice."""

    def __init__(self, clock: Callable[[], float], most_cost: float | None = None) -> None:
        self._clock = clock
        self._most_cost = _MOST_COST if most_cost is None else most_cost
        self._checked_at = self._asked_at = clock()

    def is_due(self) -> bool:
        """Asked once a step. A check costs about as much as the time since it was last asked."""
        now = self._clock()
        seconds_of_a_step, self._asked_at = now - self._asked_at, now
        is_due = seconds_of_a_step <= self._most_cost * (now - self._checked_at)
        if is_due:
            self._checked_at = now
        return is_due


def gradients_of(model: nn.Module) -> list[Tensor]:
    """A copy of all gradients, in the order of the parameters."""
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def difference(model: nn.Module, gradients: list[Tensor]) -> int:
    """How many numbers of the gradients differ from those of another computation, in any bit."""
    import torch

    pairs = zip(gradients_of(model), gradients, strict=True)
    return sum(int((now.view(torch.int32) != before.view(torch.int32)).sum()) for now, before in pairs)
