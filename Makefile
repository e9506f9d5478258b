# Every command of the project; `make` alone lists them. What a value says is never evaluated, neither by make (the
# loop below takes it as it was typed) nor by the shell (recipes read it from the environment, in quotes).
INPUTS := CONFIG RUN SOURCE DATA FIT TEMPERATURES FORMAT WHICH TRAJECTORY FRAMES LAUNCHER RANKS SET DRY_RUN LOGS SEEDS COUNT BEST GPU MPI HOROVOD PYTHON JOBS QUICK
$(foreach name,$(INPUTS),$(eval override $(name) := $$(value $(name))))
export $(INPUTS)
ifneq ($(LOGS),)
export GLASS_LOGS := $(LOGS)
endif

IN_VENV := PATH="$$PWD/.venv/bin:$$PATH"
GLASS := .venv/bin/glass
STUDY := $${CONFIG:+"$$CONFIG"}
PAGE := glass_cnn/report/templates
DENO := DENO_NO_UPDATE_CHECK=1 DENO_DIR=.venv/deno deno
SETS := $${SET:+--set "$$SET"}

.DEFAULT_GOAL := help
.PHONY: FORCE setup doctor submit status watch cancel aggregate report data-report baselines evaluate visualize predict \
        export export-frames verify import schema reference test check docs bench torture horizon slurm-up slurm-down help clean

setup: .venv/.ready ## make .venv (GPU=1, MPI=site, HOROVOD=0, PYTHON=path); every other target does it when needed
	@$(if $(filter setup,$(MAKECMDGOALS)),echo ".venv is ready")

doctor: setup ## what this machine offers: versions, MPI ranks that start, LAMMPS styles, GPU, Slurm
	@$(GLASS) doctor

submit: setup ## a whole study: CONFIG=jobs/x.yaml [LAUNCHER=auto|local|slurm RANKS=n SET="a.b=c ..." DRY_RUN=1 LOGS=dir]
	@$(GLASS) submit $(STUDY) $${LAUNCHER:+--launcher "$$LAUNCHER"} $${RANKS:+--ranks "$$RANKS"} \
	    $(SETS) $(if $(filter-out 0,$(DRY_RUN)),--dry-run)

status: setup ## a table of runs, once [CONFIG=...]
	@$(GLASS) status $(STUDY)

watch: setup ## the same, live
	@$(GLASS) status $(STUDY) --watch

cancel: setup ## stop a study's runs at a checkpoint: CONFIG=...
	@$(GLASS) cancel $(STUDY)

aggregate: setup ## run directories to a table and statistics: CONFIG=...
	@$(GLASS) aggregate $(STUDY) $(SETS)

report: setup ## the table to report.html and results_log.md: CONFIG=... or several, CONFIG="a b"
	@$(GLASS) report $(STUDY) $(SETS)

data-report: setup ## a page about data alone: DATA=logs/datasets/<name> or a study [SET="a.b=c ..."]
	@$(GLASS) data-report $${DATA:+"$$DATA"} $(SETS)

baselines: setup ## what energies, distances, order and spectra alone tell of a study's data: CONFIG=...
	@$(GLASS) baselines $(STUDY) $(SETS)

evaluate: setup ## a saved model on validation and test, or other data: RUN=logs/<study>/runs/<run> [DATA=dir or study]
	@$(GLASS) evaluate $${RUN:+"$$RUN"} $${DATA:+--data "$$DATA"}

visualize: setup ## what a saved model sees: RUN=...
	@$(GLASS) visualize $${RUN:+"$$RUN"}

predict: setup ## a saved model on images or frames without labels: RUN=... SOURCE=file or dir [FIT=crop|resize TEMPERATURES=2:0.05]
	@$(GLASS) predict $${RUN:+"$$RUN"} "$$SOURCE" $${FIT:+--fit "$$FIT"} $${TEMPERATURES:+--temperatures "$$TEMPERATURES"}

export: setup ## a saved model for other programs: RUN=... FORMAT=keras|savedmodel|onnx|safetensors [WHICH=best|latest]
	@$(GLASS) export $${RUN:+"$$RUN"} $${FORMAT:+--format "$$FORMAT"} $${WHICH:+--which "$$WHICH"}

export-frames: setup ## data for OVITO: CONFIG=... [FORMAT=gsd|xyz] or one cooling anew [TRAJECTORY=number FRAMES=50]
	@$(GLASS) export-frames $(STUDY) $${FORMAT:+--format "$$FORMAT"} $${TRAJECTORY:+--trajectory "$$TRAJECTORY"} \
	    $${FRAMES:+--frames "$$FRAMES"} $(SETS)

