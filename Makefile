# `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
INSTALL ?= $(BIN)/pip install --quiet --disable-pip-version-check

.PHONY: demo test test-all test-fast test-scverse docs gpu lint format clean

demo: $(VENV)/.installed
	$(BIN)/hist-extract --dataset demo
	$(BIN)/hist-train --dataset demo

# A thread each: more get in each other's way.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal --ignore tests/scverse

test: $(VENV)/.installed-dev lint
	$(PYTEST) -m "not long"

test-all: $(VENV)/.installed-dev lint test-scverse  # before a release, and after changes to what it alone tests
	$(PYTEST)

# squidpy and SpatialData want other versions of some packages, and slow every import of anndata: they have a folder of their own.
test-scverse: $(VENV)/scverse/.installed
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/scverse $(BIN)/python -m pytest -q tests/scverse

test-fast: $(VENV)/.installed-dev  # while you work
	$(PYTEST) -m "not slow and not long and not browser and not database"

# Nothing is installed: .venv is used where it is, else python3 as it is; `make gpu PYTHON=... OUT=...` names others.
OUT ?= gpu-results
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))

gpu:
	$(GPU_PYTHON) benchmarks/gpu.py --out $(OUT)

docs: $(VENV)/.installed-dev  # the site, in site/
	$(BIN)/mkdocs build --quiet

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

$(VENV)/scverse/.installed: $(VENV)/.installed-dev constraints-scverse.txt
	$(INSTALL) --target $(VENV)/scverse 'squidpy>=1.8' 'spatialdata>=0.7' 'spatialdata-io>=0.6' -c constraints-scverse.txt
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info
