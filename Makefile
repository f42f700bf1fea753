# Architecture ablations of a 135M Llama. `make` alone lists what there is.

EXP ?= experiments/demo.yaml
PORT ?= 5000
PYTHON ?= python3
PY := .venv/bin/python
WORKERS ?= -n 2 --dist worksteal
WHAT ?= peers
LOGS ?= training.log $(wildcard tests/golden/baseline-tiny/*.log) experiments/results/first-batch-smollm2-135m.json
RESULTS ?= $(wildcard experiments/results/*-tiny.json)
BENCH := .venv-bench/bin/python
# NULL_GPU_PYTHON=PROGRAM: a Python that has this project's packages with another of torch's builds for cards.
NULL_GPU := $(if $(NULL_GPU_PYTHON),setup,.venv-null-gpu/.ready)
# A file's name is one word for the shell, whatever is in it. ARGS= goes to the command line as it is.
quoted = '$(subst ','\'',$(1))'
FILE = $(call quoted,$(EXP))
OPTIONS := $(if $(BASE),--base $(call quoted,$(BASE))) $(if $(SEEDS),--seeds $(SEEDS)) $(ARGS)
JOBS_OPTION := $(if $(JOBS),--jobs $(JOBS))

# Has a Python of another environment see the packages of .venv too, after its own.
see_venv = $(1) -c 'import pathlib, sys, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "project.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")' \
	"$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

.DEFAULT_GOAL := help
.PHONY: help setup demo plan power baseline reproduce results ablation report evaluate notebooks ui calibrate bench weights test test-slow test-kill test-cuda test-null-gpu golden-equal check gpu-pack gpu gpu-import lock clean

help:  ## this list
	@echo "usage: make TARGET [EXP=experiments/NAME.yaml] [BASE=tiny] [SEEDS=N] [JOBS=N] [ARGS=...]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready  ## make .venv with every pinned package (done by the other targets when needed)

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else "error: Python 3.11 or later is needed, this is %d.%d; name another with PYTHON=" % v[:2])'
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "error: $(PYTHON) lacks venv (on Debian: the package python3-venv)"; exit 1; }
	$(PYTHON) -m venv .venv
	@echo "installing the pinned packages into .venv: some minutes, the first time"
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock || { echo "error: a pinned package could not be had; pip says which above"; exit 1; }
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## a small real ablation on the CPU, to its verdict
	$(PY) -m runners run experiments/demo.yaml --device cpu $(OPTIONS) $(JOBS_OPTION)

plan: setup  ## what EXP would run, what it costs, what it could see
	$(PY) -m runners plan $(FILE) $(OPTIONS) $(JOBS_OPTION)

power: setup  ## which effect how many blocks show, on EXP's base
	$(PY) -m runners power $(FILE) $(OPTIONS)

baseline: setup  ## the baseline, stopped before its end and resumed, and its training.log (BASE=tiny on a CPU)
	$(PY) -m runners train experiments/baseline.yaml control --stop-after -50 $(OPTIONS)
	$(PY) -m runners train experiments/baseline.yaml control $(filter-out --fresh,$(OPTIONS))
	$(PY) -m runners log experiments/baseline.yaml control --out training.log $(if $(BASE),--base $(call quoted,$(BASE)))

reproduce: setup  ## rerun what training.log records, and the first batch at full size (STEPS=, ROWS=, LOGS=)
	$(PY) -m runners reproduce $(LOGS) $(if $(STEPS),--steps $(STEPS)) $(if $(ROWS),--rows $(ROWS)) $(ARGS)

results: setup  ## the results table of README.md, from experiments/results/
	$(PY) -m runners results $(RESULTS) --into README.md

ablation: setup  ## run what is left of EXP, then report
	$(PY) -m runners run $(FILE) $(OPTIONS) $(JOBS_OPTION)

report: setup  ## the verdicts of EXP's finished runs, as a page, and the notebooks on them
	$(PY) -m runners report $(FILE) --notebooks $(OPTIONS)

evaluate: setup  ## probes on EXP's finished runs, or on WEIGHTS=, on the text ON= (ARGS="--probe induction"; "--tasks piqa": lm_eval's)
	$(PY) -m runners evaluate $(if $(WEIGHTS),$(call quoted,$(WEIGHTS)),$(FILE)) $(if $(ON),--on $(call quoted,$(ON))) $(OPTIONS)

notebooks: setup  ## the notebooks in JupyterLab, on 127.0.0.1
	MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" .venv/bin/jupyter lab --ip 127.0.0.1 \
		--notebook-dir analysis/notebooks $$(test "$$(id -u)" != 0 || echo --allow-root) --LabApp.news_url=None \
		--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate $(ARGS)

ui: setup  ## the MLflow UI on 127.0.0.1, PORT=5000
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true .venv/bin/mlflow ui --workers 1 --host 127.0.0.1 --port $(PORT) \
		--backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db}"

calibrate: setup  ## how often verdicts are right, simulated and on the runs of experiments/calibration.yaml
	$(PY) -m runners calibrate experiments/calibration.yaml $(ARGS)

bench: .venv-bench/.ready  ## tokens/s beside transformers, litgpt and torchtitan (WHAT=peers|blocks|scaling|decode|paths|jobs)
	$(BENCH) -m runners bench $(WHAT) $(if $(BASE),--base $(call quoted,$(BASE))) $(ARGS)

# The peers' packages lie over those of .venv, and only `make bench` sees them. torchtitan imports Triton, which comes
# with torch's builds for cards only.
.venv-bench/.ready: .venv/.ready requirements-bench.lock
	$(PY) -m venv .venv-bench
	$(call see_venv,$(BENCH))
	$(BENCH) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-bench.lock
	$(BENCH) -c 'import triton' 2>/dev/null || $(BENCH) -m pip install --quiet --disable-pip-version-check --no-deps triton==3.4.0
	@touch $@

# torch's build for cards lies over the packages of .venv, which it sees by a file that is written last: pip would take
# packages of .venv for its own.
.venv-null-gpu/.ready: .venv/.ready requirements-null-gpu.lock
	$(PY) -m venv .venv-null-gpu
	.venv-null-gpu/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-null-gpu.lock
	$(call see_venv,.venv-null-gpu/bin/python)
	@touch $@

weights: setup  ## fetch SmolLM2-135M-Instruct's published weights into cache/
	$(PY) -m runners weights

test: setup  ## the fast tests
	$(PY) -m pytest $(WORKERS) -m "not slow" $(ARGS)

test-slow: setup  ## the slow tests: real packages, whole sweeps
	$(PY) -m pytest $(WORKERS) -m slow $(ARGS)

test-kill: setup  ## kill -9 at every place there is, not only at those of test-slow
	KILLS=all $(PY) -m pytest $(WORKERS) tests/runners/execution/test_kill.py $(ARGS)

test-null-gpu: $(NULL_GPU)  ## what a GPU run asks of its card, on one that computes nothing (no card needed; 6 GB of packages)
	$(PY) -m pytest $(WORKERS) tests/null_gpu $(ARGS)

test-cuda: setup  ## the tests that need a card, on the first one
	CUDA_TESTS=yes $(PY) -m pytest -m cuda tests/cuda $(ARGS)

golden-equal: setup  ## whether OLD=COMMIT and NEW=COMMIT (HEAD) compute the same losses to the last digit; if so, they count as one
	$(PY) -m tests.golden_equal $(OLD) $(NEW)

check: setup  ## lint, format, types, import directions
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

gpu-pack: setup  ## build/gpu-pack: what make gpu needs on a machine with a card and no network, at most 64 MiB
	$(PY) -m runners gpu-pack $(if $(BASE),--base $(call quoted,$(BASE))) $(ARGS)

# In the packed folder the environment is made of the carried wheels, over what the machine has.
gpu: $(if $(wildcard pack.json),,setup)  ## on a card: tests, bench, experiments, baseline (MINUTES=, PARTS=, BASE=, DEVICE=); again: go on
	$(if $(wildcard pack.json),$(PYTHON) -m runners.gpu.bare,$(PY) -m runners gpu) $(if $(BASE),--base $(call quoted,$(BASE))) \
		$(if $(DEVICE),--device $(call quoted,$(DEVICE))) $(if $(MINUTES),--minutes=$(call quoted,$(MINUTES))) \
		$(if $(PARTS),--parts $(call quoted,$(PARTS))) $(ARGS)

gpu-import: setup  ## enter the results of `make gpu` into this checkout (FROM=gpu-results)
	$(PY) -m runners gpu-import $(call quoted,$(or $(FROM),gpu-results)) $(ARGS)

lock: ## pin the newest versions inside the ranges of pyproject.toml
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet torch==2.13.0 "mlflow>=3.17,<3.18" -e ".[dev]"
	{ echo '# Every version, for Python 3.11 and later. Made by `make lock`: the newest releases inside the ranges of pyproject.toml.'; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu//'; } > requirements.lock
	rm -r .venv-lock

clean:  ## remove the environment and everything cached; runs, reports and mlflow.db stay
	rm -rf .venv .venv-bench .venv-null-gpu cache build *.egg-info
