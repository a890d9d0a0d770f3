# The only commands that a newcomer must know: make setup | test | check | demo | bench
PYTHON ?= python3
BIN := .venv/bin
DATA ?= digits

.PHONY: setup test check demo bench

# The stamp is remade when what is to be installed changes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13) and "ffedge needs Python 3.10 to 3.13; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

setup: .venv/ready

test: .venv/ready
	$(BIN)/pytest -q

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: .venv/ready
	$(BIN)/ffedge demo --json

# make bench DATA=<folder with MNIST's IDX files> for the table in benchmarks/RECORDS.md
bench: .venv/ready
	$(BIN)/python -m benchmarks.train --model mlp --data $(DATA) --methods bp-fp32,ff-int8 --epochs 8 --seeds 0 --json var/bench.json

# The slow tests at full size; their figures go to benchmarks/RECORDS.md.
.PHONY: torture
torture: .venv/ready
	$(BIN)/pytest -q tests/test_end_to_end.py -k kill_9 --kill-cycles 20 --timeout 900
