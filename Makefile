# Every target sets itself up (a .venv from pyproject.toml and scripts/constraints.txt) and then does its job.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_BASE := trt_qat/demo/detector.safetensors
DEMO_DATA := runs/demo/data/data.yaml

# Without WEIGHTS and DATA the stages work on the demo: its shipped detector and its generated data.
WEIGHTS ?= $(DEMO_BASE)
DATA ?= $(DEMO_DATA)
NAME ?= $(if $(filter $(DEMO_BASE),$(WEIGHTS)),yolov8n,$(basename $(notdir $(WEIGHTS))))
OUT ?= runs/$(NAME)
ARGS ?=
TRAIN_FROM := $(if $(filter $(DEMO_BASE),$(WEIGHTS)),yolov8n.yaml,$(WEIGHTS))
FLAGS := $(if $(filter $(DEMO_BASE),$(WEIGHTS)),--config scripts/demo.yaml) $(ARGS)

PTQ := calib/$(NAME)_ptq.safetensors
QAT := $(OUT)/qat/best.safetensors
ONNX := engines/$(NAME)_int8.onnx
PLAN := engines/$(NAME)_int8.plan
BEST = $(if $(wildcard $(QAT)),$(QAT),$(if $(wildcard $(PTQ)),$(PTQ),$(WEIGHTS)))

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint types train calibrate sensitivity qat export engine evaluate run clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13
	@echo "Variables: WEIGHTS=$(WEIGHTS) DATA=$(DATA) NAME=$(NAME) OUT=$(OUT) ARGS='--set section.key=value'"

$(READY): pyproject.toml scripts/constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e '.[dev]'
	@touch $@

install: $(READY) ## Create .venv with everything but a GPU driver

demo: $(READY) ## The main job on generated data: FP32 / PTQ INT8 / QAT INT8 on the exported models
	$(BIN)/trt-qat data demo --out runs/demo/data
	$(BIN)/trt-qat run --weights $(DEMO_BASE) --data $(DEMO_DATA) --out runs/demo/result --config scripts/demo.yaml $(ARGS)

test: lint types ## Lint, types and tests (no GPU, no network after installation)
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(READY) ## The tests that train or need the optional real data, and those for a GPU
	$(BIN)/python -m pytest -m "slow or gpu"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo

types: $(READY)
	$(BIN)/mypy

$(DEMO_DATA):
	$(BIN)/trt-qat data demo --out $(dir $@)

ifdef DEMO
train: $(READY) ## FP32 training; DEMO=1 trains the shipped demo detector anew
	$(BIN)/trt-qat data demo --train 1200 --val 150 --out runs/demo_base/data
	$(BIN)/trt-qat train --weights yolov8n.yaml --data runs/demo_base/data/data.yaml --out runs/demo_base --config scripts/demo.yaml $(ARGS)
else
train: $(READY) $(filter $(DEMO_DATA),$(DATA))
	$(BIN)/trt-qat train --weights $(TRAIN_FROM) --data $(DATA) --out $(OUT) $(FLAGS)
endif

calibrate: $(READY) $(filter $(DEMO_DATA),$(DATA)) ## WEIGHTS and DATA to calib/NAME_ptq.safetensors
	$(BIN)/trt-qat calibrate --weights $(WEIGHTS) --data $(DATA) --out $(PTQ) $(FLAGS)

sensitivity: $(READY) $(filter $(DEMO_DATA),$(DATA)) ## What INT8 costs per layer: OUT/sensitivity.json and .png
	$(BIN)/trt-qat sensitivity --weights $(if $(wildcard $(PTQ)),$(PTQ),$(WEIGHTS)) --data $(DATA) --out $(OUT)/sensitivity.json $(FLAGS)

qat: $(READY) $(filter $(DEMO_DATA),$(DATA)) ## Fine-tune (the calibrated checkpoint if there is one) to OUT/qat
	$(BIN)/trt-qat qat --weights $(if $(wildcard $(PTQ)),$(PTQ),$(WEIGHTS)) --data $(DATA) --out $(OUT)/qat $(FLAGS)

export: $(READY) ## The best checkpoint so far to engines/NAME_int8.onnx
	$(BIN)/trt-qat export $(BEST) --out $(ONNX) $(FLAGS)

engine: $(READY) ## engines/NAME_int8.onnx to engines/NAME_int8.plan
	@test -f $(ONNX) || $(MAKE) --no-print-directory export
	$(BIN)/trt-qat engine $(ONNX) --out $(PLAN) $(FLAGS)

evaluate: $(READY) $(filter $(DEMO_DATA),$(DATA)) ## mAP, latency and size of engines/NAME_int8.onnx
	$(BIN)/trt-qat evaluate $(ONNX) --data $(DATA) $(FLAGS)

run: $(READY) $(filter $(DEMO_DATA),$(DATA)) ## All stages on WEIGHTS and DATA
	$(BIN)/trt-qat run --weights $(WEIGHTS) --data $(DATA) --out $(OUT) $(FLAGS)

clean: ## Remove runs/, calibration caches and engines; keeps .venv
	rm -rf runs
	find calib engines -type f ! -name .gitkeep -delete
