# Needs Python 3.11 or newer and make, nothing else: the virtual environment is made on first use.
PYTHON ?= python3
PORT ?= 8080
# Another build of torch comes from the index of wheels that TORCH_INDEX_URL names. Without it pip
# takes PyPI's, for CUDA and several GB larger than the one for CPUs:
#   make serve TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=
IMAGE ?= gptj-predictor
HELM ?= helm
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist worksteal
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
BUILDER := $(firstword $(foreach name,docker podman buildah,$(if $(shell command -v $(name)),$(name))))

.DEFAULT_GOAL := help
.PHONY: help serve test test-fast test-all test-cluster lint format bench docs walk image package chart chart-lint lock demo clean

help: ## Say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: $(VENV)/.serve ## Serve the bundled demo snapshot on port 8080 (PORT=...)
	$(BIN)/gptj-predictor serve --http_port $(PORT)

# Beside each other, as the tests leave a core idle now and then; the linters' words come last.
test: $(VENV)/.dev ## Run the linters, the type checker and the whole test suite
	@$(MAKE) --no-print-directory lint > $(VENV)/lint.log 2>&1 & lint=$$!; \
	$(PYTEST); tests=$$?; \
	wait $$lint; linted=$$?; cat $(VENV)/lint.log; \
	exit $$((tests ? tests : linted))

test-fast: $(VENV)/.dev ## Run the tests that need no process of their own and no patience
	$(PYTEST) -m "not process and not slow"

test-all: lint ## The whole test suite with the large counts
	$(PYTEST) --large

test-cluster: $(VENV)/.dev ## Test image and chart on the cluster that KUBECONFIG names (CLUSTER_IMAGE=...)
	$(BIN)/pytest tests/cluster --cluster --verbose

lint: $(VENV)/.dev ## Check style, formatting, types, files and workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	SKIP=ruff-check,ruff-format,mypy $(BIN)/pre-commit run --all-files --show-diff-on-failure

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## Run a tiny benchmark of the demo; the report comes to benchmark-results/
	$(BIN)/gptj-predictor benchmark --output benchmark-results \
	  --batch_size 2 --min_tokens 128 --max_tokens 256 --rounds 1

docs: $(VENV)/.dev ## Write the docs' tables that are made from the code, and build the site in site/
	$(BIN)/python tools/docs_tables.py
	$(BIN)/zensical build --clean --strict

walk: $(VENV)/.dev ## Write the way of a request through the code, in docs/architecture.md, anew
	$(BIN)/python tools/newcomers_walk.py

image: ## Build the container image with docker, podman or buildah (IMAGE=...)
	@test -n "$(BUILDER)" || { echo "docker, podman or buildah is needed"; exit 1; }
	$(BUILDER) build --build-arg TORCH_INDEX_URL=$(TORCH_INDEX_URL) --tag $(IMAGE) .

package: $(VENV)/.dev ## Build wheel and sdist in dist/
	$(BIN)/python -m build

chart: $(VENV)/.dev ## Write what is made from the Helm chart: its README's table, the tests' renderings
	$(BIN)/python tools/chart_files.py

# A Helm without a cluster takes the Kubernetes of its own time for granted; the chart needs this one.
chart-lint: KUBERNETES = $(shell sed -n 's/^kubeVersion: ">=\(.*\)-0"/\1/p' charts/gptj-isvc/Chart.yaml)
chart-lint: ## Check the chart with your own Helm, version 3 or 4 (HELM=...)
	@for values in charts/gptj-isvc/values.yaml charts/gptj-isvc/examples/*.yaml; do \
	  set -x; \
	  $(HELM) lint --strict charts/gptj-isvc --values "$$values" \
	    && $(HELM) template gptj charts/gptj-isvc --kube-version $(KUBERNETES) --values "$$values" > /dev/null \
	    || exit 1; \
	done

# In parts of their own: uv takes the versions that its output file has, and would drop the head.
lock: $(VENV)/.dev ## Write constraints.txt; UPGRADE=1 takes newer versions
	cp constraints.txt $(VENV)/lock.txt
	$(BIN)/uv pip compile --quiet --no-config $(if $(UPGRADE),--upgrade) --all-extras \
	  --python-version 3.11 --python-platform linux \
	  --no-header --no-annotate --output-file $(VENV)/lock.txt pyproject.toml
	{ grep '^#' constraints.txt; grep -v -E '^(cuda|nvidia)-' $(VENV)/lock.txt; } > $(VENV)/constraints.txt
	cat $(VENV)/constraints.txt > constraints.txt

demo: $(VENV)/.dev ## Train the bundled demo snapshot anew
	$(BIN)/python tools/make_demo_snapshot.py --output src/gptj_predictor/demo/snapshot

clean: ## Remove the virtual environment, caches and what was built
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis benchmark-results \
	  cluster-reports dist site

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# From torch's index comes torch alone, so that no other package can be taken from there. The second
# pip keeps it, as 2.13.0+cpu is a 2.13.0, and adds what it depends on.
$(VENV)/.serve: $(BIN)/python pyproject.toml constraints.txt
ifneq ($(TORCH_INDEX_URL),)
	$(PIP) --no-deps --index-url "$(TORCH_INDEX_URL)" torch
endif
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(PIP) --editable '.[dev]'
	@touch $@
