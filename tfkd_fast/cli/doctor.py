"""The abilities of this installation, and for each missing part how to get it."""

import importlib.util
import platform
import shutil

import torch

import tfkd_fast
from tfkd_fast import ops
from tfkd_fast.data import missing_loaders
from tfkd_fast.device import cpu_capabilities, resolve_compute
from tfkd_fast.ops import backends, native

EXTRAS = {
    "tensorboard": ("curves in TensorBoard", "logging"),
    "wandb": ("curves in W&B", "wandb"),
    "mlflow": ("curves in MLflow", "mlflow"),
    "huggingface_hub": ("runs and data sets of the Hugging Face Hub", "hub"),
    "ray": ("study --executor ray", "ray"),
    "submitit": ("study --executor slurm", "slurm"),
    "optuna": ("searches", "search"),
    "onnxscript": ("ONNX export", "export"),
    "onnxruntime": ("ONNX export: its check, and int8", "export"),
    "pytest_benchmark": ("benchmarks", "benchmarks"),
}
VECTOR_LEVELS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "sve")

Table = list[tuple[str, ...]]


def examine() -> dict[str, Table]:
    """Title -> rows, the first of them the header."""
    return {
        "Machine": _machine(),
        "Compiled operators": _build(),
        **_operators(),
        "Loaders": _loaders(),
        "Optional packages": _extras(),
    }


def _machine() -> Table:
    compute = resolve_compute("auto", "auto")
    vectors = [name for name in VECTOR_LEVELS if cpu_capabilities().get(name)]
    compilers = [name for name in ("c++", "g++", "clang++", "nvcc", "ninja", "cmake") if shutil.which(name)]
    return [
        ("what", "found"),
        ("tfkd-fast", tfkd_fast.__version__),
        ("Python", platform.python_version()),
        ("torch", str(torch.__version__)),
        ("processor", f"{cpu_capabilities().get('cpu_name', platform.machine())}, threads: {torch.get_num_threads()}"),
        ("vector instructions", ", ".join(vectors) or "unknown"),
        ("CUDA", _cuda()),
        ("build tools", ", ".join(compilers) or "none: install a C++20 compiler for the compiled operators"),
        ("runs by default on", f"{compute.device.type} in {compute.precision}"),
    ]


def _cuda() -> str:
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        return f"{torch.version.cuda}: {', '.join(sorted(names))}"
    if torch.version.cuda is None:
        return "none: this torch was built without CUDA"
    return f"no device: torch was built for CUDA {torch.version.cuda}, but the driver shows none"


def _build() -> Table:
    rows: Table = [("what", "how it was built")]
    parts = ("the C++ library", "the CUDA library", "the build information")
    reasons = {part: native.not_built(part) for part in parts} | {"the C++ library": backends.why_slow()}
    reasons["the autograd extension"] = backends.autograd_extension.missing
    build = native.build_information()
    if build is None:
        reasons["the build information"] = reasons["the build information"] or (
            f"it is for another Python than {platform.python_version()}: install the package from its source"
        )
    else:
        rows += [
            ("C++ compiler", f"{build.compiler} {build.flags}"),
            ("vector instructions used", build.vector_level()),
            ("torch", f"{build.torch}; by its stable ABI it runs with {build.stable_abi} and newer"),
        ]
        if build.cuda_compiler:
            rows.append(("CUDA compiler", f"nvcc {build.cuda_compiler} for {build.cuda_architectures}"))
    if kernels := native.kernels():
        most = max(int(kernel["registers"]) for kernel in kernels)
        spilled = sum(int(kernel["spill_store_bytes"]) > 0 for kernel in kernels)
        architectures = ", ".join(sorted({f"sm_{kernel['architecture']}" for kernel in kernels}))
        rows.append(
            ("CUDA kernels", f"{len(kernels)} for {architectures}; at most {most} registers a thread, {spilled} spill")
        )
    rows += [(part.removeprefix("the "), reason) for part, reason in reasons.items() if reason is not None]
    return rows


def _operators() -> dict[str, Table]:
    heading = ("backend", "state", "why")
    return {
        f"Operator {operator.name}": [heading, *((b.name, b.state, b.reason) for b in operator.backends)]
        for operator in ops.status()
    }


def _loaders() -> Table:
    rows: Table = [("loader", "state", "why")]
    for name, reason in missing_loaders().items():
        rows.append((name, "missing" if reason else "present", reason or ""))
    return rows


def _extras() -> Table:
    rows: Table = [("for", "package", "state")]
    for module, (purpose, extra) in EXTRAS.items():
        found = _is_installed(module)
        rows.append((purpose, module, "present" if found else f"missing: pip install 'tfkd-fast[{extra}]'"))
    return rows


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
