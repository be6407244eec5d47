"""The commands of README.md and of the documentation, line by line as they stand there, on the demo's data.

``yolov8n.pt`` and ``best.pt`` are the shipped detector, ``data.yaml`` a small generated set, ``video.mp4`` a generated
street; pages that begin where a run has ended find its files under the names that they use. ``make`` works in a clone
whose environment is the one that runs this test.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from documents import ROOT, Command, blocks, commands

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from trt_qat.checkpoint import Model

PAGES = ("README.md", "docs/tutorial.md")
GUIDES = (
    *("docs/compare.md", "docs/deploy.md", "docs/explain.md", "docs/label-free.md", "docs/parity.md"),
    *("docs/rectangular.md", "docs/report.md", "docs/targets.md", "docs/troubleshooting.md"),
    *(f"docs/howto/{name}.md" for name in ("ci-gate", "deepstream", "jetson", "many-machines", "openvino", "triton")),
)
# Pages whose commands are not run here, and why.
PAGES_NOT_RUN = {
    "CONTRIBUTING.md": "the suite itself, and what takes hours",
    "docs/activation.md": "measurements of hours on the traffic signs",
    "docs/compiler.md": "measurements of hours on the traffic signs",
    "docs/howto/custom-calibrator.md": "test_howto_examples.py runs its code",
    "docs/howto/custom-callback.md": "test_howto_examples.py runs its code",
    "docs/howto/custom-runtime.md": "test_howto_examples.py runs its code",
    "docs/howto/custom-target.md": "test_howto_examples.py runs its code",
    "docs/index.md": "README's commands and the tutorial's",
    "docs/models.md": "an hour of training per table",
    "docs/qat.md": "measurements of hours on the traffic signs and COCO",
    "docs/reliability.md": "fuzzing, which takes as long as one lets it",
    "docs/scheme.md": "the tutorial's commands with one setting more",
}
PROGRAMS = {"make", "polygraphy", "python", "torchrun", "trt-qat"}
# How a line begins, and why it is not run here.
NOT_RUN = {
    "pip install": "needs a package registry",
    "make test": "is this suite itself",
    "trt-qat infer rtsp://": "needs a camera",
    "trt-qat infer drive.mp4 'photos/*.jpg' 0": "needs a camera at number 0",
    "ffmpeg -i ...": "has a place to fill in",
    "trt-qat run ... --out runs/mine-tried ...": "is what explain prints, shortened",
    "polygraphy run engines/yolov8n_int8.plan": "needs the GPU that the plan is for",
    "trt-qat parity qat.onnx qat.plan": "needs the GPU that the plan is for",
    "trt-qat parity model.onnx model.plan": "needs the GPU that the plan is for",
    "trt-qat infer photo.jpg --model model.plan": "needs the GPU that the plan is for",
    "trt-qat infer 0 --model signs.plan": "needs a camera, and the GPU that the plan is for",
    "trt-qat engine signs.onnx --flavor tensorrt": "needs TensorRT, whose builder needs a GPU",
    "trt-qat deploy --target triton --model signs.plan": "needs that engine",
    "trt-qat export ptq.safetensors --target ultralytics --format engine": "needs TensorRT, whose builder needs a GPU",
    "trt-qat infer --ray": "needs Ray, whose tests are tests/runtime/test_ray_data.py",
    "python benchmarks/": "is a measurement of many minutes",
    "python scripts/images_table.py": "is a measurement of many minutes",
    "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run engines/yolov8n_int8.plan": "needs the GPU that the plan is for",
}
# How a line begins, and what is put there so that it takes minutes.
SHORTER = {"trt-qat train ": "trt-qat train --set train.epochs=1 "}
# How a line begins whose exit code is an answer, not a fault: worse than the tolerance, and a budget that is not met.
ANSWERS = {
    "trt-qat compare ": 1,
    "trt-qat lint model.onnx --target openvino": 1,
    "trt-qat run --weights best.pt --data mine/data.yaml --out runs/budget ": 3,
}
# What the Python of the pages takes as given.
GIVEN = "import cv2\nframe_bgr = cv2.imread('photo.jpg')\nframes_bgr = [frame_bgr] * 3\n"


def _why_not(command: Command) -> str | None:
    return next((why for begin, why in NOT_RUN.items() if command.shown.startswith(begin)), None)


def _lines(page: str) -> list[str]:
    """What is run of a page: each line once, with all its programs.

    Raises:
        LookupError: a program that is neither run nor left out by name.
    """
    called = [command for command in commands((ROOT / page).read_text("utf-8")) if _why_not(command) is None]
    if unknown := {command.words[0] for command in called} - PROGRAMS:
        raise LookupError(f"{page}: {', '.join(sorted(unknown))} is neither run nor named in NOT_RUN")
    return list(dict.fromkeys(command.shown for command in called))


def _shortened(line: str) -> str:
    found = next((begin for begin in SHORTER if line.startswith(begin)), "")
    return SHORTER.get(found, "") + line.removeprefix(found)


def test_what_is_not_run_is_named_and_there() -> None:
    everything = [command for page in (*PAGES, *GUIDES) for command in commands((ROOT / page).read_text("utf-8"))]
    shown = [command.shown for command in everything]
    assert [
        begin for begin in (*NOT_RUN, *SHORTER, *ANSWERS) if not any(line.startswith(begin) for line in shown)
    ] == []
    assert all(_lines(page) for page in (*PAGES, *GUIDES))


def test_every_page_with_commands_is_run_or_named() -> None:
    pages = [page for page in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if page.name != "CHANGELOG.md"]
    with_commands = {page.relative_to(ROOT).as_posix() for page in pages if commands(page.read_text("utf-8"))}
    assert with_commands == {*PAGES, *GUIDES, *PAGES_NOT_RUN}


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``trt-qat``, ``python`` and ``make`` as a reader has them, for this source tree."""
    folder = tmp_path_factory.mktemp("tools")
    clone = folder / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(sys.prefix)
    make = f"{shutil.which('make')} --directory='{clone}' --old-file=.venv/.ready"
    for name, call in {
        "trt-qat": f"PYTHONPATH='{ROOT}' '{sys.executable}' -m trt_qat",
        "python": f"PYTHONPATH='{ROOT}' '{sys.executable}'",
        "torchrun": f"PYTHONPATH='{ROOT}' '{sys.executable}' -m torch.distributed.run",
        "make": f"PYTHONPATH='{clone}' {make}",
    }.items():
        (folder / name).write_text(f'#!/bin/sh\n{call} "$@"\n', encoding="utf-8")
        (folder / name).chmod(0o755)
    return folder


