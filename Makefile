# The README's two commands are `make demo` and `make test`. Each makes the environment first, if it has to.
# PYTHON=/path/to/python3.12 picks the interpreter, DEMO="quick=true" passes keys to the demo,
# TESTS="tests/test_types.py -k grid" picks tests.

PYTHON ?=
DEMO ?=
TESTS ?=
# Container images like to set this. Without bytecode every process compiles torch and diffusers anew: 2 to 4 s each.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
INSTALLED := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help demo demo-dpo test test-fast lint env clean

help:
	@echo "make demo       see the whole thing work; writes runs/demo"
	@echo "make demo-dpo   see preference training at work, after make demo; writes runs/demo_dpo"
	@echo "make test       every test, the slow ones too"
	@echo "make test-fast  without the slow ones"
	@echo "make lint       ruff and mypy"
	@echo "make env        only make the environment in .venv"

demo: $(INSTALLED)
	$(BIN)/avgen demo $(DEMO)

demo-dpo: $(INSTALLED)
	$(BIN)/python -m avgen.prefer.demo $(DEMO)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(TESTS)

test-fast: $(INSTALLED)
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist worksteal -m "not slow" $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

env: $(INSTALLED)

# Installed again when either file changed. UV_TORCH_BACKEND=cpu makes the download much smaller without a GPU.
$(INSTALLED): pyproject.toml constraints.txt $(BIN)/python
	@$(BIN)/python -m uv --version >/dev/null 2>&1 || $(BIN)/python -m pip install -q -c constraints.txt uv
	VIRTUAL_ENV=.venv $(BIN)/python -m uv pip install -e ".[data,demo,eval,dev]" -c constraints.txt -b constraints.txt
	@touch $@

# Where Python comes without ensurepip, as in Debian, venv fails and leaves a python without pip: it must go, or the
# next make would take it for a whole environment.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3.12 python3.11 python3 python); do \
		if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then \
			echo "making .venv with $$($$python --version)"; \
			$$python -m venv .venv && exit; \
			rm -rf .venv; exit 1; \
		fi; \
	done; \
	echo "avgen needs Python 3.11 or 3.12; $(or $(PYTHON),$$(python3 --version 2>&1)) will not do." >&2; \
	echo "Install one and run: make PYTHON=/path/to/python3.12 $(or $(MAKECMDGOALS),env)" >&2; exit 1

clean:
	rm -rf .venv build dist *.egg-info
