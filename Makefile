# Every target sets itself up (a .venv from pyproject.toml and scripts/constraints.txt) and then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_BASE := trt_qat/demo/detector.safetensors
DEMO_SETTINGS := trt_qat/demo/settings.yaml
DEMO_DATA := runs/demo/data/data.yaml

# Without WEIGHTS and DATA the stages work on the demo: its shipped detector and its generated data.
WEIGHTS ?= $(DEMO_BASE)
DATA ?= $(DEMO_DATA)
NAME ?= $(if $(filter $(DEMO_BASE),$(WEIGHTS)),yolov8n,$(basename $(notdir $(WEIGHTS))))
OUT ?= runs/$(NAME)
ARGS ?=
FUZZ_SECONDS ?= 600
TRAIN_FROM := $(if $(filter $(DEMO_BASE),$(WEIGHTS)),yolov8n.yaml,$(WEIGHTS))
FLAGS := $(if $(filter $(DEMO_BASE),$(WEIGHTS)),--config $(DEMO_SETTINGS)) $(ARGS)

PTQ := calib/$(NAME)_ptq.safetensors
QAT := $(OUT)/qat/best.safetensors
ONNX := engines/$(NAME)_int8.onnx
PLAN := engines/$(NAME)_int8.plan
# The best checkpoint so far: the fine-tuned one, else the calibrated one, which is made if it is not there.
BEST = $(if $(wildcard $(QAT)),$(QAT),$(PTQ))
DATA_FILE := $(filter $(DEMO_DATA),$(DATA))
CALIBRATE = $(BIN)/trt-qat calibrate --weights $(WEIGHTS) --data $(DATA) --out $(PTQ) $(FLAGS)
EXPORT = $(BIN)/trt-qat export $(BEST) --out $(ONNX) $(FLAGS)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow hostile fuzz killed starved gpu-check slim-check release lint types docs docs-serve train calibrate sensitivity qat export engine polygraphy evaluate parity run clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13
	@echo "Variables: WEIGHTS=$(WEIGHTS) DATA=$(DATA) NAME=$(NAME) OUT=$(OUT) ARGS='--set section.key=value'"

$(READY): pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt --no-deps tritonclient
	@touch $@

install: $(READY) ## Create .venv with everything but a GPU driver

demo: $(READY) ## The main job on generated data: FP32 / PTQ INT8 / QAT INT8 on the exported models
	$(BIN)/trt-qat demo --out runs/demo $(ARGS)

test: lint types ## Lint, types and tests (no GPU, no network after installation)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder -m "not slow and not gpu"

test-slow: $(READY) ## The tests that train or need the optional real data, and those for a GPU
	$(BIN)/python -m pytest -m "slow or gpu"

hostile: $(READY) ## Meet every hostile input of tests/hostile with its command; a table, zeros or exit 1
	OMP_NUM_THREADS=1 $(BIN)/python tests/hostile/run.py

fuzz: $(READY) ## Fuzz every parser, FUZZ_SECONDS=600 in all; a table, exit 1 on a finding
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --seconds $(FUZZ_SECONDS)

killed: $(READY) ## Kill `run` at 40 moments in all its stages and compare what it leaves; a table
	$(BIN)/python tests/reliability/killed_runs.py

starved: $(READY) ## The verbs without disk, memory, home or streams; a table
	$(BIN)/python tests/reliability/starved.py

gpu-check: $(READY) ## On a machine with CUDA: all that only a GPU shows, in one file to send back
	PYTHON=$(BIN)/python scripts/gpu_check.sh

slim-check: $(READY) ## Install without torch into a fresh environment: size, time, a picture annotated there
	scripts/slim_check.sh $(BIN) $(PYTHON)

release: $(READY) ## Wheel and source archive into dist/, and the demo from each in a fresh environment
	scripts/release.sh $(BIN) $(PYTHON)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy

# The theme's own announcement is no warning about these pages.
docs: $(READY) ## The documentation to site/, with its reference made of the code; exit 1 on a warning
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(READY) ## The documentation at a local address, made anew whenever a page is saved
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# What a stage needs and is not there is made first, and said. Order-only: an old environment remakes no model.
$(DEMO_DATA): | $(READY)
	@echo "Without DATA: generating traffic signs in $(dir $@)"
	$(BIN)/trt-qat data demo --out $(dir $@)

$(PTQ): | $(READY) $(DATA_FILE)
	@echo "No calibrated checkpoint $@ yet: calibrating $(WEIGHTS) first"
	$(CALIBRATE)

$(ONNX): $(BEST) | $(READY)
	@echo "No ONNX file $@ of $(BEST) yet: exporting it first"
	$(EXPORT)

$(PLAN): $(ONNX)
	@echo "No engine $@ of $(ONNX) yet: building it first"
	$(BIN)/trt-qat engine $(ONNX) --out $(PLAN) $(FLAGS)

ifdef DEMO
train: $(READY) ## FP32 training; DEMO=1 trains the shipped demo detector anew
	$(BIN)/trt-qat data demo --train 1200 --val 150 --out runs/demo_base/data
	$(BIN)/trt-qat train --weights yolov8n.yaml --data runs/demo_base/data/data.yaml --out runs/demo_base --config $(DEMO_SETTINGS) $(ARGS)
else
train: $(READY) $(DATA_FILE)
	$(BIN)/trt-qat train --weights $(TRAIN_FROM) --data $(DATA) --out $(OUT) $(FLAGS)
endif

calibrate: $(READY) $(DATA_FILE) ## WEIGHTS and DATA to calib/NAME_ptq.safetensors
	$(CALIBRATE)

sensitivity: $(PTQ) $(DATA_FILE) ## What INT8 costs per layer: OUT/sensitivity.json and .png
	$(BIN)/trt-qat sensitivity --weights $(PTQ) --data $(DATA) --out $(OUT)/sensitivity.json $(FLAGS)

qat: $(PTQ) $(DATA_FILE) ## Fine-tune the calibrated checkpoint to OUT/qat
	$(BIN)/trt-qat qat --weights $(PTQ) --data $(DATA) --out $(OUT)/qat $(FLAGS)

export: $(BEST) ## The best checkpoint so far to engines/NAME_int8.onnx, for TensorRT
	$(EXPORT)

engine: $(ONNX) ## engines/NAME_int8.onnx to engines/NAME_int8.plan
	$(BIN)/trt-qat engine $(ONNX) --out $(PLAN) $(FLAGS)

polygraphy: $(PLAN) ## Run engines/NAME_int8.plan with Polygraphy; the ONNX file where no GPU is
	scripts/polygraphy_run.sh $(BIN) $(PLAN)

evaluate: $(ONNX) $(DATA_FILE) ## mAP, latency and size of engines/NAME_int8.onnx
	$(BIN)/trt-qat evaluate $(ONNX) --data $(DATA) $(FLAGS)

parity: $(ONNX) $(DATA_FILE) ## The best checkpoint so far against engines/NAME_int8.onnx: outputs, detections, mAP
	$(BIN)/trt-qat parity $(BEST) $(ONNX) --data $(DATA) $(FLAGS)

run: $(READY) $(DATA_FILE) ## All stages on WEIGHTS and DATA
	$(BIN)/trt-qat run --weights $(WEIGHTS) --data $(DATA) --out $(OUT) $(FLAGS)

clean: ## Remove runs/, site/, calibration caches and engines; keeps .venv
	rm -rf runs site
	find calib engines -type f ! -name .gitkeep -delete
