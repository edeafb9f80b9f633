# Everything runs from `.venv`, built here; pip's own environment variables are honoured. The environments of real engines
# are in `ENGINES`, and are kept until what they are made from changes: name a folder that outlives the checkout to cache them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
ENGINES ?= .venv-engines

.PHONY: help run test engines test-engines lint format types imports check clean

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,fast]'
	@touch $@

$(VENV)/.dev-installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,dev]'
	@touch $@ $(VENV)/.run-installed

run: $(VENV)/.run-installed  ## install, then serve examples/quickstart.py (ARGS="--port 0" passes arguments on)
	@exec $(BIN)/dynamo-sdk run examples/quickstart.py --end-with-parent $(ARGS)

test: $(VENV)/.dev-installed  ## install, then run the whole test suite and those of the plugins
	$(BIN)/python -m pytest -q $(ARGS)
	$(BIN)/python -m pytest -q -c plugins/vllm/pyproject.toml plugins/vllm/tests/unit
	$(BIN)/python -m pytest -q -c plugins/trtllm/pyproject.toml plugins/trtllm/tests/unit
	$(BIN)/python -m pytest -q -c plugins/sglang/pyproject.toml plugins/sglang/tests/unit

$(ENGINES)/light/bin/python:
	$(PYTHON) -m venv $(ENGINES)/light

engines: $(ENGINES)/light/bin/python  ## build an environment for each real engine, and one with the plugins alone
	$(ENGINES)/light/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . -e plugins/vllm -e plugins/sglang
	PYTHON=$(PYTHON) bash plugins/vllm/environment.sh $(ENGINES)/vllm
	PYTHON=$(PYTHON) bash plugins/sglang/environment.sh $(ENGINES)/sglang

test-engines: engines  ## run the plugins against the real engines, and graphs with them
	LIGHT_PYTHON=$(abspath $(ENGINES))/light/bin/python $(ENGINES)/vllm/bin/python -m pytest -q -c plugins/vllm/pyproject.toml \
		plugins/vllm/tests/real $(ARGS)
	$(ENGINES)/vllm/bin/python -m pytest -q -c plugins/vllm/pyproject.toml --confcutdir tests/transfer tests/transfer/test_nixl.py
	LIGHT_PYTHON=$(abspath $(ENGINES))/light/bin/python VLLM_PYTHON=$(abspath $(ENGINES))/vllm/bin/python \
		$(ENGINES)/sglang/bin/python -m pytest -q -c plugins/sglang/pyproject.toml plugins/sglang/tests/real $(ARGS)

lint: $(VENV)/.dev-installed  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed  ## put the formatting right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev-installed  ## mypy strict, and pyright on the public surface
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(VENV)/.dev-installed  ## rooms import downwards only
	$(BIN)/lint-imports

check: lint types imports test  ## what CI runs

clean:  ## remove what was built
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
