"""The short fixed set of the hostile inputs, by name: to list them, none has to be made."""

# What `make test` runs: some of every family, none of which needs a calibrated model first.
_FAST = """
    architecture/activation runs code
    architecture/activation with keyword code
    architecture/module torch_load
    architecture/channels 1e9
    architecture/laughs
    pt/payload alone
    pt/payload old format
    pt/payload asks pip
    pt/zip bomb
    checkpoint/activation walrus
    checkpoint/imgsz NaN
    checkpoint/NaN weight
    checkpoint/file: header entry deep
    data.yaml/laughs
    data.yaml/path /
    data.yaml/nc 1e12
    data.yaml/deep list
    labels/label is a pipe
    labels/class 1e400
    convert/coco: deep
    convert/voc: pipe
    images/JPEG of 3 bytes
    images/pipe named .jpg
    images/pipe in a folder
    images/PNG 13000 x 13000
    names/not UTF-8
    names/newline
    videos/mp4 pipe
    videos/mp4 cut at 0.5
    settings/deep
    settings/code
    onnx/STRING input
    onnx/metadata: names minus signs
    onnx/metadata: imgsz 1e9
    onnx/lint: 50000 nodes
    onnx/external /etc/passwd
    plans/beside an ONNX: deep
    plans/flavor list
    engines/header deep
    engines/length 2**31
    sources/RTSP with password
    sources/zero
    places/infer: pipe
    places/json: full device
    surroundings/lint: stdout full
    rankings/refused before the work: pipe
    resume/float: payload alone
    demo/deep
"""
FAST = frozenset(name.strip() for name in _FAST.strip().splitlines())
