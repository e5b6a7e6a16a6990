.DEFAULT_GOAL := help
# The first Python that is new enough; `make PYTHON=/path/to/python …` takes another.
PYTHON ?= $(shell for each in python3 python3.13 python3.12 python3.11 python; do \
	$$each -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.PHONY: help
help: ## show this help
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv was found: install one, or make PYTHON=…" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "installing into $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[all]' --group dev
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## create .venv with everything in it (the other targets do it by themselves)

.PHONY: demo
demo: $(STAMP) ## a whole campaign on embedded servers against a simulated APNs
	@$(BIN)/sender demo

# Processes that run tests, each with servers of its own. What measures rates runs by itself afterwards.
JOBS ?= 2

.PHONY: test
test: $(STAMP) ## all tests, on real embedded servers: JOBS=2
	@failed=0; \
	$(BIN)/python -m pytest -m 'not alone' --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder || failed=1; \
	$(BIN)/python -m pytest -m alone || failed=1; \
	exit $$failed

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

.PHONY: audit
audit: $(STAMP) ## secrets in the tree, known vulnerabilities of the dependencies
	@$(BIN)/python -m tests.audit

.PHONY: check
check: lint audit test ## everything that CI runs

.PHONY: docs
docs: $(STAMP) ## write again what is generated from the code: diagrams, errors, settings
	@$(BIN)/python -m docs.generate

.PHONY: bench
bench: $(STAMP) ## measure, side by side; prints a table in Markdown
	@$(BIN)/python -m tests.bench

# make chaos ROUNDS=20 SEED=1 DELIVERY=both|at_least_once|at_most_once DEVICES=50000 FAULTS=6 SHOWS=yes|no
ROUNDS ?= 20
SEED ?= 1
DELIVERY ?= both
DEVICES ?= 50000
FAULTS ?= 6
SHOWS ?= yes

.PHONY: chaos
chaos: $(STAMP) ## campaigns under faults: ROUNDS=20 SEED=1 DELIVERY=both DEVICES=50000; prints a table in Markdown
	@$(BIN)/python -m tests.chaos --rounds $(ROUNDS) --seed $(SEED) --delivery $(DELIVERY) --devices $(DEVICES) \
		--faults $(FAULTS) $(if $(filter no,$(SHOWS)),--no-shows,--shows)

.PHONY: soak
soak: $(STAMP) ## a million devices through the whole stack: memory and connections must stay flat
	@$(BIN)/python -m tests.bench.soak

.PHONY: hooks
hooks: $(STAMP) ## run the linters before every commit (pre-commit)
	@$(BIN)/pre-commit install

.PHONY: clean
clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
