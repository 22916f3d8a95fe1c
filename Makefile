# `make demo` and `make test` do their own set-up; everything they install goes into .venv.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
CACHE ?= $(or $(ROUNDHOUSE_CACHE),$(HOME)/.cache/roundhouse)
# The CUDA lock where a GPU answers, the CPU lock elsewhere. Override: `make demo LOCK=cpu`.
LOCK ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
CONFIG ?= examples/roundhouse$(if $(filter cuda,$(LOCK)),-cuda).yaml
IMAGE ?= roundhouse
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SBOM_TOOL := .venv/sbom/bin
SBOM = build/roundhouse-$(VERSION)-$(LOCK).cdx.json
# Outside of CUDA, torch has an index of its own; nothing but torch is asked for there.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Every file is one whose hash the lock has. From source nothing is built: what that runs, no lock names.
LOCKED := install --require-hashes --no-deps --only-binary :all:
# One package of the lock, with its hashes.
pinned = sed -n '/^$(1)==/,/[^\\]$$/p' requirements/$(LOCK).lock > .venv/$(1).txt
STAMP := .venv/.$(shell cat requirements/$(LOCK).lock pyproject.toml 2>/dev/null | cksum | cut -d' ' -f1)-$(LOCK)
DEV_STAMP := .venv/.$(shell cksum < requirements/dev.lock | cut -d' ' -f1)-dev
SDKS_STAMP := .venv/.$(shell cksum < requirements/sdks.lock | cut -d' ' -f1)-sdks
PYTEST := $(BIN)/python -m pytest
# Tests without Ray and engines run side by side.
WORKERS ?= 2

# pip says a line per package; this makes one line that counts.
COUNT := awk -v total="$$(grep -c '==' requirements/$(LOCK).lock)" '/^(Collecting|Processing|Requirement)/ { if (++n % 20 == 0) { printf "  %d of %d packages\n", n, total; fflush() } } /^Installing/ { print "  unpacking"; fflush() } /^ERROR/'

.DEFAULT_GOAL := help
.PHONY: help setup model demo test test-fast test-hostile image sbom bench-engine bench-router bench-experts bench-conversations bench-unseen bench-harness bench-store bench-cluster bench-page bench-chaos bench-tracing lint format docs lock clean

help: ## Show what there is.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP):
	@command -v $(PYTHON) >/dev/null || { echo "Python is missing: install Python 3.11 or newer, or set PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$$($(PYTHON) --version) is too old: Roundhouse needs 3.11 or newer (set PYTHON=...)"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "Python's venv module is missing: install it (Debian: python3-venv)"; exit 1; }
	@echo "Installing the packages of requirements/$(LOCK).lock into .venv (minutes, once)"
	@$(call pinned,pip)
	@$(PIP) $(LOCKED) -q -r .venv/pip.txt
	@$(call pinned,torch)
	@$(PIP) $(LOCKED) -q --retries 1 $(if $(filter cpu,$(LOCK)),-i $(TORCH_INDEX)) -r .venv/torch.txt
	@$(PIP) $(LOCKED) --progress-bar off -r requirements/$(LOCK).lock | $(COUNT)
	@$(BIN)/python -c 'import torch, ray, vllm' 2>/dev/null || { echo "The packages did not install whole; '$(BIN)/python -c \"import torch, ray, vllm\"' says why"; exit 1; }
	@$(PIP) install -q --no-deps --no-build-isolation -e . >.venv/install.log 2>&1 || { cat .venv/install.log; exit 1; }
	@touch $@

$(DEV_STAMP): $(STAMP)
	@echo "Installing the test tools of requirements/dev.lock"
	@$(PIP) $(LOCKED) -q -r requirements/dev.lock
	@touch $@

# Of other people, in an environment of its own: some of it cannot stand beside ours.
$(SDKS_STAMP): $(DEV_STAMP)
	@echo "Installing the SDKs of requirements/sdks.lock, for tests"
	@test -x .venv/sdks/bin/python || $(PYTHON) -m venv .venv/sdks
	@.venv/sdks/bin/python -m pip --disable-pip-version-check $(LOCKED) -q -r requirements/sdks.lock
	@touch $@

setup: $(STAMP) ## Install what running needs, and compile the CPU kernel.
	@$(if $(filter cpu,$(LOCK)),ROUNDHOUSE_CACHE="$(CACHE)" $(BIN)/python -m deployments.engines.lora_kernel >/dev/null)

model: setup ## Prepare the demo's base model in the cache.
	@$(BIN)/python -m examples.base_model --cache "$(CACHE)"

demo: model ## Serve twelve trained adapters on two replicas; Ctrl-C stops it.
	@ROUNDHOUSE_CACHE="$(CACHE)" $(BIN)/roundhouse up $(CONFIG)

