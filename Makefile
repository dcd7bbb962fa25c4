# Everything happens in a virtual environment in this folder, made when a target first needs it.
#   make train ARGS="--policy mxfp8 --steps 1000"      what metis train takes
#   make test  ARGS="tests/policy -x"                  what pytest takes
#   make test  JOBS=8                                  tests at a time: two unless told, each with a core and 2 GB
#   make test  CPU=avx2                                as on a CPU without AVX-512: see .ci/on-cpu
#   make fuzz  ARGS="--cases 500 --seed 0"             what tests/support/program_fuzzer takes
#   make train PYTHON=/path/to/python3.12              another Python

VENV := .venv
PYTHON ?=
ARGS ?=
CPU ?= native
JOBS ?= 2
MADE_FROM := pyproject.toml constraints.txt .ci/set-up

# Tests share the cores out among themselves: each computes and compiles on one.
PYTEST = .ci/on-cpu "$(CPU)" env OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=1 \
	$(VENV)/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: help train test test-all fuzz lint docs-tables clean

help:
	@echo "make train   train a small GPT in full precision and in FP4, and compare them"
	@echo "make test    run the tests; CPU=avx2 as on a CPU without AVX-512, CPU=avx512 with nothing newer"
	@echo "make test-all   run the tests with their long tail: every format on every GPU, many more random cases"
	@echo "make fuzz    check random small programs under random policies; ARGS=\"--cases 500 --seed 0\" says which"
	@echo "make lint    check style and types"
	@echo "make docs-tables   write the measured numbers in README.md and docs/ anew from benchmarks/results"
	@echo "make clean   remove the environment and what tools left; runs/ stays"
	@echo "The first of them makes the environment ($(VENV)) by itself."

train: $(VENV)/.ready-train
	@$(VENV)/bin/metis train $(ARGS)

test: $(VENV)/.ready-develop
	@$(PYTEST) $(ARGS)

test-all: $(VENV)/.ready-develop
	@$(PYTEST) --long also $(ARGS)

fuzz: $(VENV)/.ready-develop
	@PYTHONPATH=tests/support $(VENV)/bin/python -m program_fuzzer $(ARGS)

lint: $(VENV)/.ready-develop
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/mypy

docs-tables: $(VENV)/.ready-train
	@$(VENV)/bin/python benchmarks/docs_tables.py

$(VENV)/.ready-train: $(MADE_FROM)
	@PYTHON="$(PYTHON)" .ci/set-up $(VENV) train
	@touch $@

$(VENV)/.ready-develop: $(MADE_FROM)
	@PYTHON="$(PYTHON)" .ci/set-up $(VENV) train,test,lint
	@touch $(VENV)/.ready-train $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
