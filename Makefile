# Every target sets up what it needs and does no work twice.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-grpo test test-slow check bench clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/python examples/pretrain_gpt.py

demo-grpo: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python examples/grpo_saturation.py --to-the-end

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive scale_callbacks integrations examples
	$(BIN)/python .ci/audit.py

bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench/run.py

clean:
	rm -rf $(VENV) build dist runs *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch goes first and by its exact version: left to a range, pip may take another build with gigabytes of CUDA.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
