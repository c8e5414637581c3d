# `make` lists the targets. Each target installs what it needs into .venv on its first call.

PYTHON ?= python3
BIN := .venv/bin
TESTS := $(if $(ROOM),tests/$(ROOM))

## help: lists the targets
help:
	@sed -n 's/^## /  make /p' $(MAKEFILE_LIST)

## train: trains the quickstart
train: .venv/installed
	$(BIN)/python tools/train.py configs/quickstart.py

## test: runs the default suite; with ROOM=core, only tests/core
test: .venv/test
	$(BIN)/python -m pytest $(TESTS)

## test-all: runs the default suite and the slow tests; ROOM=core as for test
test-all: .venv/test
	$(BIN)/python -m pytest -m 'slow or not slow' $(TESTS)

## lint: runs ruff and mypy
lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/mypy

## backbone: trains the backbone that ships with vet anew, on the digits 0 to 4
backbone: .venv/installed
	rm -rf build/digits_vit
	$(BIN)/python tools/train.py configs/digits_vit_pretrain.py --work-dir build/digits_vit --device cpu
	$(BIN)/python tools/export.py build/digits_vit vet/backbones/digits_vit.safetensors

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/test: .venv/installed
	$(BIN)/pip install --quiet -e .[test]
	touch $@

.venv/lint: .venv/installed
	$(BIN)/pip install --quiet -e .[lint]
	touch $@

.PHONY: help train test test-all lint backbone
