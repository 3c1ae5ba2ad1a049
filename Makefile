# Every target does its own set-up: a fresh clone needs nothing but Python 3.10+, make, and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help install demo test test-fast test-slow test-gpu check format docs bench bench-scale clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## Set up .venv with the project and its development tools

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(READY) ## Embed real photographs and look at the result
	$(BIN)/python docs/demo.py

test: $(READY) ## Run every test but the slow proofs (8 minutes on 2 cores)
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu"

test-fast: $(READY) ## Run the tests that need no training, kills or installs (under a minute on 2 cores)
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow and not gpu and not long"

test-slow: $(READY) ## Run the long proofs: kills, fuzzing, full-size checkpoints
	CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "slow and not gpu"

test-gpu: $(READY) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

bench: $(READY) ## Measure against other tools on this machine, in one run
	$(BIN)/python benchmarks/peers.py photos build/bench
	$(BIN)/python benchmarks/peers.py compare build/bench

docs: $(READY) ## Build the documentation site into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

ROWS ?= 1000000
bench-scale: $(READY) ## Measure dedup and search on ROWS made vectors (a million; 3 GB of disk in build/scale)
	$(BIN)/python benchmarks/scale.py $(ROWS) --json build/scale/$(ROWS).json

check: $(READY) ## Check format, style, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## Remove what the targets made
	rm -rf $(VENV) build dist demo .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
