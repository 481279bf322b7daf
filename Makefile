# One command each: `make demo` sets everything up and trains; `make test` sets everything up and tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# faiss for the GPU where an NVIDIA driver answers, for the CPU elsewhere.
EXTRA := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
CODE := launch.py configs datasets engine kernels tests
# Two tests a core, since half of the time they wait (for time limits, disks, each other); at most four. Each has torch, DeepSpeed and
# the processes of its test, about 2.5 GB, and one thread (tests/conftest.py).
# A worker that is done takes half of what another has left, so that the tests of a file stay together and all workers end together.
TOGETHER := -n $(shell expr 2 \* $$(nproc)) --maxprocesses 4 --dist worksteal
# Without bytecode every process of a test compiles the sources again.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -q

# What pyproject.toml and its $$extras name. From a copy, because pip leaves build/ and *.egg-info where it builds.
pip_install = copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && cp pyproject.toml "$$copy" && \
	$(BIN)/pip install --quiet --constraint constraints.txt "$$copy[$$extras]"

.PHONY: install demo test quick check bench endurance gpu kernels coverage clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	extras=$(EXTRA),dev,tensorboard; $(pip_install)
	touch $@

demo: install
	$(BIN)/python launch.py --config configs/pic_sampled.json

test: install
	$(PYTEST) $(TOGETHER)

# The inner loop: all rooms, without the tests of tests/slow_tests.txt.
quick: install
	$(PYTEST) $(TOGETHER) --quick

coverage: install
	$(PYTEST) $(TOGETHER) --cov=engine --cov=datasets --cov-report=term --cov-fail-under=90

check: install
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy launch.py configs datasets engine kernels
	$(PYTEST) tests/test_rooms.py
	$(BIN)/python -m kernels.compiled --check-cuda

# Two other stores come along for comparison; nothing else needs them.
bench: install
	extras=bench; $(pip_install)
	$(BIN)/python -m kernels.sampled_softmax.bench
	$(BIN)/python -m kernels.row_update.bench
	$(BIN)/python -m kernels.catch_up.bench
	$(BIN)/python -m tests.bench_step
	$(BIN)/python -m tests.bench_ranks
	$(BIN)/python -m tests.bench_store
	$(BIN)/python -m tests.bench_disk
	$(BIN)/python -m tests.bench_scale
	$(BIN)/python -m tests.bench_zip

# Through launch.py, at any N: about an hour on two cores, and 12 GB of disk.
endurance: install
	$(BIN)/python -m tests.bench_any_n
	$(BIN)/python -m tests.bench_visited
	$(BIN)/python -m tests.bench_soak
	$(BIN)/python -m tests.bench_pass

# On a machine with a GPU, where torch, pytest, nvcc and ninja are enough: PYTHON=python3 make gpu
gpu:
	$(PYTHON) -m kernels.gpu

# For images without a compiler: kernels/built holds libraries for any CPU with AVX2, and for GPUs where nvcc is.
kernels: install
	$(BIN)/python -m kernels.compiled

clean:
	rm -rf $(VENV) kernels/built
