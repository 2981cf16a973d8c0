# Needs make and a Python >= 3.11 with pip; everything else goes into .venv.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# The tests start hundreds of Python processes: each would compile all modules again.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LEAN := $(VENV)/.demo
KAFKA := $(VENV)/kafka.aot
PROCESSES := 4
KILLS := 500
VIEW_KILLS := 20
MINUTES := 20
FOREIGN_RECORDS := 200000
SEED := 7
COVERAGE :=
VERBOSE :=

# Tried by running it: a shim on the path may answer that it has no such version, and some
# distributions ship a python3 that cannot make an environment.
CANDIDATES := $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11
FITS := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))

.PHONY: help setup demo test lint format bench plots soak schemas lock sbom clean

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Makes .venv from the lock file

# The environment, without anything in it.
define NEW_ENVIRONMENT
@python=; for candidate in $(CANDIDATES); do \
	  if "$$candidate" -c '$(FITS)' >/dev/null 2>&1; then python=$$candidate; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "taskflow needs Python 3.11 or newer with venv and pip; none was found. Install one (on Debian also python3-venv), or name it: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	  exit 1; \
	fi; \
	echo "setting up $(VENV) with $$("$$python" --version), about half a minute, this first time only"; \
	"$$python" -m venv --clear $(VENV)
endef

$(STAMP): requirements.lock pyproject.toml
	$(NEW_ENVIRONMENT)
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# What the demo needs, without the tools of the tests: they take three times as long.
$(LEAN): requirements.lock pyproject.toml
	$(NEW_ENVIRONMENT)
	@$(BIN)/python .ci/install_extras.py broker views
	@touch $@

# It starts sooner from what `make test` has noted, where that is there.
demo: $(if $(wildcard $(STAMP)),$(STAMP),$(LEAN)) ## Runs the main job from start to end, with a broker of its own (VERBOSE=1: every event)
	@TASKFLOW_BROKER_AOT=$(KAFKA) $(BIN)/taskflow demo $(if $(VERBOSE),--verbose)

# Most tests with a broker wait, and others may compute meanwhile: three processes left 30 % of two
# cores idle. Each has a broker of its own, begins with long tests and ends with short ones
# (tests/conftest.py). Types are checked beside them: without its cache, mypy takes half a minute of
# one core. What a test may cost, so that all take six minutes, is in tests/README.md.
test: $(STAMP) $(KAFKA) ## Checks style and types, and runs every test (PROCESSES=1: one after the other)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@$(BIN)/mypy & types=$$!; tests=0; \
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist worksteal \
	  $(if $(COVERAGE),--cov --cov-report=) || tests=$$?; \
	wait $$types && exit $$tests
	@$(if $(COVERAGE),echo "the tests of this process reach $$($(BIN)/coverage report --format=total) % of the lines",:)

# Once for each .venv. Without it the tests run too, and take longer.
$(KAFKA): $(STAMP)
	@echo "fetching Apache Kafka, and having its JVM note what makes it start sooner"
	@-TASKFLOW_BROKER_JIT=quick $(BIN)/python -m tests.support.aot_cache $@ >/dev/null

lint: $(STAMP) ## Checks style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(STAMP) ## Puts the code into its form
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(STAMP) ## Measures what the documentation claims
	$(BIN)/python -m tests.benchmarks

# What draws is large, and needed for nothing else: it is not among what `make setup` installs.
plots: $(STAMP) ## Draws the figures that are kept in tests/benchmarks/results
	@$(BIN)/pip install --quiet --disable-pip-version-check -r tests/benchmarks/plots/requirements.txt
	$(BIN)/python -m tests.benchmarks.plots

# Shorter: make soak KILLS=20 VIEW_KILLS=3 MINUTES=1 FOREIGN_RECORDS=2000
# What takes long and rarely finds what `make test` does not: its table is in tests/README.md. Of the
# largest, `make test` runs 300 of 10,000 simulated histories (100 with executors), 30 of 300 examples
# of each property, 6 of 500 kills, and 200 of 200,000 records of any bytes for every reader of them.
soak: $(STAMP) ## Kills all 500 times, breaks all for twice 20 minutes, runs what is too long for make test
	$(BIN)/pytest -m soak --numprocesses $(PROCESSES) --dist worksteal
	$(BIN)/pytest tests/property --hypothesis-profile soak
	$(BIN)/taskflow torture --kills $(KILLS) --seed $(SEED)
	$(BIN)/pytest tests/faults/test_views.py -k kills --kills $(VIEW_KILLS) --timeout 1800
	$(BIN)/pytest tests/faults/test_embedded_broker_ends.py -k outlives --broker-kills 10 --timeout 1800
	$(BIN)/taskflow torture --minutes $(MINUTES) --seed $(SEED)
	$(BIN)/taskflow torture --minutes $(MINUTES) --seed $(SEED) --brokers 3
	$(BIN)/pytest tests/integration/test_rights.py --all-rights --timeout 1800
	$(BIN)/pytest tests/property/test_foreign_input.py --foreign-records $(FOREIGN_RECORDS) --timeout 7200

schemas: $(STAMP) ## Generates schemas/json and asyncapi.yaml from the models
	$(BIN)/python -m processor.contract.publication.generate

# uv resolves for every platform at once, which pip cannot; it is needed for nothing else.
lock: $(STAMP) ## Resolves requirements.lock again (make lock UPGRADE=--upgrade for newer versions)
	@$(BIN)/python -m venv $(VENV)/uv && $(VENV)/uv/bin/pip install --quiet uv
	@$(VENV)/uv/bin/uv pip compile pyproject.toml $(UPGRADE) --quiet --universal --python-version 3.11 \
	  --all-extras --generate-hashes --no-emit-index-url --no-emit-find-links \
	  --custom-compile-command "make lock" --output-file requirements.lock

sbom: $(STAMP) ## Writes build/sbom.cdx.json, a bill of materials in CycloneDX
	$(BIN)/python .ci/sbom.py build/sbom.cdx.json

clean: ## Removes what make and the tests have made here
	rm -rf $(VENV) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find schemas processor tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
