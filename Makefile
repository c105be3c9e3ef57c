# Every target does its own set-up; a second call installs nothing.
SHELL := bash
PYTHON ?= python3
SEED ?= 15
VENV := .venv
BIN := $(VENV)/bin
# A file's tests share servers and models, so they stay together; files come in their order, the longest among the first.
PYTEST := $(BIN)/python -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Tests start hundreds of processes: compiling the same modules in each would take minutes.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test test-quick test-faults chaos check docs-tree stack stack-down soak clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "segmill needs Python 3.11 or newer, $(PYTHON) is older; say make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp per extra: installed again only when what it was made from changes.
$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing segmill[$*] into $(VENV) (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo ## retrain on the built-in brain atlas, from the data to the promoted model, in .demo/
	@segmill demo --workspace .demo

test: $(VENV)/.installed-dev ## the test suite, with real servers
	@$(PYTEST) -m 'not fault and not long and not chaos'

test-quick: $(VENV)/.installed-dev ## the tests that need no server and no training: two minutes
	@$(PYTEST) -m 'not slow and not fault and not long and not chaos'

test-faults: $(VENV)/.installed-dev ## what make test leaves out: long runs, killed or starved ones, more cases
	@$(PYTEST) -m 'fault or long'

chaos: $(VENV)/.installed-dev ## 53 runs, two at a time, each killed or starved at a seeded moment; over an hour; SEED=16: at other moments
	@CHAOS_SEED=$(SEED) $(BIN)/python -m pytest --numprocesses=2 --maxschedchunk=1 -m chaos tests/chaos

check: $(VENV)/.installed-dev ## formatting, lint, types and the layers of imports
	@ruff check . && ruff format --check . && mypy && lint-imports

docs-tree: $(VENV)/.installed-dev ## write the file tree of docs/architecture.md from the docstrings
	@python docs/tree.py

stack: $(VENV)/.installed-stack ## production's servers on this machine, on loopback; SERVE=WORKSPACE: its model is served too
	@python -m deploy.stack up $(if $(SERVE),--serve '$(SERVE)')

soak: $(VENV)/.installed-stack ## fifty nights on a stack of their own, with random kills; two hours or more
	@python benchmarks/soak.py --nights 50 --seed $(SEED)

stack-down: $(VENV)/.installed-stack ## stop them and delete what they keep
	@python -m deploy.stack down

clean: ## delete the demo workspace and the virtual environment
	rm -rf .demo $(VENV)
