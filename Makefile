# make          this help
# make demo     one whole episode, in the strongest box of this machine
# make test     the tests; all of them: DOJO_REQUIRE=endurance make test
# Python >= 3.11 is found by name; another one: make test PYTHON=/opt/python3.12/bin/python3
# A mirror of the package index: PIP_INDEX_URL=https://mirror.example/simple make demo

PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	$$name -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$name && break; done)
BIN := .venv/bin
READY := .venv/ready
TESTED := .venv/tested

.PHONY: help demo test check bench image clean
.DEFAULT_GOAL := help

help: ## Show the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## Set up and play one episode of digits with the scripted agent
	@$(BIN)/dojo prepare digits
	@$(BIN)/dojo run digits --agent scripted

test: $(TESTED) ## Set up and run the tests; says what was skipped and why
	$(BIN)/python -m pytest -ra

check: $(READY) ## Lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## Print what we claim about speed, measured side by side
	$(BIN)/python -m benchmarks

image: ## Build dojo-kernel:latest for the Docker box (CUDA=1: dojo-kernel:cuda, TEST=1: dojo-kernel:test)
	scripts/image

clean: ## Remove .venv, caches and builds; runs and prepared data stay
	rm -rf .venv .demo dist build kernels/build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with venv found: sudo apt-get install python3 python3-venv" >&2; exit 2; }
	@echo "making .venv with $$($(PYTHON) --version), about a minute"
	@rm -rf .venv
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@$(BIN)/python -m compileall -q dojo_kernel/inside # boxes see it read-only and would compile it at each start
	@touch $@

$(TESTED): $(READY) kernels/requirements-test.txt kernels/requirements-torch.txt kernels/requirements-ray.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r kernels/requirements-test.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r kernels/requirements-torch.txt \
		|| echo "no CPU build of torch on this index: its tests are skipped" >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r kernels/requirements-ray.txt \
		|| echo "no ray for this Python on this index: its tests are skipped" >&2
	@touch $@
