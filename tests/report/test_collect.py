from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from trt_qat.config import Config
from trt_qat.quantization.calibration import Calibration, Candidate
from trt_qat.quantization.calibrators.max import Max
from trt_qat.quantization.calibrators.percentile import Percentile
from trt_qat.report.collect import calibration_record, repeated


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["model.imgsz=[384, 640]", "qat.epochs=7", "qat.lsq=true", "qat.max_drop=0.2", "qat.lr0=1e-4"],
        ["quantization.exclude=['model.22.*', 'model.[0-3]']", "quantization.calibrator=mse", "infer.classes=[stop]"],
        ["data.calibration_cache='a folder/of caches'", "export.target=openvino", "model.device=cuda:1"],
        ["data.calibration_cache='null'"],
    ],
)
def test_the_command_repeats_the_settings(settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config.load((), settings)
    data = [Path("/else/where/data.yaml"), Path("more/*.mp4")]
    words = shlex.split(repeated(tmp_path / "my weights" / "best.pt", data, Path("out"), config))
    named = ["--weights", "my weights/best.pt", "--data", "data.yaml", "--data", "more/*.mp4", "--out", "out"]
    assert words[:10] == ["trt-qat", "run", *named]
    assert words[10::2] == ["--set"] * len(words[11::2])
    assert Config.load((), words[11::2]) == config


def test_calibrators_in_words() -> None:
    candidates = (Candidate(Max(), 0.25, False), Candidate(Percentile(99.9), 0.125, True))
    found = calibration_record(Calibration(Percentile(99.9), candidates, {"add_1": Max()}))
    assert (found.calibrator, found.groups) == ("percentile 99.9", {"add_1": "max"})
    assert [(row.calibrator, row.error, row.chosen) for row in found.tried] == [
        ("max", 0.25, False),
        ("percentile 99.9", 0.125, True),
    ]
