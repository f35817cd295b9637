# Each target sets up .venv by itself; nothing happens there when nothing changed.
#
#   make reproduce   train DDFP and its baselines on digit scenes, write a report (8 to 35 minutes)
#   make test        lint, tests, notebooks compared cell by cell                (10 minutes)
#   make notebooks   execute the lessons and store their outputs
#   make soak        all faults and long tests, writes docs/robustness.md        (minutes)
#   make slurm-test  a matrix on a real one-node Slurm, as root; apt: slurm-wlm munge (minutes)
#   make study-report write STUDY.md, RESULTS.md and their figures from stored results (seconds)
#   make bench       speed and memory of estimators and steps, writes bench/RESULTS.md (minutes)
#   make gpu-check   first on a machine with a GPU: does it agree with the CPU, speed, memory (4 minutes)
#   make explorer    pages to play with in a browser, from trained models      (3 minutes)
#   make site        the site: lessons, results, reference, in site/            (2 minutes)
#   make site-test   open each page of both in a browser, at two widths       (minutes)
#   make lint        what `make test` checks first
#   make audit       compare the locked versions with known vulnerabilities
#   make lock        update requirements.lock, and those of convert and site
#   make clean       remove .venv and caches, keep runs

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/ready
SITE_READY := .venv/site-ready
# uv of the machine, or one that is installed here
UV := $(or $(shell command -v uv),.uv/bin/uv)

COMPILE = $(UV) pip compile -q pyproject.toml --universal --python-version 3.11 --no-emit-index-url --no-header
# all extras but `convert`, which brings a graphical toolkit and is locked apart
EXTRAS := notebooks tensorboard lite cluster dev

# what docs/phrases.txt is checked against; the log and stored keys keep their words
PROSE := '*.py' '*.md' '*.yaml' '*.toml' '*.js' '*.html' ':!docs/phrases.txt' ':!reproduce/LOG.md' ':!ddfp_lib/evaluation/descent.py' ':!tests/test_study.py' ':!tests/test_notebooks.py'

.PHONY: help reproduce test notebooks study-report soak slurm-test bench gpu-check explorer site site-test lint audit lock clean

help:
	@sed -n 's/^#   //p' Makefile

reproduce: $(READY)
	$(BIN)/ddfp reproduce digits $(ARGS)

# One thread each: notebooks that run side by side would wait for one another's threads. Bytecode is
# kept even if the environment says otherwise: dozens of processes would compile the same sources.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/python -m pytest -p tests.quick -p no:nbval -n auto --dist loadscope tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.quick --nbval --nbval-current-env --nbval-cell-timeout 600 --nbval-sanitize-with tests/nbval.cfg -n auto --dist loadscope notebooks

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	@! git grep -n -i -w -F -f docs/phrases.txt -- $(PROSE) || { echo "plain English: docs/phrases.txt lists phrases not to use"; exit 1; }

notebooks: $(READY)
	$(BIN)/python -m ddfp_lib.lessons store

soak: $(READY)
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest -p no:nbval -m 'fault or soak' -n auto --dist loadscope \
		--fault-table docs/robustness.md tests

slurm-test: $(READY)
	$(BIN)/pytest -m slurm tests/slurm

study-report: $(READY)
	$(BIN)/ddfp report

bench: $(READY)
	$(BIN)/python -m bench

gpu-check: $(READY)
	$(BIN)/python -m bench.gpu_check $(ARGS)

explorer: $(READY)
	$(BIN)/python -m ddfp_lib.explorer site/explorer

# takes the pages of `make explorer` as they are
site: $(SITE_READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/site/build.py site

site-test: $(SITE_READY)
	$(BIN)/pytest -p no:cacheprovider docs/site/browser

# strict: a package that could not be checked is a failure too
audit: | $(UV)
	$(UV) tool run pip-audit --strict --no-deps --disable-pip -r requirements.lock

lock: $(UV)
	$(COMPILE) $(EXTRAS:%=--extra %) -o requirements.lock
	$(COMPILE) --extra convert -c requirements.lock -o requirements-convert.lock
	$(COMPILE:pyproject.toml=--group pyproject.toml:site) -c requirements.lock -o requirements-site.lock

clean:
	rm -rf .venv .uv build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis

# Compiled here: with PYTHONDONTWRITEBYTECODE, each process that a run or a test starts would compile
# all packages again, 10 seconds of CPU time
$(READY): requirements.lock pyproject.toml | $(UV)
	$(UV) venv -q --allow-existing --python '>=3.11,<3.13' .venv
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(UV) pip install -q --python $(BIN)/python --no-deps -e .
	touch $(READY)

$(SITE_READY): $(READY) requirements-site.lock
	$(UV) pip install -q --compile-bytecode --python $(BIN)/python -r requirements-site.lock
	touch $(SITE_READY)

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/python -m pip install -q uv
