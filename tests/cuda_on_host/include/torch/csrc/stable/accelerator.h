// torch's header, but the tensors are on the processor: there is no device to change to.
#pragma once

#define DeviceGuard DeviceGuardOfTorch
#include_next <torch/csrc/stable/accelerator.h>
#undef DeviceGuard

namespace torch::stable::accelerator {

struct DeviceGuard {
  explicit DeviceGuard(DeviceIndex) {}
};

}  // namespace torch::stable::accelerator