verify: setup ## audit a run by replay: RUN=... [RANKS=as many as it had COUNT=parts trained again BEST=1]
	@$(IN_VENV) $${RANKS:+mpiexec -n "$$RANKS"} $(GLASS) verify $${RUN:+"$$RUN"} $${COUNT:+--count "$$COUNT"} $(if $(filter-out 0,$(BEST)),--best)

import: setup ## a data set from images or trajectory files: SOURCE=dir CONFIG=... [SET="a.b=c ..."]
	@$(GLASS) import "$$SOURCE" $(STUDY) $(SETS)

schema: setup ## the JSON schema of study files, for editors
	@$(GLASS) schema

reference: setup ## docs/settings.md, docs/columns.md and jobs/study.schema.json anew from the code
	@$(GLASS) reference

test: .venv/.ready-dev ## all tests; QUICK=1: those that need no ranks, LAMMPS or Slurm, in a minute
	@$(IN_VENV); two="-n 2 --dist loadfile --no-loadscope-reorder"; python -m pytest -m "not slow and not slurm" $$two$(if $(filter-out 0,$(QUICK)),, && \
	    python -m pytest -m "slow and not slurm" $$two && python -m pytest -m slurm $$two)

check: .venv/.ready-dev ## format, lint, types, shell scripts and the page's script and style
	@$(IN_VENV); ruff format --check . && ruff check . && mypy && shellcheck slurm/*.sh requirements/*.sh .ci/run && \
	    $(DENO) fmt --check --no-config --line-width 100 $(PAGE)/*.js $(PAGE)/*.css && \
	    $(DENO) lint --no-config --rules-include=eqeqeq,no-var $(PAGE)/*.js

docs: .docs/.ready ## the documentation as pages that open from disk; every link is checked
	@NO_MKDOCS_2_WARNING=1 .docs/bin/python -m mkdocs build --strict && echo .docs/site/index.html

bench: .venv/.ready-dev ## all benchmarks, each against a peer, into one table (forty minutes; QUICK=1: five)
	@$(IN_VENV) .venv/bin/python -m benchmarks $(if $(filter-out 0,$(QUICK)),--quick)

torture: setup ## faults injected into real runs until COUNT of them are survived
	@$(IN_VENV) .venv/bin/python -m tests.torture $${COUNT:+--count "$$COUNT"}

horizon: ## what breaks with the newest TensorFlow and the newest of everything else, in a copy of this clone
	@sh requirements/horizon.sh

slurm-up: ## a real Slurm of several nodes on this machine
	@bash slurm/cluster.sh up

slurm-down: ## stop it again
	@bash slurm/cluster.sh down

clean: ## remove the environment and tool caches, never results
	@rm -rf .venv .docs .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## this list
	@awk -F ': [^#]*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

# Older than a pin, made in another place, its interpreter gone, or options given: let install.py look closer. First
# what the commands were given is looked at: set-up can take minutes.
STALE := $(if $(wildcard .venv/bin/python),,FORCE) $(if $(wildcard .venv/bin/glass),,FORCE) $(if $(GPU)$(MPI)$(HOROVOD)$(PYTHON),FORCE) \
         $(if $(findstring "root": "$(CURDIR)",$(file <.venv/.ready)),,FORCE)
STUDY_COMMANDS := $(filter submit status watch cancel aggregate report data-report baselines import evaluate visualize predict export export-frames verify,$(MAKECMDGOALS))
.venv/.ready: $(filter-out %/dev.txt,$(wildcard requirements/*.txt requirements/*.py)) $(STALE)
	@python=$$(sh requirements/python.sh) && "$$python" -m requirements.inputs $(STUDY_COMMANDS) && \
	    "$$python" -m requirements.install $${GPU:+--gpu "$$GPU"} $${MPI:+--mpi "$$MPI"} \
	        $${HOROVOD:+--horovod "$$HOROVOD"} $${PYTHON:+--python "$$PYTHON"}

# An environment of its own, small, for none of it is needed by any job.
.docs/.ready: requirements/extras/docs.txt
	@echo "docs: packages from PyPI into .docs"
	@python=$$(sh requirements/python.sh) && "$$python" -m venv --clear .docs && \
	    .docs/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# What only tests, checks and benchmarks need besides.
.venv/.ready-dev: .venv/.ready requirements/dev.txt requirements/extras/mdanalysis.txt
	@python=$$(sh requirements/python.sh) && "$$python" -m requirements.install --dev
