"""What methods have in common that train one student to the end and steer nothing."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base.context import Context
from tfkd_fast.methods.base.method import Method
from tfkd_fast.methods.base.plan import Interval, Plan
from tfkd_fast.methods.base.results import EpochResult, IntervalResult, Outcome
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.steering.targets import one_hot_table


class OneStudent(Method):
    """One candidate, an interval an epoch, no state of its own: a subclass adds its loss, and what state that needs."""

    max_candidates = 1
    needs_holdout = False
    needs_epoch_average = False
    needs_interval_average = False

    def __init__(self, context: Context) -> None:
        self.context = context
        self._one_hot = one_hot_table(context.num_classes).to(context.device)

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, SoftTargetStats]:
        """With the one-hot label: mean losses (n,) and training statistics of logits (n,B,C), labels (n,B)."""
        return ops.soft_target_loss_with_stats(logits, labels, self._one_hot)

    def begin_interval(self, epoch: int) -> Plan:
        return Plan(Interval(epoch, 1, 1))

    def data_stream(self, candidate: int) -> int:
        return 0

    def end_epoch(self, results: Sequence[EpochResult]) -> None:
        """Nothing to do."""

    def end_interval(self, results: Sequence[IntervalResult]) -> Outcome:
        return Outcome((0,))

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """There is none."""
