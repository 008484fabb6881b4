# Two commands set up everything: `make run` (device runtime and demo), `make test` (everything, then all checks).
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test check figures clean

run: .venv/run
	$(BIN)/fsvit-edge run demo

test: .venv/test
	$(MAKE) check

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest

figures: .venv/test
	$(BIN)/python benchmarks/figures.py

.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[demo]"
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache
