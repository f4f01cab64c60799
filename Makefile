# Every target makes its own environment in .venv from a clean clone; Python >= 3.11 and make are all it takes.
#
# A CPU build of torch is a tenth of the size of the CUDA build. To install it:
#     make test PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_ARGS ?=
ARGS ?=
JOBS ?= 3
BENCHMARKS ?= $(wildcard experiments/benchmarks/*.py)

BIN := .venv/bin
READY := .venv/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt

.PHONY: help demo test browser fuzz chaos lint bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   a small search on this machine, from start to front"
	@echo "make test   the tests; ARGS='-k budget' passes on to pytest, JOBS=8 runs as many at once"
	@echo "make browser  the tests that look at pages in Chromium, the machine's own or one that Playwright fetches"
	@echo "make fuzz   a hundred thousand damaged files, each read or refused, and five thousand random networks, each cut; hours"
	@echo "make chaos  sweeps whose processes die, disks are full and clocks jump; ARGS='--chaos-table FILE' keeps the table"
	@echo "make lint   style, types and the direction of imports"
	@echo "make bench  the measurements in experiments/benchmarks; BENCHMARKS=... runs some of them"
	@echo "make clean  removes what the others made, sweeps excepted"

demo: $(READY)
	bash experiments/demo.sh

# A thread each: the tests' tensors are small, and the jobs share the cores. One file stays in one job with its Ray, whose
# workers are as urgent as the jobs: else they wait for them. Files are taken in order, those of few and long tests first.
DEALT := --dist loadfile --no-loadscope-reorder
test: $(READY)
	@OMP_NUM_THREADS=1 RAY_worker_niceness=0 $(BIN)/python -m pytest -n $(JOBS) $(DEALT) --benchmark-disable $(ARGS)

browser: $(READY)
	@$(PIP) --editable '.[browser]'
	@command -v chromium >/dev/null || $(BIN)/python -m playwright install chromium
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m browser --benchmark-disable $(ARGS)

fuzz: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m nightly tests/fuzz tests/pruning/test_random_networks.py $(ARGS)

chaos: $(READY)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'chaos or not chaos' tests/chaos --benchmark-disable $(ARGS)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m chaos tests/search --benchmark-disable

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

clean:
	rm -rf .venv build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no '$(PYTHON)' here; try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "expected Python >= 3.11, got $$($(PYTHON) --version); try: make PYTHON=python3.11" >&2; exit 1; }
	@echo "installing into .venv, minutes the first time"
	@$(PYTHON) -m venv .venv
	@$(PIP) torch==2.13.0
	@$(PIP) --editable '.[dev]'
	@touch $@