def _with_batchnorm(model: Model) -> DetectionModel:
    """The network as Ultralytics trains it: each folded convolution apart from a BatchNorm that adds its bias."""
    import torch

    from trt_qat.model.loading import network_from_architecture

    folded = model.network.state_dict()
    network = network_from_architecture(model.network.yaml, model.names)
    network.load_state_dict(folded, strict=False)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.constant_(module.weight, (1 + module.eps) ** 0.5)
            with torch.no_grad():
                module.bias.copy_(folded[f"{name.removesuffix('bn')}conv.bias"])
    return network.eval()


@pytest.fixture
def work(tmp_path: Path, demo_detector: Model, demo_set: Path) -> Path:
    """A folder with what a reader is told to have."""
    import torch
    import yaml

    from trt_qat.demo.clip import write_street_clip

    checkpoint = {"model": _with_batchnorm(demo_detector).half(), "train_args": {"imgsz": 160}}
    for name in ("yolov8n.pt", "best.pt"):
        torch.save(checkpoint, tmp_path / name)
    content = yaml.safe_load(demo_set.read_text(encoding="utf-8"))
    (tmp_path / "mine").mkdir()
    for name in ("data.yaml", "mine/data.yaml"):
        (tmp_path / name).write_text(yaml.safe_dump({**content, "path": str(demo_set.parent)}), encoding="utf-8")
    shutil.copy(next((demo_set.parent / "images" / "val").iterdir()), tmp_path / "photo.jpg")
    for name in ("video.mp4", "street.mp4"):
        write_street_clip(tmp_path / name, frames=40)  # a sign is in sight at the end, which is held out
    return tmp_path


# What the guides find in their folder: files of a run, under the names that they use.
RUN = {
    "ptq.safetensors": ("ptq.safetensors",),
    "qat/best.safetensors": ("best.safetensors", "qat/best.safetensors"),
    "fp32.onnx": ("fp32.onnx", "fp32_640.onnx", "fp16.onnx"),
    "qat.onnx": ("qat.onnx", "int8_640.onnx", "deployed.onnx", "other.onnx", "signs_int8.onnx"),
    "qat_tensorrt.onnx": ("model.onnx", "signs.onnx", "int8.onnx"),
    "run.json": ("run.json",),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tools: Path, demo_set: Path) -> Path:
    """The folder of a run of the shipped detector on the small set."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    detector = ROOT / "trt_qat" / "demo" / "detector.safetensors"
    quick = ("--set", "qat.epochs=1", "--set", "evaluation.latency_iterations=3")
    command = [tools / "trt-qat", "run", "--weights", detector, "--data", demo_set, "--out", folder, *quick]
    subprocess.run(command, cwd=folder.parent, capture_output=True, check=True)
    return folder


@pytest.fixture
def guided(work: Path, finished: Path) -> Path:
    """The same folder with what a run leaves."""
    for place in ("runs/mine", "runs/demo/result"):
        shutil.copytree(finished, work / place)
    for source, names in RUN.items():
        for name in names:
            (work / name).parent.mkdir(exist_ok=True)
            shutil.copy(finished / source, work / name)
    (work / "trt_qat" / "demo").mkdir(parents=True)
    shutil.copy(ROOT / "trt_qat" / "demo" / "detector.safetensors", work / "trt_qat" / "demo")
    shutil.copy(work / "best.pt", work / "yolov8n_vnsigns.pt")
    return work


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES)
def test_a_guide_does_what_it_says(page: str, guided: Path, tools: Path) -> None:
    _check_page(page, guided, tools)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, work: Path, tools: Path) -> None:
    _check_page(page, work, tools)
    code = [block.text for block in blocks((ROOT / page).read_text("utf-8")) if block.language == "python"]
    _check_line(("python", "-c", GIVEN + "\n".join(code)), work, tools)


def _check_page(page: str, work: Path, tools: Path) -> None:
    for line in _lines(page):
        _check_line(("bash", "-euo", "pipefail", "-c", _shortened(line)), work, tools)


def _check_line(command: tuple[str, ...], work: Path, tools: Path) -> None:
    environment = {**os.environ, "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
    answers = {code for begin, code in ANSWERS.items() if command[-1].startswith(begin)}
    said = f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert done.returncode in {0, *answers}, said
    assert "Traceback" not in done.stderr, said
