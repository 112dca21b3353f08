// TFKD_CHECK_SHIM(call): a call of torch's stable shim that fails throws, with torch's own message where the headers
// fetch it (from torch 2.12), with the call's name where they do not.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/headeronly/util/shim_utils.h>

#ifdef STABLE_TORCH_ERROR_CODE_CHECK
#define TFKD_CHECK_SHIM STABLE_TORCH_ERROR_CODE_CHECK
#else
#define TFKD_CHECK_SHIM TORCH_ERROR_CODE_CHECK
#endif
