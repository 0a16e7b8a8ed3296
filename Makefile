# make demo   train a GPT on the shipped tales (about three minutes on 2 CPU cores), then let it write
# make test   linter, formatter check, types, tests
# make help   all targets
#
# On Linux without a GPU, PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves gigabytes.

PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help demo test lint types unit test-slow format clean

help:
	@sed -n 's/^# //p' $(firstword $(MAKEFILE_LIST)) | head -3
	@echo "make lint types unit test-slow format clean"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp file is younger than the requirements it installed, so a second call is quick.
$(VENV)/demo.stamp: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements.txt
	@touch $@

$(VENV)/test.stamp: requirements-dev.txt requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -r requirements-dev.txt
	@touch $@ $(VENV)/demo.stamp

# --resume goes on after an interruption, starts a first run, and only repeats the summary of a finished one.
demo: $(VENV)/demo.stamp
	$(BIN)/python train.py --run demo --resume
	$(BIN)/python generate.py --checkpoint checkpoints/demo/best.pt --prompt "One morning"

test: lint types unit

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/test.stamp
	$(BIN)/mypy .

# Two at a time, each on one thread: threads of two programs that wait for each other cost more than they compute.
unit: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test-slow: $(VENV)/test.stamp
	$(BIN)/python -m pytest -m slow

format: $(VENV)/test.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
