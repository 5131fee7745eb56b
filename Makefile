# Two commands set everything up: `make repro` and `make test`. `make help` lists the rest.

VENV    := .venv
PYTHON  ?= python3
BIN     := $(CURDIR)/$(VENV)/bin
READY   := $(VENV)/.ready
# DVC starts `python` from the PATH, so the environment comes first in it.
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help repro findings study why own paper-quick check-videos power model verify flow serve ui sync bench test test-faults test-cluster test-e2e graph lint lock audit sbom clean

help: ## list the commands
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-13s %s\n", $$1, $$2}'

# Redone only when the lock changes. uv where it is, pip where not. The lock names all that is needed, so neither
# resolves anything: pip before 23.3 fails at that where a package is asked for with extras. pip compiles on one core for
# a minute and a half; without it, Python compiles what it imports, at the first import.
$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"Python 3.11 to 3.13 is needed, this is {v[0]}.{v[1]}; name another: make PYTHON=python3.12")'
	@if command -v uv >/dev/null; then \
		uv venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV) && \
		VIRTUAL_ENV="$$PWD/$(VENV)" uv pip sync --require-hashes --compile-bytecode requirements.lock; \
	else \
		$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo "error: $(PYTHON) cannot make environments; install its package: apt install python$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv" >&2; exit 1; }; \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --no-compile --no-deps --require-hashes --requirement requirements.lock; \
	fi
	@touch $@

# DVC's own command, after what a killed one may have left is put right.
DVC := python -m flows.dvc

repro: $(READY) ## run the embedded suite up to its report
	$(DVC) repro
	@echo "report: $$PWD/out/avsynth/report/index.html"

findings: $(READY) ## run the findings/ suite: every claim with power; hours
	$(DVC) repro findings/dvc.yaml
	@echo "report: $$PWD/out/findings/report/index.html"

# The suite that a command is about: the embedded one (.), findings, paper or own.
SUITE   ?= .
PARAMS  := $(if $(filter .,$(SUITE)),params.yaml,$(SUITE)/params.yaml)
DVCFILE := $(if $(filter .,$(SUITE)),,$(SUITE)/dvc.yaml:)

study: $(READY) ## run one study, then figures and report: make study STUDY=xia [SUITE=paper]
	@targets=$$(python -m avdistill.config.studies $(PARAMS) $(STUDY)) && $(DVC) repro $$targets
	$(DVC) repro --single-item $(DVCFILE)cost $(DVCFILE)figures $(DVCFILE)report

why: $(READY) ## explain why stages would run now: make why [STAGE=train@kd] [SUITE=paper]
	@python -m flows.why $(if $(filter .,$(SUITE)),,$(SUITE)/)dvc.yaml $(STAGE)

power: $(READY) ## print which effects the claims of an evaluated suite could find with more seeds: make power [SUITE=paper]
	@python -m avdistill.reporting.power $(PARAMS)

paper-quick: $(READY) ## try the machine: two epochs of two jobs of the paper suite on UCF51
	dvc exp run --name quick paper/dvc.yaml:evaluate@uni_modal paper/dvc.yaml:evaluate@mnf_csc \
		--set-param paper/params.yaml:recipes.xia_ucf51.epochs=2

check-videos: $(READY) ## list a suite's corrupt, empty, silent and unavailable videos: make check-videos [SUITE=paper]
	$(DVC) repro $(DVCFILE)split
	python -m avdistill.reporting.check_videos $(PARAMS)

DATASET ?= avsynth
PORT    ?= 5001
model: $(READY) ## serve the best student on 127.0.0.1: make model [DATASET=avsynth] [PORT=5001]
	exec env MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///mlflow.db} \
		python -m flows.model $(DATASET) --port $(PORT)

override MODEL := $(value MODEL)
export MODEL
verify: $(READY) ## follow an exported model back to dvc.lock: make verify MODEL=out/avsynth/export/avsynth (or models:/student-avsynth@best)
	@python -m avdistill.serving.verify

