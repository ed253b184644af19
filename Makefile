# pathgen: `make repro` runs the pipeline, `make test` passes the tests. `make help` lists the rest.
PYTHON  ?= python3
PROFILE ?=
VENV    := .venv
READY   := $(VENV)/.ready
WARM    := $(if $(filter Linux,$(shell uname)),pathgen warm )
SHELL   := /bin/bash

export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export PYTHONDONTWRITEBYTECODE := # Empty: each module is compiled once, by the first run that imports it

.PHONY: help env repro real test calibrate lab docs render bench seeds chaos fuzz clean
.DEFAULT_GOAL := help

help: ## List the targets
	@echo "usage: make TARGET [PROFILE=smoke|paper|gpu]"
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  \1\t/' | expand -t 12

env: $(READY) ## Make or refresh the environment in .venv

$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "pathgen needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Installing the environment into $(VENV)"
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@python -m pip install -q --disable-pip-version-check uv
	@uv pip sync -q requirements.txt
	@uv pip install -q --no-deps -e .
	@touch $@

repro: $(READY) ## Run the pipeline (dvc repro), with PROFILE=NAME from that profile
ifneq ($(PROFILE),)
	pathgen profile $(PROFILE)
endif
	@echo "$(WARM)dvc repro"
	@$(WARM)dvc repro || { pathgen doctor | grep ^fail; exit 1; }
	@echo
	@echo "Pairs: data/pairs, explained in data/pairs/README.md"
	@echo "Executed notebooks: data/runs    Numbers: data/metrics (dvc metrics show)"

real: $(READY) ## Run on slides of one's own: profiles/real.yaml, or PROFILE=NAME
	@set -e; for stage in slides reports attributes tile embed select describe revise summarize pairs $(if $(PROFILE),,zeroshot fewshot real); do \
	  echo "> pathgen run $$stage --params profiles/$(or $(PROFILE),real).yaml"; \
	  pathgen run $$stage --params profiles/$(or $(PROFILE),real).yaml; done
	@$(if $(PROFILE),,mkdir -p data/runs && cp data/real/runs/34_real.ipynb data/runs/)

test: $(READY) ## Check notebooks, examples, tests and the smoke profile end to end
	@echo "Repository, modules, and beside them the smoke profile end to end (dvc repro), the site, four stages on a cluster, a small campaign of kills and the examples in the notebooks (nbdev-test)"
	@python -m pytest tests/test_repo.py tests/test_params.py tests

calibrate: $(READY) ## Fit the builtin readers anew to phantom slides of their own
	python -c 'from pathgen.paint import ORGANS; from pathgen.phantom import paint_slides, slide_items; \
	  from pathgen.describe import calibrate; from pathgen.morphometry import write_rules; \
	  paint_slides(slide_items(list(ORGANS), 48, 1, .17, 5376, .25, 4242), "data/calibration/phantom"); \
	  write_rules(calibrate("data/calibration/phantom", "data/calibration/samples"))'

lab: $(READY) ## Open JupyterLab on the notebooks
	jupyter lab --notebook-dir nbs

docs: $(READY) ## Build the site from the notebooks into docs/_build/html
	@cd docs && python -m sphinx -W --keep-going -q -b html . _build/html
	@echo "Open docs/_build/html/index.html"

render: $(READY) ## Write the outputs of the last run into nbs/ and README.md
	python docs/render.py
	python docs/readme.py

bench: $(READY) ## Time reading, encoding and selecting beside other tools
	uv pip install -q --constraints requirements.txt -e '.[bench]'
	pathgen run speed

fuzz: $(READY) ## Send spoilt slides, reports, tables and parameters through the stages
	pathgen run fuzz --params $(if $(wildcard ../shared/data/slides),profiles/real.yaml,params.yaml)
	@$(if $(wildcard ../shared/data/slides),mkdir -p data/runs && cp data/real/runs/82_fuzz.ipynb data/runs/)

seeds: $(READY) ## Repeat the run with two other seeds, for means and deviations over the three
	pathgen seeds

chaos: $(READY) ## Kill the smoke profile at random moments and compare it with a run left alone
	pathgen run chaos

clean: ## Remove what the pipeline and the site made, DVC's cache included
	@test ! -e $(READY) || python -c "$$REMOVE_OUTS"
	rm -rf .dvc/cache .dvc/tmp data/chaos docs/_build docs/*.ipynb docs/images docs/jupyter_execute .pytest_cache

define REMOVE_OUTS
import shutil, yaml
from pathlib import Path
for stage in yaml.safe_load(open('dvc.yaml'))['stages'].values():
    for out in stage.get('outs', []):
        out = Path(out if isinstance(out, str) else next(iter(out)))
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
endef
export REMOVE_OUTS
