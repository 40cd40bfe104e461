# The virtual environment is made on first use, with the Python that PYTHON names (3.10 or newer).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The stand-ins carry the names of the commands they stand for, so ruff has to be told of them.
SOURCES := . examples/trainers/tune examples/trainers/inspect

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz fuzz-readers faults mutants reliability agreement check format format-check lint types contract test-slurm build clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## bring a small experiment to its desired state, without Slurm or a GPU
	$(BIN)/python examples/demo.py

test: $(STAMP) ## run the tests, on every processor
	$(BIN)/python -m pytest -n auto --dist worksteal

fuzz: $(STAMP) ## try ten thousand new histories, thousands of other examples, and a million inputs for each reader; takes hours
	for thousand in 1 2 3 4 5 6 7 8 9 10; do \
	  RECONCILE_HISTORIES=1000 $(BIN)/python -m pytest tests/test_histories.py || exit 1; done
	RECONCILE_HISTORIES=10000 $(BIN)/python -m pytest tests/test_plan_properties.py \
	  tests/test_experiment.py tests/test_status_tables.py tests/test_torchtune.py tests/test_inspect_ai.py
	$(MAKE) fuzz-readers

fuzz-readers: $(STAMP) ## try a million inputs for each reader (RECONCILE_FUZZ_CASES=, RECONCILE_FUZZ_SECONDS= for each)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/run.py

FAULTS ?= all
faults: $(STAMP) ## break everything that can break, everywhere it can: every boundary, every error, every lie (FAULTS=150: so many of a kind)
	RECONCILE_FAULTS=$(FAULTS) $(BIN)/python -m pytest -n auto --dist worksteal tests/faults

# MUTANTS='reconciler.ladder.*' tries those of one module; with a TMPDIR in memory it is several times as fast.
MUTANTS ?=
mutants: $(STAMP) ## break the code in thousands of small ways and see that a test notices each, which takes hours
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,mutants]'
	PATH="$(CURDIR)/$(BIN):$$PATH" RECONCILE_RELIABILITY= nice -n 5 $(BIN)/mutmut run --max-children 1 $(MUTANTS)
	$(BIN)/python tests/mutants.py

reliability: $(STAMP) ## run what docs/reliability.md counts, which takes hours, and write its table (RECONCILE_KILLS=1000 make test-slurm adds to it)
	RECONCILE_RELIABILITY=build/reliability $(MAKE) faults fuzz mutants
	$(BIN)/python tests/reliability.py build/reliability

agreement: $(STAMP) ## print which faces of the simulated cluster agree on which scenario
	$(BIN)/python -m pytest -rP --no-header tests/test_agreement.py

check: format-check lint types contract test ## everything that must hold before a change goes in

format: $(STAMP) ## format the sources
	$(BIN)/ruff format $(SOURCES)

format-check: $(STAMP) ## see whether the sources are formatted
	$(BIN)/ruff format --check $(SOURCES)

lint: $(STAMP) ## look for mistakes in the sources
	$(BIN)/ruff check $(SOURCES)

types: $(STAMP) ## check the types
	$(BIN)/mypy

contract: $(STAMP) ## check that imports point one way
	$(BIN)/lint-imports

# SUITE= takes the Slurm of this machine; a Debian suite gets a root of its own, made by debootstrap and removed afterwards.
SUITE ?=
BACKEND ?= cli
TESTS ?= tests/slurm
test-slurm: $(STAMP) ## run the tests against a real Slurm, started for them (SUITE=trixie, BACKEND=pyslurm: see tests/slurm/conftest.py)
	RECONCILE_TEST_SLURM=1 RECONCILE_TEST_SLURM_ROOT=$(SUITE) RECONCILE_TEST_BACKEND=$(BACKEND) \
	  $(BIN)/python -m pytest --durations=10 $(TESTS)

build: $(STAMP) ## build the wheel and the source distribution into dist/
	$(BIN)/python -m build

clean: ## remove what the other targets made, the virtual environment too
	rm -rf .venv build dist mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "reconcile needs Python 3.10 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1): try make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@
