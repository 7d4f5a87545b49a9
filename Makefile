# Every target sets up what it needs in .venv, on a fresh machine too, and says what it does.
PYTHON ?= python3
TORCH ?=
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
OUT ?= out
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check mutate bench bench-check models clean

help: ## show this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## create .venv and install the package with everything its tests need

$(STAMP): pyproject.toml constraints.txt
	@echo "== setting up $(VENV): torch, diffusers and the tools of the tests (a few minutes the first time)"
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),sed -E 's/^torch==.*/torch==$(TORCH)/' constraints.txt > $(VENV)/constraints.txt,cp constraints.txt $(VENV)/constraints.txt)
	$(BIN)/python -m pip install --quiet $$(grep -E '^torch==' $(VENV)/constraints.txt) -c $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet -e '.[diffusers,plot,onnx,train,dev]' -c $(VENV)/constraints.txt
	@touch $@

demo: $(STAMP) ## digits of a trained DiT and of its sparse form; then a real-size DiT-XL/2: sparsify it, check it, report it, time it, draw it
	@echo "== drawing digits with a small DiT that was trained on MNIST, and with its sparse form; half a minute"
	$(BIN)/python -m examples.mnist.demo --out $(OUT)
	@echo "== building DiT-XL/2 (750 M parameters, random weights) and sparsifying it; about two minutes"
	$(BIN)/sparsify demo --out $(OUT)

test: $(STAMP) ## the test suite; make test TORCH=2.11.0 runs it with that torch
	@echo "== running the tests (not the slow ones, see make test-all)"
	$(BIN)/python -m pytest -n 2

test-all: $(STAMP) ## every test, with the slow ones on real-size models
	@echo "== running all tests, the slow ones too"
	$(BIN)/python -m pytest -m ''

check: $(STAMP) ## ruff and mypy
	@echo "== checking style, formatting and types"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

mutate: $(STAMP) ## change one thing in a pass, again and again: do the tests notice? make mutate ARGS="--modules share --all"
	@echo "== testing the tests: a sample of changes to every pass; half an hour to an hour on two cores"
	$(BIN)/python -m tests.mutation --json $(OUT)/mutation.json $(ARGS)

bench: $(STAMP) ## all benchmarks: tables here, numbers and a picture in out/bench; about an hour on two cores
	@echo "== benchmarking: small calls, GFLOPs, forward passes, token counts, whole sampling runs, rewriting, compiling"
	$(BIN)/python -m pytest benchmarks -m '' --benchmark-only --benchmark-disable-gc -p no:xdist
	$(BIN)/python -m benchmarks.flops --json $(OUT)/bench/flops.json
	$(BIN)/python -m benchmarks.time --models dit-256 dit-512 --compile --json $(OUT)/bench/time.json
	$(BIN)/python -m benchmarks.roles --json $(OUT)/bench/roles.json
	$(BIN)/python -m benchmarks.few_rows --json $(OUT)/bench/few_rows.json
	$(BIN)/python -m benchmarks.scaling --picture $(OUT)/bench/scaling.png --json $(OUT)/bench/scaling.json
	$(BIN)/python -m benchmarks.sampling --json $(OUT)/bench/sampling.json
	$(BIN)/python -m benchmarks.import_time --json $(OUT)/bench/import_time.json
	$(BIN)/python -m benchmarks.rewrite_cost --json $(OUT)/bench/rewrite_cost.json
	$(BIN)/python -m benchmarks.compile_cost --json $(OUT)/bench/compile_cost.json

bench-check: $(STAMP) ## fail if a ratio of dense over sparse fell by over 10% against benchmarks/results/baseline.json
	@echo "== measuring ratios of dense over sparse and comparing them with the baseline: about two minutes"
	$(BIN)/python -m benchmarks.check

models: $(STAMP) ## every check on every model of the zoo; writes docs/models.md
	@echo "== running every check on every model of the zoo: about a quarter of an hour"
	$(BIN)/python -m tests.zoo -o docs/models.md

clean: ## remove .venv and everything generated
	rm -rf .venv .venv-torch-* $(OUT) build dist *.egg-info .hypothesis .mypy_cache .ruff_cache
