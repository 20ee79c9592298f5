# Needs only git, make and Python 3.10 or newer; everything else goes into .venv.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.10; do \
	$$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --doctest-modules tests monai_adv nnunet_trainers

# OpenMP threads that spin while they wait slow a machine with few cores down many times.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0

.PHONY: help try demo test test-all lint package docs gpu clean

help: ## say what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/make \1\t\2/' | expand -t 12

try: $(INSTALLED) ## set up, then a plain and a robust model under attack in a minute
	@$(BIN)/monai-adv try

demo: $(INSTALLED) ## set up and run the demonstration
	@$(BIN)/monai-adv demo

test: lint ## set up, then check style and types and run all tests
	@echo "== tests"
	@$(PYTEST) -m "not nightly"

test-all: lint ## the same and the nightly tests, such as the tutorials; says which share of the lines they run
	@echo "== all tests"
	@FRESH_PROCESSES=1 $(PYTEST) --cov=monai_adv --cov=nnunet_trainers --cov-report=term

package: $(INSTALLED) ## build sdist and wheel into dist, and check what the index will show
	@rm -rf dist
	@$(BIN)/python -m build
	@$(BIN)/python -m twine check --strict dist/*

docs: $(INSTALLED) ## build the documentation's site into site
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@$(BIN)/mkdocs build --strict

lint: $(INSTALLED) ## set up, then check style and types
	@echo "== style (ruff)"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== types (mypy)"
	@$(BIN)/mypy

gpu: $(INSTALLED) ## measure on a GPU, in at most 8 minutes: make gpu PLANS=nnUNetPlans.json writes gpu.json
	@test -f "$(PLANS)" || { echo "Say which plans: make gpu PLANS=/path/to/nnUNetPlans.json"; exit 1; }
	@$(BIN)/python benchmarks/gpu.py --plans "$(PLANS)" --output gpu.json

# Both files below are copied or read at install time only; everything else is live in an editable install.
$(INSTALLED): pyproject.toml hatch_build.py nnunet_trainers/_discovery/monai_adv_nnunet.pth
	@test -n "$(PYTHON)" && $(PYTHON) -c '$(NEW_ENOUGH)' || \
		{ echo "Python 3.10 or newer is needed: install it, or name one: make PYTHON=/path/to/python3"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "Python cannot create $(VENV): install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 1; }
	@echo "== installing into $(VENV) (PyTorch is large: some minutes and about 7 GB the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean: ## remove .venv and all caches
	rm -rf $(VENV) build dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
