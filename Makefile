# make demo   sets itself up, compresses the embedded model, exports, benchmarks, evaluates, leaves demo-out/
# make test   sets itself up, checks style and types, passes the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Threads that spin while they wait make torch ten times slower on a machine that is shared.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test lint setup docs-test clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lpc needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

setup: $(READY)

demo: $(READY)
	$(BIN)/lpc demo --out demo-out --force

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > /dev/null || $(BIN)/lint-imports --no-cache

test: lint
	$(BIN)/pytest -n auto --dist loadfile

clean:
	rm -rf $(VENV) demo-out lpc-out build *.egg-info
