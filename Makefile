# make train: the quickstart.  make test: the default suite.  Each makes .venv and installs on its first call.

PYTHON ?= python3
BIN := .venv/bin

train: .venv/installed
	$(BIN)/python tools/train.py configs/quickstart.py

test: .venv/test
	$(BIN)/python -m pytest

test-all: .venv/test
	$(BIN)/python -m pytest -m 'slow or not slow'

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/mypy

# Trains the backbone that ships with vet anew, on the digits 0 to 4.
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

.PHONY: train test test-all lint backbone
