"""Wrong input of every kind: one line on stderr, exit code 1, and nothing half-written."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.numpy import save_file
from tiny_onnx import write_tiny_detector, write_unknown_operator
from ultralytics.nn.tasks import DetectionModel

import trt_qat
from trt_qat.cli import cli
from trt_qat.engine.flavor import import_tensorrt
from trt_qat.engine.gpu import gpu_names
from trt_qat.errors import MissingDependency

DETECTOR = Path(trt_qat.__file__).parent / "demo" / "detector.safetensors"
DATA_YAML = "train: images/train\nval: images/val\n"


def _dataset(folder: str, names: str, images: int = 2) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            Path(folder, kind, split).mkdir(parents=True)
        for index in range(images):
            image = np.random.default_rng(index).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            cv2.imwrite(str(Path(folder, "images", split, f"{index}.jpg")), image)
            Path(folder, "labels", split, f"{index}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    Path(folder, "data.yaml").write_text(DATA_YAML + names)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder that holds one of everything, good and broken."""
    folder = tmp_path_factory.mktemp("bad")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        _dataset("good", "nc: 80\n")
        _dataset("signs", "names: [stop, yield]\n")
        _dataset("seven", "nc: 7\n")
        _dataset("empty", "nc: 80\n", images=0)
        _dataset("damaged", "nc: 80\n")
        image = Path("damaged/images/train/1.jpg")
        image.write_bytes(image.read_bytes()[:1500])
        Path("list.yaml").write_text("- images\n")
        Path("broken.yaml").write_text("train: [images\n")
        Path("typo.yaml").write_text("qat:\n  epoch: 3\n")
        Path("text.pt").write_text("these are not weights\n")
        Path("empty.pt").touch()
        with zipfile.ZipFile("zip.pt", "w") as archive:
            archive.writestr("hello.txt", "hello")
        torch.save({"weights": torch.zeros(3)}, "dictionary.pt")
        for channels, name in ((1, "grey.pt"), (4, "four.pt")):
            torch.save({"model": DetectionModel("yolov8n.yaml", ch=channels, nc=7, verbose=False).half()}, name)
        torch.save({"model": torch.nn.Linear(2, 2)}, "linear.pt")
        save_file({"weight": np.zeros((64, 64), np.float32)}, "foreign.safetensors")
        shutil.copy(DETECTOR, "folded.safetensors")
        content = Path("foreign.safetensors").read_bytes()
        Path("truncated.safetensors").write_bytes(content[: len(content) // 2])
        Path("text.safetensors").write_text("these are not weights\n")
        Path("garbage.onnx").write_bytes(bytes(range(256)) * 20)
        write_tiny_detector(Path("tiny.onnx"))
        Path("half.onnx").write_bytes(Path("tiny.onnx").read_bytes()[:400])
        write_unknown_operator(Path("unknown.onnx"))
        Path("x.plan").write_bytes(b"plan")
        Path("x.json").write_text(json.dumps({"flavor": "tensorrt-rtx", "metadata": {}}))
        Path("alone.plan").write_bytes(b"plan")
        Path("coco.json").write_text("[1, 2")
        Path("blocker").write_text("a regular file")
        Path("folder").mkdir()
        Path("void.mp4").touch()
        Path("folder.safetensors").mkdir()
        picture = {"id": 1, "file_name": "0.jpg", "width": 64, "height": 64}
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [8, 8, 20, 20]}
        coco = {"images": [picture, picture | {"id": 2, "file_name": "1.jpg"}], "annotations": [box]}
        Path("good.coco.json").write_text(json.dumps(coco | {"categories": [{"id": 1, "name": "stop"}]}))
        yield folder


def _files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def _refused(arguments: str, place: Path) -> str:
    """Run a command that must fail as a user wants it to fail; the message."""
    before = _files(place)
    result: Result = CliRunner().invoke(cli, arguments.split())
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert "Traceback" not in result.output
    assert _files(place) == before
    assert [path for path in place.rglob(".*") if path.is_dir()] == []
    return lines[0].removeprefix("Error: ")


GOOD = "--weights yolov8n.yaml --data good"
SEVEN = "--weights folded.safetensors --set model.imgsz=64"
CASES = {
    # weights
    "missing weights": ("calibrate --weights none.pt --data good --out a.safetensors", "'none.pt' does not exist"),
    "weights are a folder": (
        "calibrate --weights folder --data good --out a.safetensors",
        "'folder' is a folder, not a file",
    ),
    "empty weights": ("calibrate --weights empty.pt --data good --out a.safetensors", "'empty.pt' is empty"),
    "text as weights": ("calibrate --weights text.pt --data good --out a.safetensors", "is not a PyTorch checkpoint"),
    "zip as weights": ("calibrate --weights zip.pt --data good --out a.safetensors", "'zip.pt' is not an Ultralytics"),
    "other pickle": ("calibrate --weights dictionary.pt --data good --out a.safetensors", "'dictionary.pt'"),
    "other module": ("export linear.pt --precision fp32 --out a.onnx", "'linear.pt'"),
    "data.yaml as weights": ("qat --weights good/data.yaml --data good --out a", "not an Ultralytics architecture"),
    "list as weights": ("qat --weights list.yaml --data good --out a", "not an Ultralytics architecture"),
    "broken yaml as weights": ("train --weights broken.yaml --data good --out a", "is not valid YAML"),
    "truncated safetensors": ("export truncated.safetensors --out a.onnx", "is not a readable checkpoint"),
    "text safetensors": ("qat --weights text.safetensors --data good --out a", "is not a readable checkpoint"),
    "foreign safetensors": ("evaluate foreign.safetensors --data good", "not a trt_qat checkpoint"),
    "train from safetensors": (
        "train --weights folded.safetensors --data seven --out a",
        "'folded.safetensors' has its BatchNorm folded",
    ),
    "grey images": ("export grey.pt --precision fp32 --out a.onnx", "'grey.pt' takes images with 1 channel; trt_qat"),
    "four channels": (
        "calibrate --weights four.pt --data seven --out a.safetensors",
        "'four.pt' takes images with 4 channels; trt_qat needs 3",
    ),
    "BatchNorm that is gone": (
        "qat --weights folded.safetensors --data seven --set qat.bn=freeze --out a",
        "'folded.safetensors' has its BatchNorm folded, which training from it and qat.bn=freeze need apart",
    ),
    "int8 of float weights": (
        "export yolov8n.yaml --precision int8+fp16 --set model.imgsz=64 --out a.onnx",
        "Run `trt-qat calibrate` first",
    ),
    # advice
    "unknown GPU": ("advise --weights yolov8n.yaml --gpu rtx9000 --out a", "Unknown GPU 'rtx9000'. Known: rtx3060"),
    "GPU of another compiler": ("advise --weights yolov8n.yaml --gpu agx-orin --out a", "AGX Orin 64 GB runs TensorRT"),
    "advice from one scale per weight": (
        "advise --weights yolov8n.yaml --data good --gpu rtx4090 --set quantization.weights=tensor --out a",
        "Calibrate with quantization.weights=channel.",
    ),
    "advice without weights": ("advise --weights none.pt --gpu rtx4090 --out a", "'none.pt' does not exist"),
    # datasets
    "missing data.yaml": (
        "run --weights yolov8n.yaml --data none/data.yaml --out a",
        "'none/data.yaml' does not exist",
    ),
    "folder without data": (
        "calibrate --weights yolov8n.yaml --data folder --out a.safetensors",
        "neither a data.yaml",
    ),
    # without labels
    "pattern that fits nothing": (f"qat {GOOD[:-5]} none/*.jpg --out a", "Pattern 'none/*.jpg' fits no image"),
    "empty video": (f"run {GOOD[:-5]} void.mp4 --out a", "Video 'void.mp4' cannot be read"),
    "a dataset and images": (f"qat {GOOD} --data good/images --out a", "'good' is no image or video, and one of 2"),
    "too few images": (f"qat {SEVEN} --data good/images --out a", "4 images are too few to fine-tune on and to hold"),
    "training without labels": (f"train {SEVEN} --data good/images --out a", "'good/images' has no labels, which"),
    "nobody to agree with": ("evaluate tiny.onnx --data good/images", "none of the models is a float one"),
    "labels made of labels": (f"data label {GOOD} --out a", "--data is a dataset with labels"),
    "labels into another folder": (f"data label {SEVEN} --data good/images --out good", "holds other files than foota"),
    "broken data.yaml": ("data validate broken.yaml", "is not valid YAML"),
    "list as data.yaml": ("evaluate tiny.onnx --data list.yaml", "must hold the keys"),
    "weights as data": ("evaluate tiny.onnx --data text.pt", "neither a .yaml file nor a folder"),
    "no images": ("calibrate --weights yolov8n.yaml --data empty --out a.safetensors", "has no image"),
    "wrong class count": (
        "calibrate --weights yolov8n.yaml --data signs --out a.safetensors",
        "2 classes (stop, yield)",
    ),
    "wrong class count of an onnx": ("evaluate tiny.onnx --data signs", "2 classes (stop, yield), the model 3"),
    "truncated image": (
        "calibrate --weights yolov8n.yaml --data damaged --set model.imgsz=64 --out a.safetensors",
        "damaged/images/train/1.jpg' cannot be read",
    ),
    "broken coco json": ("data convert --from coco --annotations coco.json --images good --out a", "coco.json"),
    "voc without xml": ("data convert --from voc --annotations folder --images good --out a", "folder"),
    # configuration
    "unknown calibrator": (
        f"calibrate {GOOD} --set quantization.calibrator=mes --out a.safetensors",
        "quantization.calibrator = 'mes': unknown calibrator. Did you mean 'mse'?",
    ),
    "renamed key": (
        f"calibrate {GOOD} --set data.calibration_images=4 --out a.safetensors",
        "Key 'data.calibration_images' in --set data.calibration_images=4 has a new name: quantization.images.",
    ),
    "unknown key": (f"calibrate {GOOD} --set qat.epoch=3 --out a.safetensors", "Did you mean 'epochs'?"),
    "unknown key in a file": ("lint tiny.onnx --config typo.yaml", "in typo.yaml. Did you mean 'epochs'?"),
    "missing config file": ("lint tiny.onnx --config none.yaml", "Config file 'none.yaml' does not exist"),
    "broken config file": ("lint tiny.onnx --config broken.yaml", "'broken.yaml' is not valid YAML"),
    "bad imgsz": (f"run {GOOD} --set model.imgsz=100 --out a", "the nearest is 96"),
    "unmatched exclude": (
        f"calibrate {GOOD} --set quantization.exclude=[model.99] --set model.imgsz=64 --out a.safetensors",
        "'model.99' matches no convolution",
    ),
    "per group without auto": (
        f"calibrate {GOOD} --set quantization.calibrator=max --set quantization.auto_per_group=true --out a",
        "needs quantization.calibrator=auto",
    ),
    "negative budget": (f"qat {GOOD} --max-drop -1 --out a", "qat.max_drop = -1.0"),
    "budget that is no number": (f"qat {GOOD} --max-drop nan --out a", "qat.max_drop = nan"),
    "budget without an ONNX runtime": (
        f"run {GOOD} --set qat.max_drop=1 --set evaluation.runtime=torch --out a",
        "Use openvino or onnxruntime",
    ),
    "batches out of order": ("engine tiny.onnx --set engine.opt_batch=9 --out a.plan", "must be in ascending order"),
    "timing cache of another name": ("engine tiny.onnx --set engine.timing_cache=x.json --out a.plan", "named *.cache"),
    # ONNX files and plans
    "missing onnx": ("engine none.onnx --out a.plan", "'none.onnx' does not exist"),
    "garbage to lint": ("lint garbage.onnx --svg a.svg", "'garbage.onnx'"),
    "garbage to evaluate": ("evaluate garbage.onnx --data good", "'garbage.onnx' is not an ONNX file"),
    "garbage on onnxruntime": ("evaluate garbage.onnx --data good --runtime onnxruntime", "'garbage.onnx'"),
    "garbage to infer": ("infer good/images/val --model garbage.onnx --out a", "'garbage.onnx' is not an ONNX file"),
    "truncated onnx": ("evaluate half.onnx --data good", "'half.onnx'"),
    "unknown operator": ("evaluate unknown.onnx --data good", "Mystery"),
    "onnx on torch": ("evaluate tiny.onnx --data good --runtime torch", "needs a checkpoint"),
    "onnx on tensorrt": ("evaluate tiny.onnx --data good --runtime tensorrt", "needs *.plan or *.engine"),
    "plan on openvino": ("evaluate x.plan --data good --runtime openvino", "needs *.onnx"),
    "plan without its side-car": ("evaluate alone.plan --data good", "Build the engine again"),
    "something else to evaluate": ("evaluate blocker --data good", "needs *.onnx"),
    "engine of another name": ("engine tiny.onnx --out a.trt", "must be named *.plan"),
    "missing source": ("infer none.mp4 --model tiny.onnx", "'none.mp4' does not exist"),
    "damaged source": ("infer damaged/images/train/1.jpg --model tiny.onnx --out a.jpg", "1.jpg' cannot be read"),
    # places that cannot be written
    "train below a file": ("train --weights yolov8n.yaml --data good --out blocker/a", "Cannot write to folder"),
    "calibrate below a file": (f"calibrate {GOOD} --out blocker/a.safetensors", "Cannot write to folder 'blocker'"),
    "calibrate to a folder": (f"calibrate {GOOD} --out folder.safetensors", "'folder.safetensors' is a folder"),
    "calibrate to another name": (f"calibrate {GOOD} --out a.pt", "'a.pt' must be named *.safetensors"),
    "export to another name": ("export yolov8n.yaml --out a", "must be named *.onnx, found 'a'"),
    "ranking to another name": (f"sensitivity {GOOD} --out a.txt", "'a.txt' must be named *.json"),
    "ranking below a file": (f"sensitivity {GOOD} --out blocker/a.json", "Cannot write to folder 'blocker'"),
    "ranking of other classes": ("sensitivity --weights yolov8n.yaml --data signs --out a.json", "2 classes"),
    "cache below a file": (
        f"calibrate {GOOD} --set model.imgsz=64 --set data.calibration_cache=blocker/c --out a.safetensors",
        "Cannot write",
    ),
    "qat below a file": (f"qat {GOOD} --out blocker/a", "Cannot write to folder 'blocker/a'"),
    "export below a file": ("export yolov8n.yaml --precision fp32 --out blocker/a.onnx", "Cannot write to folder"),
    "engine below a file": ("engine tiny.onnx --out blocker/a.plan", "Cannot write"),
    "run below a file": (f"run {GOOD} --out blocker/a", "Cannot write to folder 'blocker/a'"),
    "picture below a file": ("lint tiny.onnx --svg blocker/a.svg", "Cannot write 'blocker/a.svg'"),
    "demo below a file": ("demo --out blocker/a", "Cannot write"),
    "demo set below a file": ("data demo --train 1 --val 1 --out blocker/a", "Cannot write"),
    "convert below a file": (
        "data convert --from coco --annotations good.coco.json --images good/images/val --out blocker/a",
        "Cannot write",
    ),
    "infer below a file": ("infer good/images/val --model tiny.onnx --out blocker/a", "Cannot write"),
    "json below a file": ("lint tiny.onnx --json blocker/a.json", "Cannot write to folder 'blocker'"),
    "json is a folder": ("infer good/images/val --model tiny.onnx --json folder", "--json 'folder' is a folder"),
}


@pytest.mark.parametrize(("arguments", "said"), CASES.values(), ids=CASES)
def test_bad_input(arguments: str, said: str, place: Path) -> None:
    if arguments.startswith("engine"):
        _skip_without_rtx()
    assert said in _refused(arguments, place)


@pytest.mark.parametrize("onnx", ["garbage.onnx", "half.onnx", "unknown.onnx"])
def test_engine_of_a_bad_onnx(onnx: str, place: Path) -> None:
    _skip_without_rtx()
    assert f"'{onnx}'" in _refused(f"engine {onnx} --out a.plan", place)


@pytest.mark.skipif(bool(gpu_names()), reason="this machine has an NVIDIA GPU")
@pytest.mark.parametrize("command", ["evaluate x.plan --data good", "infer good/images/val --model x.plan --out a"])
def test_a_plan_without_a_gpu(command: str, place: Path) -> None:
    assert _refused(command, place).startswith("No NVIDIA GPU found")


def test_an_old_result_survives_a_failure(place: Path) -> None:
    shutil.copy("tiny.onnx", "old.onnx")
    _refused("export truncated.safetensors --out old.onnx", place)
    assert Path("old.onnx").read_bytes() == Path("tiny.onnx").read_bytes()
    Path("old.onnx").unlink()


def _skip_without_rtx() -> None:
    try:
        import_tensorrt("tensorrt-rtx")
    except MissingDependency as exc:
        pytest.skip(f"tensorrt_rtx cannot be imported: {exc}")
