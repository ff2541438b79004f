# Each target first creates the virtual environment .venv, with the versions in constraints.txt, if it is missing.
# Variables: PYTHON (default python3); for `make train` SEED and ARGS (more flags); for `make results` and
# `make cluster-test` ARGS.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed-dev
RUN    := $(VENV)/.installed

.PHONY: train test test-slow cluster-test results check format protos clean

train: $(RUN)
	$(BIN)/qfleet train $(if $(SEED),--seed $(SEED)) $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow --timeout 3600
	$(BIN)/python -m pytest -m "" --nbmake --nbmake-timeout 1200 --timeout 1300 docs/notebooks

cluster-test: $(STAMP)
	$(BIN)/python -m tests.cluster $(ARGS)
	$(BIN)/python -m pytest -m cluster --timeout 1800 tests/cluster

results: $(STAMP)
	$(BIN)/qfleet bench classic $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python -m pytest -o addopts= -q tests/test_docstrings.py

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(STAMP)
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --pyi_out=. protos/replay.proto

$(RUN): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(STAMP): $(RUN)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
