# make demo   sets itself up, compresses the embedded model, exports, benchmarks, evaluates, leaves demo-out/
# make test   sets itself up, checks style and types, passes the tests
# make test-matrix   the tests that repeat a proof on further families and roads, which make test leaves out
# make test-servers  installs real servers into .venv-servers (npm too), sends them prompts, compares with torch
# make docs   the site, in site/
# make test-oldest, make test-latest   the tests with every package at its lower bound, and with everything unpinned
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
INSTALL := install --quiet --disable-pip-version-check
PYTEST := pytest -n auto --dist loadfile
# In all three, since an open range, or an older one, pulls the CUDA build.
TORCH := $(shell grep '^torch==' constraints.txt)

# Threads that spin while they wait make torch ten times slower on a machine that is shared.
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo docs test test-matrix test-servers test-oldest test-latest lint setup docs-test clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "lpc needs Python 3.11 or newer; run make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip $(INSTALL) -c constraints.txt torch
	$(BIN)/pip $(INSTALL) -c constraints.txt -e '.[dev]'
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
	$(BIN)/$(PYTEST)

test-matrix: $(READY)
	$(BIN)/$(PYTEST) -m matrix

SERVERS := $(VENV)-servers
$(SERVERS)/.ready: tests/servers/requirements.txt tests/servers/package.json
	$(PYTHON) -m venv $(SERVERS)
	$(SERVERS)/bin/pip $(INSTALL) $(TORCH)
	$(SERVERS)/bin/pip $(INSTALL) $(TORCH) -r tests/servers/requirements.txt
	$(SERVERS)/bin/pip $(INSTALL) --target $(SERVERS)/triton --no-deps nvidia-pytriton==0.7.0 numpy==1.26.4
	mkdir -p $(SERVERS)/node && cp tests/servers/package.json $(SERVERS)/node/
	npm --prefix $(SERVERS)/node install --ignore-scripts --no-audit --no-fund --silent
	touch $@

test-servers: $(READY) $(SERVERS)/.ready
	$(BIN)/python tests/servers/run.py --servers $(SERVERS)
	$(BIN)/python tests/servers/triton.py --servers $(SERVERS)

docs: $(READY)
	$(BIN)/pip $(INSTALL) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

test-oldest:
	$(PYTHON) -m venv --clear $(VENV)-oldest
	$(PYTHON) scripts/oldest_pins.py --except torch > $(VENV)-oldest/pins.txt
	$(VENV)-oldest/bin/pip $(INSTALL) $(TORCH)
	$(VENV)-oldest/bin/pip $(INSTALL) $(TORCH) -c $(VENV)-oldest/pins.txt -e '.[dev]'
	$(VENV)-oldest/bin/$(PYTEST)

test-latest:
	$(PYTHON) -m venv --clear $(VENV)-latest
	$(VENV)-latest/bin/pip $(INSTALL) $(TORCH)
	$(VENV)-latest/bin/pip $(INSTALL) $(TORCH) -e '.[dev]'
	$(VENV)-latest/bin/$(PYTEST)

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-latest $(SERVERS) servers-work demo-out lpc-out build site *.egg-info
