"""The base of methods that train one student to the end and steer nothing."""

from typing import Any

from torch import Tensor

from tfkd_fast import ops
from tfkd_fast.methods.base.context import Context
from tfkd_fast.methods.base.method import Method
from tfkd_fast.methods.base.plan import Interval, Plan
from tfkd_fast.ops import SoftTargetStats
from tfkd_fast.steering.targets import one_hot_table


class SingleStudent(Method):
    """One candidate, an interval of one epoch: a subclass adds its loss, and whatever else it needs."""

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.context = context
        self._one_hot = one_hot_table(context.num_classes).to(context.device)

    def begin_interval(self, epoch: int) -> Plan:
        """What holds in an epoch, and is not kept in the state, is set by `resume_interval`, for a run that goes on in
        the middle of it, too."""
        return self.resume_interval(Interval(epoch, 1, 1))

    def cross_entropy(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, SoftTargetStats]:
        """Cross-entropy with the one-hot label: means (n,) and training statistics of logits (n,B,C), labels (n,B)."""
        return ops.soft_target_loss_with_stats(logits, labels, self._one_hot)
