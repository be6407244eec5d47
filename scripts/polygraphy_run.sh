#!/usr/bin/env bash
# Run a plan with Polygraphy, with the TensorRT it was built with; without a GPU, the ONNX file it was built from.
#   scripts/polygraphy_run.sh .venv/bin engines/yolov8n_int8.plan
set -euo pipefail
bin=$1 plan=$2
flavor=$("$bin/python" -c 'import sys; from pathlib import Path; from trt_qat.engine.engine_file import read_sidecar
print(read_sidecar(Path(sys.argv[1])).flavor)' "$plan")
rtx=0
if [ "$flavor" = tensorrt-rtx ]; then rtx=1; fi
if "$bin/python" -c 'import sys; from trt_qat.engine.gpu import gpu_names; sys.exit(not gpu_names())'; then
    set -x
    POLYGRAPHY_USE_TENSORRT_RTX=$rtx "$bin/polygraphy" run "$plan" --trt --model-type engine
else
    echo "No NVIDIA GPU here, so '$plan' cannot run. On one, this runs it:"
    echo "  POLYGRAPHY_USE_TENSORRT_RTX=$rtx polygraphy run $plan --trt --model-type engine"
    echo "Running the ONNX file that it was built from instead:"
    set -x
    "$bin/polygraphy" run "${plan%.plan}.onnx" --onnxrt
fi
