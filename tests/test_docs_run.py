"""The commands and the Python of README.md and the tutorial, line by line as they stand there, on the demo's data.

``yolov8n.pt`` and ``best.pt`` are the shipped detector, ``data.yaml`` a small generated set, ``video.mp4`` a generated
street. ``make`` works in a clone whose environment is the one that runs this test.
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
PROGRAMS = {"make", "polygraphy", "python", "trt-qat"}
# How a line begins, and why it is not run here.
NOT_RUN = {
    "pip install": "needs a package registry",
    "make test": "is this suite itself",
    "trt-qat infer rtsp://": "needs a camera",
    "trt-qat infer drive.mp4 'photos/*.jpg' 0": "needs a camera at number 0",
    "ffmpeg -i ...": "has a place to fill in",
    "polygraphy run engines/yolov8n_int8.plan": "needs the GPU that the plan is for",
    "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run engines/yolov8n_int8.plan": "needs the GPU that the plan is for",
}
# How a line begins, and what is put there so that it takes minutes.
SHORTER = {"trt-qat train ": "trt-qat train --set train.epochs=1 "}
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
    everything = [command for page in PAGES for command in commands((ROOT / page).read_text("utf-8"))]
    shown = [command.shown for command in everything]
    assert [begin for begin in (*NOT_RUN, *SHORTER) if not any(line.startswith(begin) for line in shown)] == []
    assert all(_lines(page) for page in PAGES)


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
        write_street_clip(tmp_path / name, frames=25)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page: str, work: Path, tools: Path) -> None:
    environment = {**os.environ, "PATH": f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def run(*command: str) -> None:
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    for line in _lines(page):
        run("bash", "-euo", "pipefail", "-c", _shortened(line))
    code = [block.text for block in blocks((ROOT / page).read_text("utf-8")) if block.language == "python"]
    run("python", "-c", GIVEN + "\n".join(code))