# The shell reads both from the environment: a name may hold whatever it likes. The teacher comes first, because an error
# of its download is best known before hours of decoding.
override VIDEOS := $(value VIDEOS)
override TEACHER := $(value TEACHER)
export VIDEOS TEACHER
own: $(READY) ## run the own/ suite on your videos: make own VIDEOS=/some/folder (<class>/<clip>.<video type>) [TEACHER=avsynth]
	@test -d "$$VIDEOS" || { echo "error: VIDEOS: '$$VIDEOS' is not a folder; expected make own VIDEOS=/some/folder" >&2; exit 1; }
	@test -L own/videos || ! test -e own/videos || { echo "error: own/videos is a folder itself; move it away, or use it by: dvc repro own/dvc.yaml" >&2; exit 1; }
	@ln -sfn -- "$$(realpath -- "$$VIDEOS")" own/videos
	@python -m avdistill.data.datasets.folder own/videos
	@test -z "$$TEACHER" || python -m avdistill.config.editing own/params.yaml teachers.audio.weights "$$TEACHER"
	$(DVC) repro own/dvc.yaml:teachers
	$(DVC) repro own/dvc.yaml
	@echo "report: $$PWD/out/own/report/index.html"

flow: $(READY) ## run the embedded suite as a Prefect flow, independent stages side by side
	python -m flows.paper

serve: $(READY) ## start MLflow, Prefect, a worker and all deployments of prefect.yaml; Ctrl-C stops them
	python -m flows.serve

ui: $(READY) ## start the pages of MLflow and Prefect; Ctrl-C stops them
	python -m flows.ui

sync: $(READY) ## send to MLflow the runs that it does not have yet
	python -m avdistill.tracking sync params.yaml

bench: $(READY) ## run the benchmarks, write docs/benchmarks.md: make bench [ALL=1 [AGAINST=COMMIT]] (ALL: also the whole suite, half an hour; AGAINST: also that of COMMIT)
	python -m benchmarks $(if $(ALL),--suite) $(if $(AGAINST),--against $(AGAINST))

test: $(READY) ## run all tests, or some: make test [TESTS=tests/models]
	python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(TESTS)

test-faults: $(READY) ## test kills, full disks, damaged files, overload (half an hour), write docs/robustness.md
	python -m pytest tests/faults tests/flows tests/pipeline -m faults -n 0
	python -m tests.faults.table

# Prefect's worker for Kubernetes and the schemas of its API are not in the lock: they come on top of the environment, in
# a folder that is deleted afterwards.
test-cluster: $(READY) ## test a suite on Slurm (needs Debian's slurm-wlm), and the files for Kubernetes (downloads packages)
	@folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && python -m venv "$$folder" && \
		python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
			> "$$(echo "$$folder"/lib/python*/site-packages)/environment.pth" && \
		"$$folder/bin/python" -m pip install --quiet prefect-kubernetes==0.8.0 kubernetes-validate==1.37.0 && \
		"$$folder/bin/python" -m pytest tests/flows/test_kubernetes.py -m cluster -n 0
	python -m pytest tests/flows/test_slurm.py -m cluster -n 0

test-e2e: $(READY) ## test the pages of MLflow, Prefect and the report in headless Chromium, screenshots in out/browser
	python -m pytest tests/browser -m browser -n 0

graph: ## copy dvc.yaml to the other suites; run it after an edit
	for suite in findings own paper; do cp dvc.yaml $$suite/dvc.yaml; done

lint: $(READY) ## check style and types
	ruff check
	ruff format --check
	mypy

lock: ## resolve the dependencies of pyproject.toml again (needs uv)
	uv pip compile --quiet --universal --fork-strategy fewest --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --group dev --group bench --group browser pyproject.toml --output-file requirements.lock

audit: ## look the locked packages up for known vulnerabilities (needs uv and the network)
	uvx pip-audit@2.10.1 --strict --disable-pip --require-hashes --requirement requirements.lock

sbom: ## write out/sbom.json, a CycloneDX list of the locked packages (needs uv)
	@mkdir -p out
	uvx --from cyclonedx-bom==7.5.0 cyclonedx-py requirements requirements.lock --output-file out/sbom.json

clean: ## delete all outputs, not the environment
	rm -rf out mlflow.db mlflow.db.lock mlartifacts dvc.lock findings/dvc.lock own/dvc.lock paper/dvc.lock .dvc/cache .dvc/tmp
