"""Other people's libraries, where they are installed."""

import importlib.util
from typing import Any, NamedTuple

import torch
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
"""Liger-Kernel: `pip install liger-kernel`. Its kernels need a GPU."""


class Dali:
    """A CPU pipeline of NVIDIA DALI that pads, crops, mirrors and normalises batches of one size.

    It takes torch's number of threads and does not work ahead: what it does between calls would be taken from others.
    """

    def __init__(self, images: Tensor, batch: int, *, pad: int, mean: Tensor, std: Tensor, dtype: torch.dtype) -> None:
        from nvidia.dali import fn, pipeline_def, types

        _, height, width, _ = images.shape
        self._images, self._indices = images.numpy(), torch.zeros(batch, dtype=torch.int64)

        @pipeline_def(
            batch_size=batch,
            num_threads=torch.get_num_threads(),
            device_id=None,
            exec_async=False,
            exec_pipelined=False,
        )
        def pipeline() -> Any:
            pixels = fn.external_source(source=self._batch, batch=True, layout="HWC")
            start = fn.random.uniform(values=[float(place) for place in range(-pad, pad + 1)], shape=2)
            window = fn.slice(
                pixels,
                start=fn.cast(start, dtype=types.INT32),
                shape=[height, width],
                axes=[0, 1],
                out_of_bounds_policy="pad",
            )
            return fn.crop_mirror_normalize(
                window,
                mirror=fn.random.coin_flip(),
                mean=mean.tolist(),
                std=std.tolist(),
                dtype=types.FLOAT if dtype == torch.float32 else types.FLOAT16,
                output_layout="HWC",
            )

        self._pipeline = pipeline()
        self._pipeline.build()

    def _batch(self) -> Any:
        return self._images[self._indices.numpy()]

    def __call__(self, indices: Tensor) -> Any:
        self._indices = indices
        return self._pipeline.run()


def _find_dali() -> type[Dali] | None:
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        return None
    return Dali


dali = _find_dali()
"""NVIDIA DALI: `pip install 'tfkd-fast[dali]'`. It has no bfloat16; float16 moves as many bytes."""
