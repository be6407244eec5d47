"""data.yaml, lists of images, label files, and annotations to convert."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from case import (
    CALIBRATE,
    EVALUATE,
    MARKER,
    QAT,
    Case,
    Make,
    copied,
    deep,
    steps,
    text,
    with_set,
    with_tiny,
    words,
)  # fmt: skip
from case import data as file

NAMES = "names: [a, b, c, d, e, f, g]\n"
SPLITS = "train: images/train\nval: images/val\n"
LAUGHS = "a: &a [l, l, l, l, l, l, l, l, l]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)

YAMLS = {
    "laughs": LAUGHS + "names: *j\n" + SPLITS,
    "laughs in train": LAUGHS + "train: *j\n" + NAMES,
    "cycle": f"names: &a [a, *a]\n{SPLITS}",
    "merge keys": "a: &a {x: 1}\n" + "b:\n" + "  <<: *a\n" * 2 + SPLITS + NAMES,
    "50 MB": "# " + "x" * 50_000_000 + "\n" + SPLITS + NAMES,
    "50 MB of names": "names: [" + "a, " * 16_000_000 + "b]\n" + SPLITS,
    "path /": f"path: /\ntrain: .\nval: .\n{NAMES}",
    "train /": f"train: /\nval: /\n{NAMES}",
    "train /proc": f"train: /proc\nval: /proc\n{NAMES}",
    "train /dev": f"train: /dev\nval: /dev\n{NAMES}",
    "train /dev/zero": f"train: /dev/zero\nval: images/val\n{NAMES}",
    "train is itself": f"train: data.yaml\nval: data.yaml\n{NAMES}",
    "nc 1e12": f"{SPLITS}nc: 1000000000000\n",
    "nc 1e9": f"{SPLITS}nc: 1000000000\n",
    "nc 0": f"{SPLITS}nc: 0\n",
    "nc -1": f"{SPLITS}nc: -1\n",
    "nc text": f"{SPLITS}nc: many\n",
    "nc true": f"{SPLITS}nc: true\n",
    "nc nan": f"{SPLITS}nc: .nan\n",
    "nc 5000 digits": f"{SPLITS}nc: {'9' * 5000}\n",
    "nc hexadecimal": f"{SPLITS}nc: 0x{'f' * 5000}\n",
    "nc base 60": f"{SPLITS}nc: {':'.join(['59'] * 3000)}\n",
    "names text": f"{SPLITS}names: car\n",
    "names number": f"{SPLITS}names: 7\n",
    "names of lists": f"{SPLITS}names: [[a], [b]]\n",
    "names of mappings": f"{SPLITS}names: [{{a: 1}}, {{b: 2}}]\n",
    "names nulls": f"{SPLITS}names: [null, null]\n",
    "names same": f"{SPLITS}names: [a, a, a, a, a, a, a]\n",
    "names empty": f"{SPLITS}names: []\n",
    "names controls": SPLITS + 'names: ["a\\n\\e[2J", b, c, d, e, f, "\\0"]\n',
    "names far apart": f"{SPLITS}names: {{0: a, 1000000000000: b}}\n",
    "names negative": f"{SPLITS}names: {{-1: a, 0: b}}\n",
    "names half": f"{SPLITS}names: {{0.5: a, 1.5: b}}\n",
    "names inf": f"{SPLITS}names: {{.inf: a}}\n",
    "names keys lists": f"{SPLITS}names: {{[0]: a}}\n",
    "names keys text": f"{SPLITS}names: {{zero: a}}\n",
    "names dates": f"{SPLITS}names: [2024-01-01, 2024-99-99]\n",
    "names bad date": f"{SPLITS}names: [2024-02-31]\n",
    "train URL": f"train: https://user:hunter2@example.com/a.zip\nval: images/val\n{NAMES}",
    "train URLs": f"train: [https://example.com/a, rtsp://example.com/b]\nval: images/val\n{NAMES}",
    "download script": f"{SPLITS}{NAMES}download: |\n  import os\n  os.system('touch {MARKER}')\n",
    "download bash": f"train: images/none\nval: images/none\n{NAMES}download: bash touch {MARKER}\n",
    "download URL": f"train: images/none\nval: images/none\n{NAMES}download: https://example.com/a.zip\n",
    "train number": f"train: 5\n{NAMES}",
    "train mapping": f"train: {{a: b}}\n{NAMES}",
    "train deep": f"train: {deep(20000)}\n{NAMES}",
    "train 100000 entries": f"train: [{', '.join(['images/train'] * 100_000)}]\nval: images/val\n{NAMES}",
    "train NUL": f'train: "images\\0train"\nval: images/val\n{NAMES}',
    "train 10000 letters": f"train: {'a' * 10_000}\nval: images/val\n{NAMES}",
    "train newline": f'train: "images\\ntrain"\nval: images/val\n{NAMES}',
    "train ../../..": f"train: ../../../../../../../../etc\nval: images/val\n{NAMES}",
    "train home": f"train: ~/none\nval: images/val\n{NAMES}",
    "train empty": f"train: ''\nval: ''\n{NAMES}",
    "path number": f"path: 5\n{SPLITS}{NAMES}",
    "path list": f"path: [a]\n{SPLITS}{NAMES}",
    "path NUL": f'path: "a\\0b"\n{SPLITS}{NAMES}',
    "path file": f"path: data.yaml\n{SPLITS}{NAMES}",
    "path 10000 letters": f"path: {'a' * 10_000}\n{SPLITS}{NAMES}",
    "python tag": f"names: !!python/object/apply:os.system ['touch {MARKER}']\n{SPLITS}",
    "python module": f"names: !!python/module:{MARKER}\n{SPLITS}",
    "unknown tag": f"names: !car [a]\n{SPLITS}",
    "binary tag": f"names: !!binary aGVsbG8=\n{SPLITS}",
    "set tag": f"names: !!set {{a, b}}\n{SPLITS}",
    "UTF-16": "\udcff\udcfet\0r\0a\0i\0n\0",
    "binary": "\udcff\udc80\udc81" * 100,
    "NUL": f"{SPLITS}\0{NAMES}",
    "empty": "",
    "null": "null\n",
    "list": "- a\n- b\n",
    "number": "5\n",
    "deep list": deep(50_000) + "\n",
    "deep mapping": deep(10_000, "{a: ", "}") + "\n",
    "deep blocks": "".join(" " * i + "a:\n" for i in range(3000)),
    "anchor unknown": f"names: *nobody\n{SPLITS}",
    "two documents": f"{SPLITS}{NAMES}---\n{SPLITS}{NAMES}",
    "keys twice": f"{SPLITS}{NAMES}{NAMES}",
    "huge key": f"? {'k' * 100_000}\n: v\n{SPLITS}{NAMES}",
}

LABELS = {
    "text": "car 0.5 0.5 0.2 0.2\n",
    "nan": "0 nan 0.5 0.2 0.2\n",
    "inf": "0 inf 0.5 0.2 0.2\n",
    "class nan": "nan 0.5 0.5 0.2 0.2\n",
    "class 3e38": "3e38 0.5 0.5 0.2 0.2\n",
    "class 1e400": "1e400 0.5 0.5 0.2 0.2\n",
    "class -1": "-1 0.5 0.5 0.2 0.2\n",
    "class 7": "7 0.5 0.5 0.2 0.2\n",
    "class 1.5": "1.5 0.5 0.5 0.2 0.2\n",
    "box 3e38": "0 3e38 3e38 3e38 3e38\n",
    "box -3e38": "0 -3e38 0.5 0.2 0.2\n",
    "box 1e308": "0 1e308 1e308 1e308 1e308\n",
    "box 1e-45": "0 0.5 0.5 1e-45 1e-45\n",
    "box 1e-400": "0 0.5 0.5 1e-400 1e-400\n",
    "box no area": "0 0.5 0.5 0 0\n",
    "four columns": "0 0.5 0.5 0.2\n",
    "one column": "0\n",
    "2000 columns": "0 " + "0.5 " * 2000 + "\n",
    "200000 columns": "0 " + "0.5 0.4 " * 100_000 + "\n",
    "polygon of 3e38": "0 " + "3e38 -3e38 " * 4 + "\n",
    "long number": f"0 0.{'5' * 100_000} 0.5 0.2 0.2\n",
    "underscores": "0 0_1 0_2 0_3 0_4\n",
    "arabic digits": "٠ ٠.٥ ٠.٥ ٠.٢ ٠.٢\n",
    "hexadecimal": "0x0 0x1 0.5 0.2 0.2\n",
    "commas": "0,0.5,0.5,0.2,0.2\n",
    "binary": "\udcff\udcfe\udc80" * 100,
    "NUL": "0 0.5\0 0.5 0.2 0.2\n",
    "UTF-16": "\udcff\udcfe0\0 \0",
    "form feeds": "0 0.5 0.5 0.2 0.2\x0c0 0.5 0.5 0.2 0.2\x1c\n",
    "100000 boxes": "0 0.5 0.5 0.2 0.2\n" * 100_000,
    "20 MB": "0 0.51 0.5 0.2 0.2\n" * 1_050_000,
    "boxes and polygons": "0 0.5 0.5 0.2 0.2\n0 0.1 0.1 0.9 0.1 0.9 0.9\n",
    "blank lines": "\n" * 100_000,
}

XML = "<annotation><filename>0.png</filename><size><width>64</width><height>64</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>1</ymin><xmax>30</xmax><ymax>30</ymax></bndbox></object>"
VOC = {
    "laughs": '<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    + XML.format(OBJECT.format("&b;", 1)),
    "external entity": '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + XML.format(OBJECT.format("&x;", 1)),
    "UTF-16 entity": "\udcff\udcfe" + "\0".join('<!DOCTYPE a [<!ENTITY a "x">]><a>&a;</a>') + "\0",
    "deep": "<a>" * 100_000 + "</a>" * 100_000,
    "unclosed": "<annotation><object>",
    "other root": "<svg/>",
    "no objects": XML.format(""),
    "NaN": XML.format(OBJECT.format("a", "nan")),
    "inf": XML.format(OBJECT.format("a", "inf")),
    "1e308": XML.format(OBJECT.format("a", "-1e308")),
    "text": XML.format(OBJECT.format("a", "left")),
    "no name": XML.format(OBJECT.format("", 1)),
    "name with newline": XML.format(OBJECT.format("a&#10;b", 1)),
    "size 0": XML.replace(">64<", ">0<").format(OBJECT.format("a", 1)),
    "size text": XML.replace(">64<", ">wide<").format(OBJECT.format("a", 1)),
    "size 1e308": XML.replace(">64<", ">1e308<").format(OBJECT.format("a", 1)),
    "file outside": XML.replace("0.png", "../../../../../../etc/passwd").format(OBJECT.format("a", 1)),
    "file absolute": XML.replace("0.png", "/dev/zero").format(OBJECT.format("a", 1)),
    "encoding unknown": '<?xml version="1.0" encoding="mystery"?>' + XML.format(OBJECT.format("a", 1)),
    "binary": "\udcff\udc80" * 50,
    "empty": "",
    "10000 objects": XML.format(OBJECT.format("a", 1) * 10_000),
}

_PICTURE = {"id": 1, "file_name": "0.png", "width": 64, "height": 64}
_BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20]}
_CATEGORY = {"id": 1, "name": "stop"}


def _coco(images: object = None, annotations: object = None, categories: object = None) -> str:
    return json.dumps({
        "images": [_PICTURE] if images is None else images,
        "annotations": [_BOX] if annotations is None else annotations,
        "categories": [_CATEGORY] if categories is None else categories,
    })  # fmt: skip


NAN, INF = float("nan"), float("inf")
COCO = {
    "deep": deep(200_000),
    "deep in a field": _coco().replace("64", deep(100_000), 1),
    "no JSON": "{",
    "list": "[]",
    "long integer": _coco().replace("64", "9" * 5000, 1),
    "NaN box": _coco(annotations=[_BOX | {"bbox": [NAN, 1, 2, 3]}]),
    "infinite box": _coco(annotations=[_BOX | {"bbox": [0, 0, INF, INF]}]),
    "1e308 box": _coco(annotations=[_BOX | {"bbox": [-1e308, -1e308, 1e308, 1e308]}]),
    "box of 3": _coco(annotations=[_BOX | {"bbox": [1, 2, 3]}]),
    "box of text": _coco(annotations=[_BOX | {"bbox": ["a", "b", "c", "d"]}]),
    "box null": _coco(annotations=[_BOX | {"bbox": None}]),
    "category unknown": _coco(annotations=[_BOX | {"category_id": 99}]),
    "image unknown": _coco(annotations=[_BOX | {"image_id": 99}]),
    "annotations of numbers": _coco(annotations=[1, 2]),
    "images of text": _coco(images=["0.png"]),
    "images null": _coco(images=[None]),
    "image id list": _coco(images=[_PICTURE | {"id": [1]}]),
    "image id inf": _coco(images=[_PICTURE | {"id": INF}]),
    "image id 1e400": _coco(images=[_PICTURE]).replace('"id": 1', '"id": 1e400', 1),
    "categories of text": _coco(categories=["a"]),
    "category id inf": _coco(categories=[_CATEGORY | {"id": INF}]),
    "category name null": _coco(categories=[_CATEGORY | {"name": None}]),
    "category name list": _coco(categories=[_CATEGORY | {"name": ["a"]}]),
    "category name controls": _coco(categories=[_CATEGORY | {"name": "a\n\x1b[2J\0"}]),
    "category twice": _coco(categories=[_CATEGORY, _CATEGORY]),
    "file outside": _coco(images=[_PICTURE | {"file_name": "../../../../../../../etc/passwd"}]),
    "file absolute": _coco(images=[_PICTURE | {"file_name": "/dev/zero"}]),
    "file NUL": _coco(images=[_PICTURE | {"file_name": "0\0.png"}]),
    "file long": _coco(images=[_PICTURE | {"file_name": "a" * 10_000}]),
    "file surrogate": _coco(images=[_PICTURE | {"file_name": "\ud800.png"}]),
    "file number": _coco(images=[_PICTURE | {"file_name": 5}]),
    "file list": _coco(images=[_PICTURE | {"file_name": ["0.png"]}]),
    "size NaN": _coco(images=[_PICTURE | {"width": NAN}]),
    "size 1e308": _coco(images=[_PICTURE | {"width": 1e308, "height": 1e-308}]),
    "size text": _coco(images=[_PICTURE | {"width": "wide"}]),
    "same image 1000 times": _coco(images=[_PICTURE | {"id": i} for i in range(1000)]),
    "binary": "\udcff\udcfe" * 100,
}


def _pipe(path: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / path).unlink(missing_ok=True)
        os.mkfifo(place / path)

    return make


def _link(target: str, path: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / path).unlink(missing_ok=True)
        os.symlink(target, place / path)

    return make


def _folder(path: str) -> Make:
    def make(place: Path, kit: Path) -> None:
        (place / path).unlink(missing_ok=True)
        (place / path).mkdir()

    return make


_LABEL = "set/labels/train/0.txt"
ODD_FILES: dict[str, Make] = {
    "data.yaml is a pipe": _pipe("set/data.yaml"),
    "data.yaml is a folder": _folder("set/data.yaml"),
    "data.yaml is /dev/zero": _link("/dev/zero", "set/data.yaml"),
    "data.yaml is a loop": _link("data.yaml", "set/data.yaml"),
    "label is a pipe": _pipe(_LABEL),
    "label is a folder": _folder(_LABEL),
    "label is /dev/zero": _link("/dev/zero", _LABEL),
    "label is a loop": _link("0.txt", _LABEL),
    "images link to themselves": _link(".", "set/images/train/again"),
    "images link to their parent": _link("../..", "set/images/train/up"),
    "images link to /": _link("/", "set/images/train/root"),
}
LISTS = {
    "pipe": _pipe("set/list.txt"),
    "zero": _link("/dev/zero", "set/list.txt"),
    "binary": file("set/list.txt", b"\xff\xfe\x80" * 100),
    "NUL": file("set/list.txt", b"images/\0.png\n"),
    "URLs": text("set/list.txt", "https://user:hunter2@example.com/a.png\n"),
    "folders": text("set/list.txt", "./images\n./images/train\n"),
    "devices": text("set/list.txt", "/dev/zero\n/dev/stdin\n/dev/random.png\n"),
    "itself": text("set/list.txt", "./list.txt\n"),
    "long names": text("set/list.txt", f"./{'a' * 5000}.png\n"),
    "half missing": text("set/list.txt", "./images/train/0.png\n./images/train/none.png\n"),
    "same 100000 times": text("set/list.txt", "./images/train/0.png\n" * 100_000),
    "empty": text("set/list.txt", ""),
}


def cases() -> Iterator[Case]:
    """All of them."""
    validate = words("data validate {data}", data="set/data.yaml")
    calibrate = words(CALIBRATE, weights="demo.safetensors", data="set/data.yaml")
    demo = copied("demo.safetensors", "demo.safetensors")
    for name, content in YAMLS.items():
        secrets = ("hunter2",) if "hunter2" in content else ()
        make = with_set(text("set/data.yaml", content))
        yield Case(f"data.yaml/{name}", validate, make, secrets=secrets)
    for name in ("laughs", "path /", "nc 1e12", "download bash", "train URL", "names controls", "deep list", "cycle"):
        secrets = ("hunter2",) if name == "train URL" else ()
        make = with_set(demo, text("set/data.yaml", YAMLS[name]))
        yield Case(f"data.yaml/calibrate: {name}", calibrate, make, secrets=secrets)
    for name, content in LABELS.items():
        yield Case(f"labels/{name}", validate, with_set(text(_LABEL, content)))
    qat = words(QAT, weights="demo.safetensors", data="set/data.yaml")
    evaluate = words(EVALUATE, model="demo.safetensors", data="set/data.yaml")
    for name in ("nan", "box 3e38", "class 1e400", "polygon of 3e38", "200000 columns", "binary"):
        both = steps(text(_LABEL, LABELS[name]), text(_LABEL.replace("0.", "1."), LABELS[name]))
        yield Case(f"labels/qat: {name}", qat, with_set(demo, both), leaves=("calib", "out"))
        val = text("set/labels/val/0.txt", LABELS[name])
        yield Case(f"labels/evaluate: {name}", evaluate, with_set(demo, val))
    for name, make in ODD_FILES.items():
        family = "labels" if name.startswith("label") else "data.yaml"
        yield Case(f"{family}/{name}", validate, with_set(make))
    for name in ("label is a pipe", "images link to /"):
        yield Case(f"labels/evaluate: {name}", evaluate, with_set(demo, ODD_FILES[name]))
    listed = text("set/data.yaml", f"train: list.txt\nval: images/val\n{NAMES}")
    for name, make in LISTS.items():
        secrets = ("hunter2",) if name == "URLs" else ()
        yield Case(f"data.yaml/list: {name}", validate, with_set(listed, make), secrets=secrets)
    convert = "data convert --from {form} --annotations {file} --images set/images/train --out out"
    for name, content in VOC.items():
        make = with_set(text("voc/0.xml", content))
        yield Case(f"convert/voc: {name}", words(convert, form="voc", file="voc"), make)
    for name, content in COCO.items():
        make = with_set(text("coco.json", content))
        yield Case(f"convert/coco: {name}", words(convert, form="coco", file="coco.json"), make)
    for name, make in {"pipe": _pipe("coco.json"), "zero": _link("/dev/zero", "coco.json")}.items():
        yield Case(f"convert/coco: {name}", words(convert, form="coco", file="coco.json"), with_set(make))
    (voc_pipe,) = (with_set(_folder("voc"), _pipe("voc/0.xml")),)
    yield Case("convert/voc: pipe", words(convert, form="voc", file="voc"), voc_pipe)
    pipe_image = with_set(_pipe("set/images/train/0.png"), text("coco.json", _coco()))
    yield Case("convert/coco: image is a pipe", words(convert, form="coco", file="coco.json"), pipe_image)
    tiny = with_tiny(with_set(text("set/data.yaml", SPLITS + "names: [red, green, yellow]\n")))
    yield Case("data.yaml/other names than the model", words(EVALUATE, model="tiny.onnx", data="set"), tiny)
