# `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
INSTALL ?= $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-fast gpu lint format clean

demo: $(VENV)/.installed
	$(BIN)/hist-extract --dataset demo
	$(BIN)/hist-train --dataset demo

test: $(VENV)/.installed-dev lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal  # a thread each: more get in each other's way

test-fast: $(VENV)/.installed-dev  # while you work
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not slow and not browser and not database"

# Nothing is installed: .venv is used where it is, else python3 as it is; `make gpu PYTHON=... OUT=...` names others.
OUT ?= gpu-results
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))

gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --out $(OUT)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -e . -c constraints.txt
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[dev]' -c constraints.txt
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
