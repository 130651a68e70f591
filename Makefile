# make demo: set up and run the main job into runs/demo.   make test: set up and run the tests.
PYTHON ?=
VENV ?= .venv
RUN ?= runs/demo
TESTS ?= tests
export PYTHON VENV

.PHONY: demo test lint bench setup

setup:
	@tools/setup.sh

demo: setup
	@$(VENV)/bin/nemo-tapo run --config examples/configs/tapo-tiny-1n0g.yaml output=$(RUN)
	@echo "Open $(RUN)/report.html in a browser, or: $(VENV)/bin/nemo-tapo show $(RUN)"

test: setup lint
	@tools/test.sh $(TESTS)

lint: setup
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/python tools/write_docs.py --check

bench: setup
	@$(VENV)/bin/python tools/bench.py
