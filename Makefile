.PHONY: run test test-all lint docs bench audit clean

BIN = .venv/bin
INSTALL = $(BIN)/pip install --quiet --constraint constraints.txt --editable

# One command: the environment, then the demo, ending with the leaderboard.
run: .venv/installed
	$(BIN)/chexgenbench run

# A worker for each core; one needs some 4 GB.
WORKERS = logical
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 4 --dist loadscope --no-loadscope-reorder

# Minutes: all but the tests marked slow.
test: lint
	$(PYTEST) -m 'not slow'

# An hour on two cores: whole runs, the demo, kills, containers, Ray; what decides over a change.
test-all: lint
	$(PYTEST) --durations 30

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Writes the generated parts of docs/, then the site: docs/_build/html/index.html.
docs: .venv/installed-dev
	$(BIN)/python docs/generate.py
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# All benchmarks at full size, hours, into the pages of docs/; `benchmarks/run --quick` takes minutes.
bench: .venv/installed-bench
	benchmarks/run

# Known vulnerabilities of the pinned packages; asks the network.
audit: .venv/installed-dev
	$(BIN)/pip install --quiet pip-audit
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

.venv/installed: pyproject.toml constraints.txt
	python3 -m venv .venv
	$(INSTALL) .
	touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) '.[dev]'
	touch $@

.venv/installed-bench: .venv/installed-dev
	$(INSTALL) '.[dev,bench]'
	touch $@

# Images, scores and the store stay.
clean:
	rm -rf .venv build dist docs/_build
