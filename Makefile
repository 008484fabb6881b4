# Two commands set up everything: `make run` (device runtime, demo and page), `make test` (everything, then all checks).
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
# worksteal keeps neighboring tests on one worker, so most fixtures of a module are made once, and evens out the end.
PARALLEL := --numprocesses $(JOBS) --dist worksteal

.PHONY: run test test-all check lint faults soak figures docs release-check clean

run: .venv/run
	$(BIN)/fsvit-edge run demo
	@echo "For fsvit-edge in this shell: source $(BIN)/activate"

test: .venv/test
	$(MAKE) check

check: lint
	$(BIN)/pytest $(PARALLEL) -m "not faults and not soak and not slow"

# The soak watches memory, which grows faster beside other tests, and the fault tests measure times: both run alone.
test-all: .venv/test
	$(MAKE) lint
	$(BIN)/pytest $(PARALLEL) -m "not faults and not soak"
	$(BIN)/pytest tests/faults -m soak -s -p no:cacheprovider
	$(MAKE) faults

lint:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

faults:
	$(BIN)/pytest tests/faults -m "faults and not soak"

soak: .venv/test
	SOAK_MINUTES=60 $(BIN)/pytest tests/faults -m soak -s

# Also makes the tables of README.md and docs/measured/speed.md; on a machine that nothing else uses.
figures: .venv/test
	$(BIN)/python benchmarks/figures.py --pages

docs: .venv/test
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release-check: .venv/test
	$(BIN)/python tools/release_check.py

.venv/run: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[web]"
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache
