#!/usr/bin/env bash
# All that only a GPU shows, in one command; run it on any machine with CUDA and send back the one file it writes.
#   bash scripts/gpu_check.sh [OUT]        # OUT is runs/gpu_check_<date> by default; PYTHON=... the interpreter
# Writes OUT/gpu_check.tar.gz: gpu_check.md (the table, the figures), every figure as JSON, every step's log. GPU, driver,
# clocks and package versions are in it; no user or host name and no path outside (scripts/gpu_check.py takes them out).
# Exit code: 0 every step passed or had to be skipped, 1 one failed, 2 no GPU here. About 10 minutes.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/runs/gpu_check_$(date +%Y%m%d_%H%M%S)}
mkdir -p "$out/logs" "$out/json" "$out/work"
out=$(cd "$out" && pwd)
cd "$root"
python=${PYTHON:-$root/.venv/bin/python}
if [ ! -x "$python" ]; then python=$(command -v python3); fi
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" XDG_CACHE_HOME="$out/work/cache"
: >"$out/steps.jsonl"
failed=0

# step NAME COMMAND...: its log, its time, and whether it passed; 77 is "skipped", with the last line as the reason.
# `set -e` does not hold in what it calls, because its exit code is asked for: functions say `|| return` themselves.
step() {
    local name=$1 started code=0 outcome
    shift
    started=$(date +%s.%N)
    "$@" >"$out/logs/$name.log" 2>&1 </dev/null || code=$?
    case $code in
        0) outcome=passed ;;
        77) outcome=skipped ;;
        *) outcome=failed failed=1 ;;
    esac
    "$python" scripts/gpu_check.py note "$out" "$name" "$outcome" "$started" "$(date +%s.%N)" || failed=1
    return 0
}

check() { "$python" scripts/gpu_check.py "$@"; }
trt_qat() { "$python" -m trt_qat "$@"; }

# calibrated DEVICE: the demo's detector, its ranges found on that device.
calibrated() {
    trt_qat calibrate --weights "$demo" --data "$data" --out "$work/ptq_$1.safetensors" --set "model.device=$1" \
        --set quantization.calibrator=max --set quantization.images=32 --set "data.calibration_cache=$work/calib_$1"
}

# tuned AMP: eight steps of fine-tuning on the GPU.
tuned() {
    check computes "$1" || return
    trt_qat qat --weights "$work/ptq_cuda.safetensors" --data "$data" --out "$work/qat_$1" --epochs 1 \
        --set model.device=cuda --set "qat.amp=$1" --json "$out/json/qat_$1.json"
}

# exported FILE CHECKPOINT PRECISION SETTINGS...: what TensorRT builds from.
exported() {
    trt_qat export "$2" --target tensorrt --precision "$3" --out "$work/$1" "${@:4}"
}

same_on_the_gpu() {
    exported on_gpu.onnx "$work/qat_none/best.safetensors" int8+fp16 --no-check --set model.device=cuda || return
    exported on_cpu.onnx "$work/qat_none/best.safetensors" int8+fp16 --no-check --set model.device=cpu || return
    check same "$work/on_gpu.onnx" "$work/on_cpu.onnx" --json "$out/json/export.json"
}

built() { trt_qat engine "$work/$1.onnx" --out "$work/$1.plan" --json "$out/json/engine_$1.json"; }

parity() {
    if ! trt_qat parity --help >/dev/null 2>&1; then
        echo "This version of trt_qat has no parity verb."
        return 77
    fi
    check runs "$work/int8.plan" || return
    trt_qat parity "$work/int8.onnx" "$work/int8.plan" --data "$data" --json "$out/json/parity.json"
}

accuracy() {
    check runs "$work/int8.plan" || return
    trt_qat evaluate "$work/fp16.plan" "$work/int8.plan" "$work/int8.onnx" --data "$data" --json "$out/json/map.json"
}

demo=trt_qat/demo/detector.safetensors work=$out/work data=$out/work/data/data.yaml
step machine check machine --json "$out/json/machine.json"
if ! check gpu; then # says why in one line
    check report "$out" || true
    exit 2
fi
step memory_and_engine_tests check tests "$work/tests.xml" --json "$out/json/tests.json"
step demo_data trt_qat data demo --train 64 --val 32 --out "$work/data"
step calibrate_on_cpu calibrated cpu
step calibrate_on_cuda calibrated cuda
step ranges_agree check ranges "$work/ptq_cpu.safetensors" "$work/ptq_cuda.safetensors" --json "$out/json/ranges.json"
step qat tuned none
step qat_float16 tuned float16
step qat_bfloat16 tuned bfloat16
step export_is_the_same same_on_the_gpu
step export_fp16 exported fp16.onnx "$demo" fp16
step export_int8 exported int8.onnx "$work/qat_none/best.safetensors" int8+fp16
step build_fp16 built fp16
step build_int8 built int8
step latency check latency "$work/fp16.plan" "$work/int8.plan" --json "$out/json/latency.json"
step requests check requests "$work/int8.plan" --json "$out/json/requests.json"
large=(--no-check --set model.imgsz=640 --set export.batch=8)
step export_large_fp16 exported large_fp16.onnx "$demo" fp16 "${large[@]}"
step export_large_int8 exported large_int8.onnx "$work/qat_none/best.safetensors" int8+fp16 "${large[@]}"
step build_large_fp16 built large_fp16
step build_large_int8 built large_int8
step latency_large check latency "$work/large_fp16.plan" "$work/large_int8.plan" --json "$out/json/latency_large.json"
step requests_large check requests "$work/large_int8.plan" --json "$out/json/requests_large.json"
step parity parity
step map accuracy
check report "$out" || failed=1
exit "$failed"
