# Everything that a fresh machine with Python 3.11 or newer needs; `make` alone lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
OUT ?= runs/demo
# A shorter search than the default, so that all of it takes two to three minutes on two cores.
DEMO := --pairs 64 --first-pairs 24 --rounds 4 --finalists 2 --pair-windows 16 --test-windows 96 \
	--calibration-windows 64 --final-windows 48 --trials 120

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench install clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## compress the embedded parent and write its report under runs/demo (OUT=folder)
	HF_HUB_OFFLINE=1 $(BIN)/python -m experiments.compress --out $(OUT) $(DEMO)

# One thread a worker: two pools of spinning threads on the same cores cost more than they give.
test: $(INSTALLED) ## run all tests (ARGS='-m "not slow"' for the quick ones)
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(INSTALLED) ## style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(INSTALLED) ## run every script of benchmarks/ but tasks, which needs files (ARGS go to each that measures a model)
	@for script in $(filter-out benchmarks/_% benchmarks/tasks.py,$(wildcard benchmarks/*.py)); do \
	  name="$$(basename "$$script" .py)"; echo "== benchmarks.$$name"; \
	  args="$(ARGS)"; case "$$name" in predictors|growth|scale|gpu) args=;; esac; \
	  HF_HUB_OFFLINE=1 $(BIN)/python -m "benchmarks.$$name" $$args || exit 1; \
	done

install: $(INSTALLED) ## create .venv with the tested versions; does nothing when it is up to date

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, PYTHON=$(PYTHON) is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	@echo "Installing into $(VENV): once, about 2 to 4 minutes and 2.9 GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

clean: ## remove the environment and all caches, keep runs/
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
