"""Liger-Kernel, where it is installed: `pip install liger-kernel`. Its kernels need a GPU."""

import importlib.util
from typing import Any, NamedTuple

from torch import Tensor


class Liger(NamedTuple):
    """Liger's losses, called as torch's."""

    kl_div: Any
    cross_entropy: Any


def _find_liger() -> Liger | None:
    if importlib.util.find_spec("liger_kernel") is None:
        return None
    from liger_kernel.transformers.cross_entropy import LigerCrossEntropyLoss
    from liger_kernel.transformers.kl_div import LigerKLDIVLoss

    divergence, entropy = LigerKLDIVLoss(reduction="batchmean"), LigerCrossEntropyLoss()

    def kl_div(log_probabilities: Tensor, targets: Tensor, reduction: str) -> Tensor:
        return divergence(log_probabilities, targets)

    return Liger(kl_div, entropy)


liger = _find_liger()
