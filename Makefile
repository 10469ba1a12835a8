# Needs Python 3.11 or newer and make, nothing else: the virtual environment is made on first use.
PYTHON ?= python3
PORT ?= 8080
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help serve test test-all lint format chart demo clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## Serve the bundled demo snapshot on port 8080 (PORT=...)
	$(BIN)/gptj-predictor serve --http_port $(PORT)

test: lint ## Run the linters, the type checker and the whole test suite
	$(PYTEST)

test-all: lint ## The same with the large counts
	$(PYTEST) --large

lint: $(VENV)/.dev ## Check style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chart: $(VENV)/.dev ## Write what is made from the Helm chart: its README's table, the tests' renderings
	$(BIN)/python tools/chart_files.py

demo: $(VENV)/.dev ## Train the bundled demo snapshot anew
	$(BIN)/python tools/make_demo_snapshot.py --output src/gptj_predictor/demo/snapshot

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) --editable '.[dev]'
	@touch $@
