# Everything runs from .venv, which the first target that needs it sets up. Only Python >= 3.11 and make are needed.
PYTHON ?= python3
BIN := .venv/bin
SETUP := .venv/.ready

export OMP_NUM_THREADS ?= $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")

.PHONY: demo test test-long lint lab ui setup

setup: $(SETUP)

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'compresskit needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,export]"
	touch $@

demo: $(SETUP)  ## the main job on bundled data, about 6 minutes on 2 cores
	$(BIN)/compresskit pipeline params/pipelines/demo.yaml
	$(BIN)/compresskit compare sst2-bundled --at-least models=6 --at-least front=3 \
		--at-least points_over_majority=20 --at-least latency_ratio=3 --at-least traceable=1

test: $(SETUP)  ## no network, no browser, under 15 minutes on 2 cores
	$(BIN)/pytest -n 2 --dist loadgroup -m "not long"

test-long: $(SETUP)  ## browser, fault injection, whole pipelines, Triton's interpreter; under 75 minutes
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[gpu]"
	$(BIN)/pytest -m long

lint: $(SETUP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: $(SETUP)  ## JupyterLab on loopback
	$(BIN)/jupyter lab --ip 127.0.0.1 --notebook-dir .

ui: $(SETUP)  ## MLflow UI on loopback
	$(BIN)/compresskit ui
