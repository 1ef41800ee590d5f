# make quickstart   install, fetch the default model, compile the first example and show the result
# make test         the whole test suite
# make lint         formatting, lint and types
# make format       rewrite files in the project's format
# make clean        remove what the other targets made, but not fetched models
#
# PYTHON=python3.12 picks the interpreter; VENV=DIR the virtual environment; PYTEST_ARGS="-k name" what pytest runs.

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?= -n 2 --dist loadfile
EXAMPLE ?= examples/ticket_triage/ticket_triage

BIN := $(VENV)/bin
MODEL := smollm2-135m

.PHONY: quickstart test lint format clean
.DELETE_ON_ERROR:

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit("Cuecard needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

# The stamps make an install happen only when what it installs has changed.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@ $(VENV)/.installed

quickstart: $(VENV)/.installed
	$(BIN)/cuecard models pull $(MODEL)
	$(BIN)/cuecard compile $(EXAMPLE).yaml
	$(BIN)/cuecard show $(EXAMPLE).compiled.yaml

test: $(VENV)/.installed-dev
	$(BIN)/cuecard models pull $(MODEL)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# mypy finds a package by its folder's name, and this one's root may have any name: give it a link with the right one.
.mypy/cuecard:
	@mkdir -p .mypy
	@ln -sfn .. $@

lint: $(VENV)/.installed-dev .mypy/cuecard
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p cuecard

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .mypy .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist cuecard.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
