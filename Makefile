# Everything runs in .venv in this checkout, with the versions of constraints.txt. Needs python3 (3.10 or newer) and make.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP     = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint type bench site clean

help:
	@echo "make demo | test | lint | type | bench | site | clean"

demo: $(VENV)/.ready
	$(BIN)/lora-mixer demo

test: lint type
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --ignore-glob='tests/test_ui_*'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_ui_*.py

lint: $(VENV)/.ready-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(VENV)/.ready-test
	$(BIN)/mypy

# For a GPU: make bench BENCH="--size sdxl --device cuda"
BENCH ?= --size sd15 --device cpu
bench: $(VENV)/.ready-test
	$(BIN)/python -m benchmarks.mixing $(BENCH)

# The documentation as a site, in build/site.
site: $(VENV)/.ready-test
	$(BIN)/python -m mkdocs build --strict

# A pip that works, not just a folder: an interrupted set-up is made again, a finished one is left alone.
$(VENV)/.ready: pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	    { echo "$(PYTHON) must be Python 3.10 or newer (got $$($(PYTHON) --version 2>&1)): make PYTHON=/path/to/python3"; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	        { echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }; \
	    $(PYTHON) -m venv $(VENV); }
	$(PIP) --editable '.[all]'
	@touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(PIP) --editable '.[test]'
	@touch $@

# Leaves .venv: remove that by hand when it is to be set up anew.
clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find lora_mixer ui tests -name __pycache__ -type d -prune -exec rm -rf {} +
