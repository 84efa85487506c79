# Two commands do all the set-up: `make sweep` (a first result) and `make test` (the checks).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock

.PHONY: sweep shell test clean lock

sweep: $(VENV)/.runtime
	$(BIN)/python run.py quant.bits=4,8 -m

# A shell in which `python` and `mlflow` are those of the environment; `exit` leaves it.
shell: $(VENV)/.runtime
	@echo "python and mlflow are now those of $(VENV). Leave with: exit"
	@. $(BIN)/activate && exec $${SHELL:-/bin/sh}

test: $(VENV)/.development
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# The stamp files make a second call take seconds: pip runs only after a dependency changed.
$(VENV)/.runtime: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if (3, 11) <= v < (3, 14) else "Python 3.11 to 3.13 is needed, this is %d.%d: make PYTHON=python3.12 ..." % v)'
	@echo "Installing into $(VENV) (some minutes and 6 GB the first time) ..."
	$(PYTHON) -m venv $(VENV)
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.development: $(VENV)/.runtime
	$(PIP_INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache

# After a change of the dependencies: pins for Python 3.11 to 3.13, without registry addresses.
lock: $(VENV)/.development
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
	  --extra dev --extra slurm --extra ray --extra export --extra postgres --extra tensorboard --extra timm --extra browser pyproject.toml -o requirements.lock
