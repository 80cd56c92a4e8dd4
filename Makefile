# What can be done in this tree; `make help` lists it. Needs python3 with venv, and an
# index for pip; nothing else is downloaded.

PYTHON ?= python3
VENV := .venv
THIN := .venv-thin
BIN := $(VENV)/bin
# Twice quiet: errors only.
PIP_QUIET := -qq --disable-pip-version-check
# Every supported version; those that are not installed are named and left out.
VERSIONS := 3.10 3.11 3.12 3.13
# Three processes: the machines that test this have two cores, and most tests of real
# peers wait for them; with two the cores stood idle for two thirds of the time.
WORKERS ?= 3
# Further arguments for pytest: make test ARGS="-k config"
ARGS ?=

# A tree can be tested through its installed copy only if nothing else shadows it.
unexport PYTHONPATH
.DELETE_ON_ERROR:
.PHONY: help test lint format test-all soak demo demo-edge bench bench-network bench-scaling bench-rivals chaos clean

help: ## list what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | \
	  awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

# The stamp is written last: an installation that was interrupted is begun again.
$(VENV)/installed.stamp: pyproject.toml constraints.txt
	@echo "== $(VENV): creating it with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "== $(VENV): installing activestore[node,torch,pandas,dev,bench]; a minute or two"
	@$(BIN)/python -m pip install $(PIP_QUIET) \
	  -e '.[node,torch,pandas,dev,bench]' -c constraints.txt
	@echo "== $(VENV): ready"
	@touch $@

$(THIN)/installed.stamp: pyproject.toml constraints.txt
	@echo "== $(THIN): a thin client, which has pyzmq and msgpack and nothing else"
	@$(PYTHON) -m venv $(THIN)
	@$(THIN)/bin/python -m pip install $(PIP_QUIET) -e . -c constraints.txt
	@touch $@

# pytest exits with 5 where no test is marked serial (or ARGS picks none): no failure.
test: $(VENV)/installed.stamp ## all tests but the soak tests
	@echo "== tests, $(WORKERS) at a time"
	@$(BIN)/python -m pytest -q -n $(WORKERS) -m 'not serial and not soak' $(ARGS) || \
	  { code=$$?; [ "$$code" = 5 ] && [ -n "$(ARGS)" ] || exit $$code; }
	@echo "== tests that measure time, one by one"
	@$(BIN)/python -m pytest -q -m 'serial and not soak' $(ARGS) || [ $$? = 5 ]

lint: $(VENV)/installed.stamp ## format, lint, types, layers
	@echo "== format"
	@$(BIN)/ruff format --check .
	@echo "== lint"
	@$(BIN)/ruff check .
	@echo "== types"
	@$(BIN)/mypy
	@echo "== layers"
	@$(BIN)/lint-imports

format: $(VENV)/installed.stamp ## format the code in place
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

# Without torch: constraints.txt names one version of it, which is there for the default
# Python only; tests that need it skip.
test-all: ## the tests under every supported Python that is installed
	@missing=""; failed=""; passed=""; \
	for version in $(VERSIONS); do \
	  python=""; \
	  for candidate in "$$(command -v python$$version)" \
	      $$(ls -d $$HOME/.pyenv/versions/$$version.*/bin/python 2>/dev/null | sort -Vr); do \
	    if [ -n "$$candidate" ] && "$$candidate" -c 'import venv, ensurepip' 2>/dev/null; \
	    then python=$$candidate; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then missing="$$missing $$version"; \
	    echo "== $$version: not installed"; continue; fi; \
	  venv=.venv-$$version; \
	  if [ ! -e $$venv/installed.stamp ] || [ pyproject.toml -nt $$venv/installed.stamp ] \
	      || [ constraints.txt -nt $$venv/installed.stamp ]; then \
	    echo "== $$version: installing into $$venv with $$python"; \
	    "$$python" -m venv $$venv && $$venv/bin/python -m pip install $(PIP_QUIET) \
	      -e '.[node,pandas,dev]' -c constraints.txt && touch $$venv/installed.stamp \
	      || { failed="$$failed $$version"; continue; }; \
	  fi; \
	  echo "== $$version: tests"; \
	  $$venv/bin/python -m pytest -q -n $(WORKERS) -m 'not serial and not soak' $(ARGS) \
	    && { $$venv/bin/python -m pytest -q -m 'serial and not soak' $(ARGS) \
	         || [ $$? = 5 ]; } \
	    && passed="$$passed $$version" || failed="$$failed $$version"; \
	done; \
	echo "== passed:$${passed:- none}; failed:$${failed:- none};" \
	  "not installed:$${missing:- none}"; \
	[ -z "$$failed" ] && [ -n "$$passed" ]

soak: $(VENV)/installed.stamp ## hours of fuzzing, killing, cutting and random histories
	@echo "== soak: 1,000,000 fuzzed cases, 500 kills, 1,000 moves, 5,000 seeds a history, 100,000 of registers; hours"
	@ACTIVESTORE_FUZZ_CASES=1000000 ACTIVESTORE_KILLS=500 ACTIVESTORE_SEEDS=5000 \
	  ACTIVESTORE_CUT_S=600 ACTIVESTORE_MOVES=1000 \
	  ACTIVESTORE_REGISTER_HISTORIES=100000 \
	  $(BIN)/python -m pytest -m 'soak or scaled' --timeout 0 $(ARGS)

demo: $(VENV)/installed.stamp $(THIN)/installed.stamp ## edge + edge + cloud: train from a client without torch, kill peers, go on
	@echo "== demo: examples/forecaster on two edge boards and a server"
	@$(BIN)/python examples/forecaster/demo.py --thin-python $(THIN)/bin/python $(ARGS)

demo-edge: $(VENV)/installed.stamp $(THIN)/installed.stamp ## the same on five edge boards without a server; the model moves
	@echo "== demo: examples/forecaster on five edge boards"
	@$(BIN)/python examples/forecaster/demo.py --thin-python $(THIN)/bin/python \
	  --topology five-edges --out out/demo-edge $(ARGS)

bench: $(VENV)/installed.stamp ## our own benchmarks
	@echo "== benchmarks"
	@$(BIN)/python -m pytest bench --ignore bench/rivals --benchmark-only \
	  --timeout 0 -o python_files='bench_*.py test_*.py' $(ARGS)

bench-network: $(VENV)/installed.stamp ## calls over slow and long lines, as a table and a plot; root, some ten minutes
	@echo "== calls over slow and long lines"
	@$(BIN)/python bench/network/run.py $(ARGS)

bench-scaling: $(VENV)/installed.stamp ## bytes, hops and idle traffic over objects and peers, simulated
	@echo "== scaling: 10^2 to 10^6 objects, 2 to 1,000 simulated peers; minutes"
	@$(BIN)/python bench/scaling/run.py $(ARGS)

bench-rivals: $(VENV)/installed.stamp ## the same measurements of other systems, side by side
	@echo "== benchmarks of rivals; each in its own environment"
	@$(BIN)/python bench/rivals/run.py $(ARGS)

chaos: $(VENV)/installed.stamp ## ten minutes of kills, pauses and partitions of real peers; nothing may be lost
	@echo "== chaos: 5 peers, 8 clients, 10 minutes; another length: ARGS='--minutes 2'"
	@$(BIN)/python -m bench.chaos $(ARGS)

clean: ## remove environments, caches and builds
	@echo "== removing .venv*, caches, build, dist"
	@rm -rf .venv .venv-thin .venv-rivals $(addprefix .venv-,$(VERSIONS)) build dist *.egg-info \
	  .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .benchmarks
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
