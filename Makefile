.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help
help: ## show this help
	@grep -hE '^[a-z-]+:.*?## ' $(MAKEFILE_LIST) | awk -F ':.*?## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group dev
	@touch $(STAMP)

.PHONY: install
install: $(STAMP) ## create .venv with everything in it (the other targets do it by themselves)

.PHONY: demo
demo: $(STAMP) ## a whole campaign on embedded servers against a simulated APNs
	@$(BIN)/sender demo

.PHONY: test
test: $(STAMP) ## all tests, on real embedded servers
	@$(BIN)/python -m pytest

.PHONY: lint
lint: $(STAMP) ## ruff, mypy --strict, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: check
check: lint test ## everything that CI runs

.PHONY: bench
bench: $(STAMP) ## measure, side by side; prints a table in Markdown
	@$(BIN)/python -m tests.bench

.PHONY: clean
clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
