# Everything runs from .venv, which `make setup` builds from requirements.lock; every other target does that first.

VENV := .venv
BIN := $(VENV)/bin
DATA ?=
RATE ?=
OUT ?= backtest
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup check format test demo bench accuracy faults soak docs lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## install Python packages into .venv (again only when the lock changes)

check: setup ## format, lint, strict types, import contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup ## put the code into the house format, mend what the linter can
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

test: setup ## all tests (ARGS="-k word" picks some); those on Kafka need java 17 and mvn
	$(BIN)/pytest $(ARGS)

demo: setup ## broker, ticks and daemon, live in this terminal (DATA=file.csv RATE=500 plays a file)
	@$(BIN)/python -m forecaster.demo $(if $(DATA),--data "$(DATA)") $(if $(RATE),--rate $(RATE)) $(ARGS)

bench: setup ## throughput, latency, compute, memory, start-up
	$(BIN)/python -m benchmarks $(ARGS)

accuracy: setup ## backtest every CSV of DATA=folder, keep the scores in docs/accuracy.md (report in OUT=folder)
	$(if $(DATA),,$(error which data? make accuracy DATA=folder))
	$(BIN)/python -m benchmarks.accuracy "$(DATA)" --out "$(OUT)" $(ARGS)

faults: setup ## every fault of the catalogue, several seeds, an hour and more; writes docs/faults.md
	$(BIN)/python -m tests.faults $(ARGS)

soak: setup ## an hour of ordinary work, and whether anything grows (ARGS="--minutes 10"); adds to docs/faults.md
	$(BIN)/python -m tests.faults.soak $(ARGS)

docs: setup ## write what of docs/ is made from the code
	$(BIN)/python tools/docs.py

lock: ## choose newest versions that pyproject.toml allows, write requirements.lock
	sh tools/lock.sh

clean: ## remove .venv and all caches
	rm -rf $(VENV) .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist *.egg-info

$(VENV)/.installed: requirements.lock tools/setup.sh
	sh tools/setup.sh $(VENV)
	@touch $@
