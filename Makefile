# glmc: `make demo` and `make test` work on a fresh machine with Python 3.11 or later and g++.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
NATIVE := $(wildcard glmc/native/*.hpp glmc/native/*.cpp glmc/kernels/*/*.hpp)
SOURCE := glmc passes runtime tests examples

.DEFAULT_GOAL := help
.PHONY: help demo test lint types clean

help: ## say what each target does
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile
	@echo 'PYTHON=... chooses the interpreter of the virtual environment (now: $(PYTHON))'

demo: $(VENV)/.stamp ## compile the example checkpoint, run it, print its ledger and its text
	$(BIN)/python examples/demo.py

# One thread a worker: two workers share two cores. What compiles native code asks for two threads itself.
test: $(VENV)/.stamp ## every test that needs neither minutes nor a GPU, the quick ones first
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -x -q -n 2 --dist loadfile -m "not slow and not gpu"

lint: $(VENV)/.stamp ## ruff over everything
	$(BIN)/ruff check $(SOURCE)

# The mapped packages (passes as glmc.passes) are invisible to a type checker until they stand where their names say.
types: $(VENV)/.stamp ## mypy, over a tree of links where glmc.passes and glmc.runtime are folders of glmc
	rm -rf build/types && mkdir -p build/types/glmc
	ln -s $(CURDIR)/glmc/* $(CURDIR)/passes $(CURDIR)/runtime build/types/glmc/
	cd build/types && $(CURDIR)/$(BIN)/python -m mypy --ignore-missing-imports -p glmc

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) build .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find $(SOURCE) -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and alone: a machine that offers several builds of it then decides on torch, not on what depends on it.
# setuptools next, so that the build of glmc itself uses the pinned one too (--no-build-isolation).
$(VENV)/.stamp: pyproject.toml constraints.txt $(NATIVE)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo 'error: $(PYTHON) is missing or older than 3.11; name another one: make PYTHON=python3.11' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo 'error: $(PYTHON) cannot make virtual environments; on Debian and Ubuntu install python3-venv' >&2; exit 1; }
	@command -v g++ >/dev/null || \
	  { echo 'error: g++ is missing; glmc compiles C++ for the CPU (Debian and Ubuntu: apt-get install g++)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch==$(TORCH)
	$(PIP) install -c constraints.txt setuptools
	$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@