test: $(DEV_STAMP) $(SDKS_STAMP) model ## Run all tests, fast ones first.
	@ROUNDHOUSE_CACHE="$(CACHE)" $(PYTEST) -n $(WORKERS) -m "not ray and not vllm"
	@ROUNDHOUSE_CACHE="$(CACHE)" $(PYTEST) -m "ray and not vllm"
	@ROUNDHOUSE_CACHE="$(CACHE)" $(PYTEST) -m "vllm"

test-fast: $(DEV_STAMP) ## Run the tests that need neither Ray nor an engine.
	@$(PYTEST) -n $(WORKERS) -m "not ray and not vllm and not slow"

test-hostile: $(DEV_STAMP) model ## Run the attacks, each more often than `make test` does (15 min).
	@ROUNDHOUSE_CACHE="$(CACHE)" ROUNDHOUSE_HOSTILE=1 $(PYTEST) -m hostile

image: sbom ## Build the container image of this LOCK (IMAGE=registry/roundhouse).
	docker build -f k8s/images/Dockerfile --target $(LOCK) --build-arg LOCK=$(LOCK) \
	  $(if $(filter cpu,$(LOCK)),--build-arg TORCH_INDEX=$(TORCH_INDEX)) --tag $(IMAGE):$(VERSION)-$(LOCK) .

sbom: ## Write which packages are in the image of this LOCK, with their hashes, as CycloneDX (build/).
	@test -x $(SBOM_TOOL)/python || $(PYTHON) -m venv .venv/sbom
	@$(SBOM_TOOL)/python -m pip --disable-pip-version-check $(LOCKED) -q -r requirements/sbom.lock
	@mkdir -p build
	@$(SBOM_TOOL)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible \
	  -o $(SBOM) requirements/$(LOCK).lock
	@echo "$(SBOM)"

bench-engine: $(DEV_STAMP) model ## Measure what adapters cost an engine, beside stock vLLM and peft (30 min).
	@ROUNDHOUSE_CACHE="$(CACHE)" $(BIN)/python -m benchmarks.engine

bench-router: $(DEV_STAMP) ## Measure the choice of the adapter: quality beside baselines, speed (20 min; DATA=folder).
	@$(BIN)/python -m benchmarks.router $(if $(DATA),--data $(DATA))

bench-experts: $(DEV_STAMP) ## Measure what feedback teaches about expert models while they answer, with drift (10 min; DATA=folder).
	@$(BIN)/python -m benchmarks.experts $(if $(DATA),--data $(DATA))

bench-conversations: $(DEV_STAMP) ## Measure whether chats stay with their adapter, and leave it when they should (5 min; DATA=folder).
	@$(BIN)/python -m benchmarks.conversations $(if $(DATA),--data $(DATA))

bench-unseen: $(DEV_STAMP) ## Measure what outcomes make of topics that no adapter was made for (2 min; DATA=folder).
	@$(BIN)/python -m benchmarks.unseen $(if $(DATA),--data $(DATA))

bench-harness: $(DEV_STAMP) ## Measure whether prompts go where they should as programs send them (5 min; DATA=folder).
	@$(BIN)/python -m benchmarks.harness $(if $(DATA),--data $(DATA))

bench-store: $(DEV_STAMP) ## Measure the adapter store: 10,000 adapters, 64 replicas, updates under load (10 min).
	@$(BIN)/python -m benchmarks.store

bench-cluster: $(DEV_STAMP) model ## Measure placement and dispatch, beside Ray Serve LLM (70 min).
	@$(BIN)/python -m benchmarks.cluster

bench-page: $(DEV_STAMP) ## Measure the page with 2,000 adapters on 64 replicas in Chromium (2 min).
	@$(BIN)/python -m benchmarks.page

bench-chaos: $(DEV_STAMP) ## Kill each part of a cluster under load, and count what fails (8 min).
	@$(BIN)/python -m benchmarks.chaos

bench-tracing: $(DEV_STAMP) ## Measure what traces cost a request, off and on (2 min).
	@$(BIN)/python -m benchmarks.tracing

lint: $(DEV_STAMP) ## Check style, types, which way imports go, and sizes.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(PYTEST) -q tests/test_house.py

format: $(DEV_STAMP) ## Format, and fix what can be fixed.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DEV_STAMP) ## Write the generated pages of the docs anew.
	@$(BIN)/python -m docs.generate

lock: $(DEV_STAMP) ## Resolve the .in files and write the lock files anew.
	@TORCH_INDEX="$(TORCH_INDEX)" $(BIN)/python requirements/lock.py

clean: ## Remove the virtual environment and everything built.
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .hypothesis .mypy_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
