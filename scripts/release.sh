#!/usr/bin/env bash
# A release for real: wheel and source archive into dist/, what is in them, and the demo from each, installed into a
# fresh environment outside the clone.
#   scripts/release.sh .venv/bin [PYTHON]    the first builds, PYTHON is what is installed to
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
full=$(cd "$1" && pwd)
python=${2:-python3}

rm -rf dist
"$full/python" -m build --outdir dist . >/dev/null # the wheel from the source archive, not from here
"$full/python" scripts/release_contents.py dist/*.whl dist/*.tar.gz

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
unset PYTHONPATH
cd "$folder"
for release in "$root"/dist/*.whl "$root"/dist/*.tar.gz; do
    started=$(date +%s)
    "$python" -m venv clean
    clean/bin/python -m pip install --quiet --disable-pip-version-check -c "$root/scripts/constraints.txt" "${release}[train]"
    installed=$(($(date +%s) - started))
    where=$(clean/bin/python -c 'import trt_qat; print(trt_qat.__file__)')
    [[ $where == "$folder"/clean/* ]]
    clean/bin/trt-qat --version
    started=$(date +%s)
    clean/bin/trt-qat demo --out demo | tee said.txt
    ran=$(($(date +%s) - started))
    last=$(tail -n 1 said.txt)
    if [[ $last != "report: "*.html || ! -s ${last#report: } ]]; then
        echo "The demo does not end with the path of its report." >&2
        exit 1
    fi
    echo "$(basename "$release"): installed in $installed s, $(du -sm clean | cut -f1) MB; the demo ran $ran s"
    rm -rf clean demo said.txt
done
