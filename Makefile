# Thin targets: every step is an ordinary command, shown in README.md.
#   make install      the environment alone, into .venv (or ETUDE_VENV)
#   make quickstart   demo corpus -> labels -> training -> Hugging Face folder -> probe -> report
#   make test         lint, types, import contracts, tests
#   make compat       exports in old, current and new versions of transformers (downloads them)
#   make check        all of `make test` but pytest;   make format   rewrites the code's format

ETUDE_VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := $(abspath $(ETUDE_VENV))/bin
STAMP := $(ETUDE_VENV)/.installed
CORPUS := corpora/demo
RUN := runs/quickstart
export PATH := $(BIN):$(PATH)

.PHONY: install quickstart test check compat format clean-quickstart

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(ETUDE_VENV)
	$(BIN)/python -m pip install --upgrade "pip>=24" "setuptools>=77,<90"
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@

quickstart: $(STAMP)
	python launch/prepare.py --demo --demo-minutes 60 --sample-rate 16000 --out $(CORPUS)
	python launch/cluster.py $(CORPUS) --config configs/quickstart.yaml \
	    --features logmel --bins 80 --n-fft 1024 --clusters 100
	python launch/cluster.py $(CORPUS) --config configs/quickstart.yaml \
	    --features chroma --bins 12 --n-fft 4096 --clusters 50
	deepspeed launch/train.py configs/quickstart.yaml
	python launch/export.py $(RUN) $(RUN)/hf --as hubert
	python launch/probe.py $(RUN) --out $(RUN)/probe
	python launch/compare.py $(RUN) --out $(RUN)/report.html

check: $(STAMP)
	ruff check .
	ruff format --check .
	mypy .lens/etude
	lint-imports

test: check
	pytest

compat: $(STAMP)
	python tests/compat/run.py

format: $(STAMP)
	ruff check --fix .
	ruff format .
