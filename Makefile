# Each target does its own set-up: a .venv holding exactly what the lock files say.
# PYTHON=... picks the interpreter (3.11 or newer); ARGS=... is passed on to what is started.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
RUNTIME := $(VENV)/.runtime
TOOLS := $(VENV)/.tools
PEERS := $(VENV)/.peers
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
ARGS ?=
ROUNDS ?= long

.PHONY: help run demo test test-clients check format bench faults cluster lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

run: $(RUNTIME) ## install what is missing and run `convo up` in the foreground
	@exec $(BIN)/convo up $(ARGS)

demo: $(RUNTIME) ## real conversations into an embedded ledger: window, totals, an earlier state
	@exec $(BIN)/python -m services.demo $(ARGS)

test: $(TOOLS) ## every test but those that need a cluster, or Node and Chromium
	@$(BIN)/python -m pytest -m "not cluster and not clients" $(ARGS)
	@echo "Not run: the AI SDK and a browser against the gateway (make test-clients)."

CLIENTS := tests/clients
test-clients: $(TOOLS) ## the AI SDK and a browser against the gateway; needs Node and Chromium
	@command -v node >/dev/null && command -v npm >/dev/null || \
	  { echo "Node.js 20 or newer and npm are needed; on Debian and Ubuntu: apt install nodejs npm" >&2; exit 1; }
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  { echo "Chromium is needed; on Debian: apt install chromium" >&2; exit 1; }
	@cmp -s $(CLIENTS)/package-lock.json $(CLIENTS)/node_modules/.installed || { \
	  npm ci --prefix $(CLIENTS) --silent && cp $(CLIENTS)/package-lock.json $(CLIENTS)/node_modules/.installed; }
	@$(BIN)/python -m pytest -m clients $(CLIENTS) $(ARGS)

check: $(TOOLS) ## format, lint, types and the floors
	@$(BIN)/ruff format --check --quiet . || { echo "Not formatted (run 'make format'):" >&2; $(BIN)/ruff format --check .; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_floors.py

format: $(TOOLS) ## write the format, mend what ruff can mend
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format .

bench: $(PEERS) ## measure appends and reads beside an echo service and beside other stores
	@exec $(BIN)/python -m tests.benchmarks $(ARGS)

faults: $(TOOLS) ## kills, power cuts, full disks, ... under load: an hour, or ROUNDS=short
	@exec $(BIN)/python -m tests.faults $(if $(filter short,$(ROUNDS)),--short) $(ARGS)

cluster: $(RUNTIME) ## three NATS servers on loopback (R3), in the foreground
	@exec $(BIN)/python -m infra.deploy.cluster $(ARGS)

# The newest releases that pyproject.toml allows; needs pip-tools, which is installed for it and not kept in the lock.
COMPILE = $(VENV)/lock/bin/pip-compile --quiet --upgrade --strip-extras --generate-hashes --allow-unsafe \
	--all-build-deps --no-emit-index-url --no-emit-find-links --no-header
lock: $(TOOLS) ## write the lock files anew
	@$(BIN)/python -m venv $(VENV)/lock
	@$(VENV)/lock/bin/python -m pip install --quiet --disable-pip-version-check pip-tools
	@$(COMPILE) --output-file requirements.lock pyproject.toml
	@$(COMPILE) --constraint requirements.lock --extra dev --output-file requirements-dev.lock pyproject.toml
	@$(COMPILE) --output-file requirements-peers.lock tests/benchmarks/peers/requirements.in

clean: ## remove what was installed and cached; the ledger's own directory (./data) stays
	@rm -rf $(VENV) $(CLIENTS)/node_modules build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find domain projections infra services tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@python=""; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3.13 python3.14 python3 python); do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then python="$$candidate"; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "Python 3.11 or newer is needed and was not found$(if $(PYTHON), ($(PYTHON) is older or cannot be started))." >&2; \
	  echo "Install it, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version) ..."; \
	"$$python" -m venv --clear $(VENV) || { rm -rf $(VENV); \
	  echo "$$python could not make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(RUNTIME): requirements.lock pyproject.toml | $(BIN)/python
	@$(PIP_INSTALL) --require-hashes --requirement requirements.lock
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(TOOLS): requirements-dev.lock $(RUNTIME)
	@$(PIP_INSTALL) --require-hashes --requirement requirements-dev.lock
	@touch $@

# What the benchmark compares with, in an environment of its own; without it the benchmark does without.
$(PEERS): requirements-peers.lock $(TOOLS)
	@$(BIN)/python -m venv $(VENV)/peers
	@$(VENV)/peers/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
	  --requirement requirements-peers.lock || echo "Some peers cannot be installed here; they are left out." >&2
	@touch $@
