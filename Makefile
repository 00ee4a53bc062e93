# `make run` and `make test` work on a fresh checkout: both set up .venv when it is missing or out of date.

# Python 3.11 or newer, used once to make .venv.
PYTHON ?= python3
# Typed, for example PY=python3: run with that Python and what it can import; no .venv is made.
PY =
# Address of a further package index, for PyTorch's CPU build; see README.md.
TORCH_INDEX ?=
# Overrides for `make run`, for example ARGS="impl=torch workload=llama3_8b".
ARGS ?= experiment=quickstart
# ARGS, where it was typed and is not the default above.
TYPED = $(if $(filter file,$(origin ARGS)),,$(ARGS))
# What `make report` shows; the last sweep where it is empty.
SWEEPS ?=
# Port and folder of `make ui`.
PORT ?= 5000
MLRUNS ?= mlruns
# Folder for the rows and the table of `make targets`, and words of the cases that it measures; all without any.
TARGETS ?= targets
WORDS ?=
# Processes of `make test`: more than cores, since many tests wait for a child.
JOBS ?= 3
# Processes of the part of `make test-gpu` that runs side by side: of a GPU's memory each takes up to some 4 GB, and the
# one that has the tests of large caches 52 GB more.
GPU_JOBS ?= 12

BIN := .venv/bin
MADE := .venv/.ready
DOCS := .venv/.docs
ifeq ($(PY),)
READY := $(MADE)
RUN := $(BIN)/python
else
READY :=
RUN := $(PY)
export PYTHONPATH := $(CURDIR)/src$(if $(PYTHONPATH),:$(PYTHONPATH))
endif

ifneq ($(TORCH_INDEX),)
export PIP_EXTRA_INDEX_URL := $(TORCH_INDEX) $(PIP_EXTRA_INDEX_URL)
endif

.DEFAULT_GOAL := help
.PHONY: help setup run report baseline gate resume doctor test test-reliability test-cluster lint docs test-gpu targets profile ui clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' Makefile

# The pip that comes with Python 3.11 takes three times as long to choose versions. What it installs it also compiles:
# where PYTHONDONTWRITEBYTECODE is set, each process would compile torch and MLflow again.
setup: $(MADE)  ## Make .venv with kvexp and its tools; nothing to do when it is up to date

$(MADE): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "Installing kvexp and its dependencies into .venv; this takes a minute or more."
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: $(READY)  ## Measure: experiment=quickstart, or what ARGS="..." says
	@$(RUN) -m kvexp $(ARGS)

report: $(READY)  ## Make a page of the last sweep, or of SWEEPS="multirun/... ..."
	@$(RUN) -m kvexp report $(SWEEPS)

baseline: $(READY)  ## Measure experiment=gate, 5 processes a curve, as this GPU's baseline: baselines/<gpu>/
	@$(RUN) -m kvexp baseline $(TYPED)

gate: $(READY)  ## Measure the same again; fails where it is slower, broken or missing
	@$(RUN) -m kvexp gate $(TYPED)

# Alone, resume=true repeats what the last sweep was typed with.
resume: $(READY)  ## Continue the last sweep; what is right in it is not measured again
	@$(RUN) -m kvexp resume=true $(TYPED)

doctor: $(READY)  ## Say what this machine can run, and why not
	@$(RUN) -m kvexp doctor

test: $(READY)  ## Run the tests that need no GPU
	$(RUN) -m pytest tests --ignore=tests/gpu --numprocesses=$(JOBS) --dist=worksteal

test-reliability: $(READY)  ## Run the tests of faults, the long ones too: 50 kills, 24 writers (minutes)
	$(RUN) -m pytest tests/reliability -m "slow or not slow" --numprocesses=$(JOBS)

test-cluster: $(READY)  ## Install Ray, and run the tests of Ray and Slurm (slurm-wlm and munge, as root)
	@$(RUN) -m pip install --quiet --constraint constraints.txt ray
	$(RUN) -m pytest tests/sweep/test_ray.py tests/sweep/test_slurm.py

lint: $(MADE)  ## Check style, formatting, types and who imports whom
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(DOCS)  ## Build the pages of docs/ into site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "Open site/index.html in a browser."

$(DOCS): $(MADE)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

test-gpu: $(READY)  ## Run the tests that need an NVIDIA GPU: GPU_JOBS at a time, then those that measure
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("make test-gpu needs an NVIDIA GPU that torch can use, and this machine has none; make test needs none.")'
	@failed=0; \
	jobs="$$($(RUN) -c 'import xdist' 2>/dev/null && echo --numprocesses=$(GPU_JOBS) --dist=loadgroup)"; \
	set -x; \
	$(RUN) -m pytest tests/gpu -m 'not alone and not slow' $$jobs || failed=1; \
	$(RUN) -m pytest tests/gpu -m 'alone and not slow' || failed=1; \
	exit $$failed

targets: $(READY)  ## Measure on a GPU what the kernels shall reach (docs/kernels.md); WORDS="fp8 diffkv" for some of it
	@$(RUN) -m tests.gpu.targets "$(TARGETS)" $(WORDS)

profile: $(READY)  ## Print the ncu command for ARGS="impl=cuda workload.num_tokens=1024" and the like
	@echo "ncu --profile-from-start off --target-processes all --set full $(RUN) -m kvexp timer=profile tracking=none $(ARGS)"

ui: $(READY)  ## Show the tracked runs at http://127.0.0.1:5000 (PORT=... for another port)
	@$(RUN) -m kvexp ui "$(MLRUNS)" --port $(PORT)

clean:  ## Remove build output and caches; .venv and the results in multirun/ and mlruns/ stay
	rm -rf build dist site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find src tests -type d \( -name __pycache__ -o -name '*.egg-info' \) -prune -exec rm -rf {} +
