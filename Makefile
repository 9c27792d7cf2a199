# Every target works from a fresh clone with Python >= 3.11 and make alone.

PYTHON ?= python3
VENV ?= .venv
# PyPI's torch for Linux brings CUDA. Where another index has CPU builds: make TORCH_INDEX=https://... demo
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PORT ?= 8019
ARGS ?=
# Test files that run in parallel: much of their time is waiting.
TESTERS ?= 4
# Tests start processes by the hundred; where the shell forbids it, each of them would compile its modules anew.
TESTED = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

BIN := $(VENV)/bin
BROWSER := tests/browser/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# Without --quiet, with which --strict sees no warnings. The variable silences an advertisement.
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
# Processes that make started end with make, however it ends.
LEASH = exec $(BIN)/python -m serinette.leash $$PPID --
CODE := serinette api controller gpu_worker tests scripts benchmarks tools examples

.DEFAULT_GOAL := help
.PHONY: help demo up test verify chaos lint docs format bench bench-gpu load scaling openapi settings compatibility clean music-box music-box-eval chart manifests lock release

help:  ## This list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/local.stamp  ## Generate one song on this machine, into demo.mp3 (PORT=8019).
	@$(LEASH) $(BIN)/serinette demo --port $(PORT)

up: $(VENV)/local.stamp  ## Start the server (PORT=8019).
	@$(LEASH) $(BIN)/serinette up --port $(PORT)

test: $(VENV)/dev.stamp $(BROWSER)  ## Run all tests but the longest on real Valkey, SeaweedFS and processes (ARGS=-k word).
	$(TESTED) -n $(TESTERS) --dist loadfile -m "not load" --junitxml=build/tests.xml $(ARGS)

verify: $(VENV)/dev.stamp $(BROWSER)  ## Run what takes too long for every change, into docs/verification.md (ARGS=chaos: some).
	$(BIN)/python -m scripts.verify $(ARGS)

N ?= 500
SEED ?= 1

chaos: $(VENV)/dev.stamp  ## Kill every process at random under N=500 jobs (SEED=1); no job may be lost, stuck or doubled.
	$(BIN)/python -m tests.chaos --jobs $(N) --seed $(SEED) $(ARGS)

lint: $(VENV)/dev.stamp $(BROWSER)  ## Check style, types, import rules, sizes, figures, links, cited paths, the site and the studio.
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_sizes.py
	$(BIN)/python scripts/check_benchmarks.py
	$(BIN)/python scripts/check_links.py
	$(BIN)/python scripts/openapi.py --check
	$(BIN)/python scripts/settings.py --check
	$(BIN)/python scripts/compatibility.py --check
	$(SITE)
	@if command -v npm >/dev/null; then npm run --prefix tests/browser --silent lint; else echo "The studio is not checked: that needs npm"; fi

docs: $(VENV)/dev.stamp  ## Build the site of these pages into build/site; a broken link or a reference to another host is an error.
	$(SITE)

format: $(VENV)/dev.stamp  ## Format the code.
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/dev.stamp  ## Measure, into benchmarks/results/.
	$(BIN)/python -m benchmarks $(ARGS)

load: $(VENV)/dev.stamp  ## Check that nothing is left of 100,000 jobs after retention (JOBS=100000).
	JOBS=$(or $(JOBS),100000) $(BIN)/python -m benchmarks forgetting

# With PYTHON, that one's torch, diffusers and transformers are measured, whatever is pinned here.
ifeq ($(origin PYTHON),file)
bench-gpu: $(VENV)/dev.stamp
endif
bench-gpu:  ## Measure the full-size model on a GPU in ten minutes (PYTHON=python3: with its torch, nothing installed).
	$(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON)) -m benchmarks.engine.gpu $(ARGS)

scaling: $(VENV)/dev.stamp  ## Simulate a trace under the chart's scaling; recommends J (ARGS="k8s --trace burst").
	$(BIN)/python -m tools.scaling $(or $(ARGS),k8s)

openapi: $(VENV)/dev.stamp  ## Regenerate the gateway's OpenAPI document.
	$(BIN)/python scripts/openapi.py

settings: $(VENV)/dev.stamp  ## Regenerate the page of all settings.
	$(BIN)/python scripts/settings.py

compatibility: $(VENV)/dev.stamp  ## Regenerate the tables of other servers' fields.
	$(BIN)/python scripts/compatibility.py

clean:  ## Remove what the other targets made, except songs and serinette-data.
	rm -rf $(VENV) tests/browser/node_modules tests/browser/build build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

# Only where there is npm: browser tests and checks of the studio's code.
$(BROWSER): tests/browser/package-lock.json
	@if command -v npm >/dev/null; then npm ci --prefix tests/browser --silent && touch $@; fi

$(VENV)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Serinette needs Python 3.11 or newer, \
	and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "Making $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/torch.stamp: $(VENV)/venv.stamp
	@echo "Installing $(TORCH) (once; the largest part)"
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/local.stamp: $(VENV)/torch.stamp pyproject.toml
	@echo "Installing Serinette and what it runs on (again whenever pyproject.toml changes)"
	@$(PIP) --editable '.[local]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	@echo "Installing Serinette and what its tests and checks need (again whenever pyproject.toml changes)"
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/local.stamp

MINUTES ?= 60

music-box: $(VENV)/music-box.stamp  ## Train the bundled model; resumes build/music-box (MINUTES=60).
	$(BIN)/python -m tools.music_box.training build/music-box --minutes $(MINUTES)
	$(BIN)/python -m tools.music_box.packing build/music-box

music-box-eval: $(VENV)/music-box.stamp  ## Measure the bundled model on 100 held-out prompts, into docs/.
	$(BIN)/python -m tools.music_box.evaluation --out docs

$(VENV)/music-box.stamp: $(VENV)/torch.stamp pyproject.toml
	@$(PIP) --editable '.[music-box]'
	@touch $@

# For clusters. BUILD: arguments of podman build or docker build.
REGISTRY ?=
BUILD ?=

chart: $(VENV)/dev.stamp  ## Check the chart: lint, schemas, KEDA, security, Dockerfiles, k8s/.
	$(BIN)/python -m scripts.chart_checks

manifests: $(VENV)/dev.stamp  ## Render the chart into k8s/, and its README from its values.
	$(BIN)/python -m scripts.manifests
	$(BIN)/python -m scripts.chart_readme

lock: $(VENV)/dev.stamp  ## Update the pinned packages of the images (ARGS=--keep: only what must change).
	$(BIN)/python -m scripts.lock $(ARGS)

release: $(VENV)/dev.stamp  ## Build images, SBOMs and chart, and push them (REGISTRY=registry.example.com/you).
	@test -n "$(REGISTRY)" || { echo "Where to? make release REGISTRY=registry.example.com/you"; exit 2; }
	$(BIN)/python -m scripts.release $(REGISTRY) -- $(BUILD)
