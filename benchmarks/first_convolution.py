"""The first convolution of VGG-8 and the gradient of its weight, on images whose colours are followed by zeros or not.

    python -m benchmarks.first_convolution --out build/gpu-check

Libraries of convolutions want numbers of channels that fill a vector; images have 3. `augment` could write 4 or 8
channels as fast. The weight keeps its shape: each call pads it with zeros, which autograd leaves out of its gradient.
"""

import argparse
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.harness import Call, Case, measured
from tfkd_fast.strict_json import to_json

CHANNELS, FILTERS, SIDE = (3, 4, 8), 64, 32


def case_of(batch_size: int) -> Case:
    """The convolution in bf16, channels last, on every number of channels."""

    def variants(case: Case, device: torch.device) -> dict[str, Call]:
        weight = torch.randn(FILTERS, CHANNELS[0], 3, 3, device=device, dtype=case.dtype, requires_grad=True)
        maps = [torch.randn(batch_size, FILTERS, SIDE, SIDE, device=device, dtype=case.dtype) for _ in range(case.sets)]
        upstream = [one.contiguous(memory_format=torch.channels_last) for one in maps]
        colours = torch.randn(batch_size, CHANNELS[0], SIDE, SIDE, device=device, dtype=case.dtype)

        def with_channels(channels: int) -> Call:
            beside = channels - CHANNELS[0]
            images = F.pad(colours, (0, 0, 0, 0, 0, beside)).contiguous(memory_format=torch.channels_last)

            def call(i: int) -> torch.Tensor:
                padded = F.pad(weight, (0, 0, 0, 0, 0, beside)) if beside else weight
                return torch.autograd.grad(F.conv2d(images, padded, padding=1), weight, upstream[i])[0]

            return call

        return {f"{channels} channels": with_channels(channels) for channels in CHANNELS}

    maps = 2 * batch_size * SIDE * SIDE * (CHANNELS[0] + FILTERS)
    return Case("conv2d", f"B={batch_size} 3->{FILTERS} {SIDE}x{SIDE}", torch.bfloat16, 2 * maps, variants)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--batch-size", type=int, action="append", help="by default 512 and 64")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each batch size")
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON file")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for batch_size in options.batch_size or (512, 64):
        timings = measured(case_of(batch_size), torch.device(options.device), options.seconds)
        for variant, timing in timings.items():
            rows.append({"batch_size": batch_size, "variant": variant, "microseconds": 1e6 * timing.median})
            print(f"batch {batch_size}, {variant}: {rows[-1]['microseconds']:.0f} us", flush=True)
        (options.out / "first-convolution.json").write_text(to_json(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
