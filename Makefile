# `make` lists the targets. Each target installs what it needs into .venv on its first call.

PYTHON ?= python3
BIN := .venv/bin
TESTS := $(if $(ROOM),tests/$(ROOM))

# The tests start many processes. Without compiled files, each process would compile vet again.
unexport PYTHONDONTWRITEBYTECODE

## help: lists the targets
help:
	@sed -n 's/^## /  make /p' $(MAKEFILE_LIST)

## train: trains the quickstart
train: .venv/installed
	$(BIN)/python tools/train.py configs/quickstart.py

## test: runs the default suite; with ROOM=core, only tests/core
test: .venv/test
	$(BIN)/python -m pytest $(TESTS)

## test-all: runs the default suite, then the slow tests; ROOM=core as for test
test-all: test
	$(BIN)/python -m pytest -m slow --ignore tests/mutants $(TESTS)
ifndef ROOM  # the mutants start two processes of pytest, so that no other tests run beside the mutants
	$(BIN)/python -m pytest -m slow -n 0 tests/mutants
endif

## mutants: puts 200 small faults into a copy of vet, and counts those that the tests notice; MUTANTS="--count 50 --rooms core" for others
mutants: .venv/test
	$(BIN)/python tests/mutants/run.py $(or $(MUTANTS),--count 200)

## lint: runs ruff, its formatter as a check, and mypy
lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

## backbone: trains the shipped backbone anew, into build/, and compares it with the shipped one
backbone: .venv/installed
	rm -rf build/digits_vit
	$(BIN)/python tools/train.py configs/digits_vit_pretrain.py --work-dir build/digits_vit --device cpu
	rm -f build/digits_vit.safetensors
	$(BIN)/python tools/export.py build/digits_vit build/digits_vit.safetensors
	$(BIN)/python benchmarks/backbone.py build/digits_vit

## docs: writes docs/config.md from the settings' fields, and builds the site into build/site
docs: .venv/docs
	$(BIN)/vet config --markdown > docs/config.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

## results: measures again what README.md and docs/ show; DATA=DIR, a quiet machine, under 30 minutes
results: .venv/test
	$(BIN)/python benchmarks/measure.py --data-root $(or $(DATA),../shared/data)

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/test: .venv/installed
	$(BIN)/pip install --quiet -e .[test]
	touch $@

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet -e .[docs]
	touch $@

.venv/lint: .venv/installed
	$(BIN)/pip install --quiet -e .[lint]
	touch $@

.PHONY: help train test test-all mutants lint backbone docs results
