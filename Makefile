# `make train` and `make test` set everything up on a fresh machine, then do their work; later calls start in seconds.

VENV   := .venv
PYTHON := python3
TORCH  := torch==2.14.1 torchvision==0.29.2
BIN    := $(VENV)/bin
OUT    := build/benchmarks
# A process a core, so a thread a process.
TESTS  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -n auto --dist worksteal

.PHONY: train test test-all test-fast durations lint benchmarks docs wheel sanitize gpu-check clean

train: $(VENV)/installed
	$(BIN)/tfkd-fast train digits --out runs/digits --overwrite

test: $(VENV)/installed lint
	$(TESTS) -m "not apart"

# Also what takes long and few changes concern: kernels of a GPU on a machine without one, builds, clusters.
test-all: $(VENV)/installed lint
	$(TESTS)

test-fast: $(VENV)/installed
	$(TESTS) -m "not slow"

# Everything once more, to write tests/durations.txt, by which test-fast chooses.
durations: $(VENV)/installed
	$(TESTS) --measure

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

benchmarks: $(VENV)/installed
	$(BIN)/python -m benchmarks.run --out $(OUT)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

# What a package index takes: a source archive, and a wheel whose tag names the oldest C library that serves it, as auditwheel
# finds it. The libraries of torch stay those of the environment.
wheel: $(VENV)/wheel
	rm -rf build/wheel dist
	$(BIN)/pip wheel . --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	$(BIN)/python -c 'import build_backend; build_backend.build_sdist("dist")' > build/wheel/sdist.log
	ls -l dist

# Tests of the C++ operators, with a library in which sanitizers look for foreign memory and undefined behaviour.
sanitize: $(VENV)/installed
	.ci/sanitize

# Needs no network: PYTHON is the Python of a machine that has a GPU and torch, and tfkd_fast/native holds the libraries.
gpu-check:
	@PYTHON="$(PYTHON)" OUT="$(OUT)" PART="$(PART)" DEVICE="$(DEVICE)" SHORTEN="$(SHORTEN)" DATA="$(DATA)" ARCHIVE="$(ARCHIVE)" .ci/gpu-check

# torch first: the extension is built against the torch that is installed, without build isolation.
$(VENV)/torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH) "setuptools>=77" "cmake>=3.24" ninja "pybind11>=2.13"
	touch $@

$(VENV)/installed: $(VENV)/torch pyproject.toml setup.py CMakeLists.txt $(shell find csrc -type f)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[test]"
	touch $@

$(VENV)/docs: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[docs]"
	touch $@

$(VENV)/wheel: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e ".[wheel]"
	touch $@

clean:
	rm -rf $(VENV) build dist runs tfkd_fast/native *.egg-info
