#!/usr/bin/env bash
# The plain install with OpenVINO for real: a fresh environment from a wheel, its size, and a picture annotated in it.
#   scripts/slim_check.sh .venv/bin [PYTHON]    the first makes the demo's model and picture, PYTHON is what is installed to
set -euo pipefail
cd "$(dirname "$0")/.."
full=$(cd "$1" && pwd)
python=${2:-python3}
limit=850 # a guard against what creeps in; 214 MB of it are what supervision asks for (scipy, matplotlib)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

"$full/python" -m trt_qat data demo-model --out "$folder/demo.onnx"
"$full/python" -m trt_qat data demo --train 1 --val 2 --out "$folder/set"

mkdir "$folder/source" # a build in place would leave its folders here
cp -r trt_qat pyproject.toml README.md LICENSE "$folder/source"
unset PYTHONPATH
cd "$folder"
"$python" -m venv slim
started=$(date +%s)
slim/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir wheels ./source
slim/bin/python -m pip install --quiet --disable-pip-version-check "$(echo wheels/trt_qat-*.whl)[openvino]"
installed=$(($(date +%s) - started))
with_pip=$(du -sm slim | cut -f1)
slim/bin/trt-qat infer set/images/val --model demo.onnx --out found --json found.json
slim/bin/python - <<'EOF'
import importlib.util, json
there = [name for name in ("torch", "ultralytics", "onnxruntime", "tensorrt_rtx") if importlib.util.find_spec(name)]
found = sum(len(result["detections"]) for result in json.load(open("found.json"))["results"])
assert not there and found, (there, found)
print(f"{found} detections without torch")
EOF
said=$(slim/bin/trt-qat train --weights x.pt --data x.yaml --out x 2>&1) && exit 1
echo "$said"
[[ $said == *"pip install 'trt_qat[train]'"* ]]
slim/bin/python -m pip --version
slim/bin/python -m pip uninstall --quiet --yes setuptools pip
size=$(du -sm slim | cut -f1)
echo "Python $(slim/bin/python -c 'import platform; print(platform.python_version())'): $size MB ($with_pip MB with pip), installed in $installed s"
du -sm slim/lib/python3*/site-packages/* | sort -rn | head -12
if ((size > limit)); then
    echo "More than $limit MB." >&2
    exit 1
fi
