# make test    the default suite (no slow tests)
# make check   what CI runs: lint, import rules, types, then every test
# make docs    the site, into build/docs: offline, and every warning is an error
# make demo    GRPO and REPO-R side by side, one seed each, and a report that compares their entropy
# Each makes .venv first, and again when pyproject.toml or constraints.txt changed.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

SHELL := bash
# torch's own threads slow tiny models down, and two test workers share the cores already.
export OMP_NUM_THREADS ?= 1
# Recipes that begin with `time` say how long they took.
export TIMEFORMAT = ---- %R s

.PHONY: install test check lint imports types docs test-all demo clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	time $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

check: lint imports types test-all

lint: $(INSTALLED)
	time { $(BIN)/ruff check . && $(BIN)/ruff format --check .; }

imports: $(INSTALLED)
	time $(BIN)/lint-imports --no-cache

types: $(INSTALLED)
	time $(BIN)/mypy

docs: $(INSTALLED)
	time $(BIN)/sphinx-build -q -W --keep-going -n -E docs build/docs

test-all: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m ''

DEMO := runs/demo-$(shell date +%Y%m%d-%H%M%S)
DEMO_ITERATIONS ?= 300

# Two processes, one for each core; the second waits for the warm-up of the first.
demo: $(INSTALLED)
	$(BIN)/python -c 'from isentrope.config import read_config as r; c = r("examples/arithmetic-grpo.toml"); c.model.build(c.env)'
	for algorithm in grpo repo-r; do \
	    $(BIN)/isentrope train examples/arithmetic-$$algorithm.toml \
	        --set iterations=$(DEMO_ITERATIONS) --out $(DEMO)/$$algorithm | sed "s/^/$$algorithm /" & \
	done; wait
	$(BIN)/isentrope compare $(DEMO)/grpo $(DEMO)/repo-r --out $(DEMO)/compare.html

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
