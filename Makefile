# The house's commands. `make` alone lists them. Everything runs inside .venv, which `make setup` keeps.
# The interpreter .venv is made with: the first of these that runs and is new enough.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$python; break; }; done)
# cpu or gpu: which lock file the environment follows.
DEVICE ?= cpu
# Index that pip takes torch from, such as PyTorch's CPU wheels; empty means pip's own settings.
TORCH_INDEX ?=
# Passed on to pytest, such as ARGS="-k ledger -x".
ARGS ?=

VENV := .venv/bin
PACKAGES := configs services training cluster

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test test-unit test-slow chaos lint format bench lock clean

help: ## List the commands.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Create or update .venv from the lock files (DEVICE=gpu for CUDA; instant when nothing changed).
	@python="$(PYTHON)"; \
	test -n "$$python" || { echo "setup: found no Python 3.11 or newer; install one, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }; \
	"$$python" requirements/install.py --device "$(DEVICE)" --torch-index "$(TORCH_INDEX)"

quickstart: setup ## Distil a tiny teacher into a smaller student on this machine, no GPU and no hub needed.
	$(VENV)/stillhouse run configs/recipes/quickstart.yaml

test: setup ## Everything that runs on a CPU: unit, integration, short chaos.
	$(VENV)/python -m pytest -m "not gpu and not slow" tests/unit tests/integration tests/chaos $(ARGS)

test-unit: setup ## Unit tests alone, in seconds.
	$(VENV)/python -m pytest tests/unit $(ARGS)

test-slow: setup ## What takes minutes each: an elastic group, a whole program and a whole cluster killed.
	$(VENV)/python -m pytest -m "slow and not gpu" -s tests/integration tests/chaos $(ARGS)

chaos: setup ## Kill things, the long version: 200 random schedules, about an hour.
	$(VENV)/python -m pytest -s tests/chaos/test_schedules.py --chaos-schedules 200 $(ARGS)

lint: setup ## ruff, mypy and the layering; what pre-commit and CI run.
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	$(VENV)/lint-imports

format: setup ## Let ruff mend what it can.
	$(VENV)/ruff check --fix
	$(VENV)/ruff format

bench: setup ## The measurements behind docs/, side by side on this machine.
	$(VENV)/python -m benchmarks $(ARGS)

lock: setup ## Derive requirements/*.lock from pyproject.toml (ARGS=--upgrade renews the pins).
	requirements/compile.sh $(ARGS)

clean: ## Remove the environment and caches; runs/ stays.
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
