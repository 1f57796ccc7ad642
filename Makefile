# Two commands: `make run` (everything, on the illustrated world) and `make test`. Both set up what they need.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Fewer system calls and no busy waiting while small models sample and train on a CPU
export OMP_WAIT_POLICY ?= PASSIVE
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_MMAP_MAX_ ?= 0
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: run test check setup up down pretrain torture clean help
help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.ready  ## virtual environment with the locked packages (compiled once, so that every stage starts quickly)
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps k-diffusion==0.0.16  # for one test; its own dependencies are not needed
	touch $@

run: setup  ## the whole pipeline on the illustrated world; ends with the path of its report
	$(BIN)/python -m flows

test: setup  ## all tests: offline, on the CPU, two files at a time (many wait for servers)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: setup  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

up: setup  ## the platform on this machine: Postgres, S3, MLflow and Prefect servers, worker, editor service; prints addresses
	$(BIN)/python -m infra.local up

down: setup  ## end what `make up` started; its data stays in work/infra
	$(BIN)/python -m infra.local down

pretrain: setup  ## train the embedded models (hours; resumes)
	$(BIN)/python -m flows.pretrain

torture: setup  ## kill the dataset stages and training at 150 random instants: same bits, no reply paid twice (half an hour)
	$(BIN)/python -m tests.torture --kills 100 --train-kills 50

clean:  ## remove what runs made; the environment, and in work/ what cannot be made again for nothing (replies, votes, registry), stay
	rm -rf data models reports dvc.lock work/pairs work/validate work/train work/register
