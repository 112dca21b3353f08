// How the compiled operators were built, and what they use on this processor.
//
// A Python module and not a file of JSON, because it also tells what is only known where it runs: which copy of a
// function the loader has taken on this processor. It asks the same test of the compiler that chooses the copies.

#include "../common/vector_widths.h"

#include <pybind11/pybind11.h>

#include <string>

namespace py = pybind11;

namespace {

// Which copy of a function runs, of those that TFKD_FOR_EVERY_VECTOR_WIDTH makes.
std::string vector_level() {
#if TFKD_HAS_VECTOR_WIDTHS
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "AVX-512";
  if (__builtin_cpu_supports("x86-64-v3")) return "AVX2";
#endif
  return "default";
}

std::string stable_abi() {
  constexpr unsigned long long kVersion = STABLE_ABI;
  return std::to_string(kVersion >> 56) + "." + std::to_string(kVersion >> 48 & 0xff);
}

}  // namespace

PYBIND11_MODULE(build_info, module) {
  module.doc() = "How the compiled operators were built, and what they use on this processor.";
  module.attr("compiler") = COMPILER;
  module.attr("flags") = CXX_FLAGS;
  module.attr("torch") = TORCH_BUILD;
  module.attr("stable_abi") = stable_abi();
  module.attr("cuda_compiler") = CUDA_COMPILER;  // empty where CUDA was not compiled, as the next
  module.attr("cuda_architectures") = CUDA_ARCHITECTURES;
  module.def("vector_level", &vector_level, "The vector instructions of the C++ operators: default, AVX2 or AVX-512.");
}
