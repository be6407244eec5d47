"""One process or several under torchrun: the same histograms, comparison and ranges, written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from trt_qat.checkpoint import Model, load, save
from trt_qat.quantization.auto import CANDIDATES
from trt_qat.quantization.calibration_cache import load_histograms


@pytest.fixture(scope="module")
def weights(detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("weights") / "tiny.safetensors", detector).path


# a convolution's last bits depend on the number of threads, so that is the same whatever the number of processes
ONE_THREAD = """
import torch
import trt_qat.api as api
api.tune_cpu = lambda: torch.set_num_threads(1)
from trt_qat.__main__ import main
main()
"""


def calibrate(
    weights: Path, data: Path, folder: Path, processes: int, *settings: str
) -> subprocess.CompletedProcess[str]:
    """``trt-qat calibrate`` in 3 batches of 4 images."""
    folder.mkdir()
    script = folder / "one_thread.py"
    script.write_text(ONE_THREAD, encoding="utf-8")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), str(script), "calibrate"]
    command += ["--weights", str(weights), "--data", str(data), "--out", str(folder / "ptq.safetensors")]
    command += ["--json", str(folder / "result.json")]
    for setting in ("quantization.batch=4", f"data.calibration_cache={folder / 'calib'}", *settings):
        command += ["--set", setting]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=os.environ)


@pytest.mark.slow
def test_processes_give_the_same_calibration(weights: Path, demo_yaml: Path, tmp_path: Path) -> None:
    """4 processes: more than there are batches."""
    found = []
    for processes in (1, 2, 4):
        folder = tmp_path / str(processes)
        done = calibrate(weights, demo_yaml, folder, processes, "quantization.auto_per_group=true")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Calibrated:") == 1
        assert done.stdout.count("chosen") == 1
        result = json.loads((folder / "result.json").read_text())
        assert result.pop("checkpoint") == str(folder / "ptq.safetensors")
        assert len(result["candidates"]) == len(CANDIDATES)
        assert result["groups"]
        (cache,) = (folder / "calib").glob("*.safetensors")
        histograms, quantized = load_histograms(cache), load(folder / "ptq.safetensors").require_quantized()
        assert histograms is not None
        found.append((cache.name, histograms, quantized.amax(), result))
    for name, histograms, amax, result in found[1:]:
        assert (name, result) == (found[0][0], found[0][3])
        for group, histogram in histograms.items():
            expected = found[0][1][group]
            np.testing.assert_array_equal(histogram.counts, expected.counts)
            assert (histogram.limit, histogram.maximum) == (expected.limit, expected.maximum)
        assert all(torch.equal(amax[key], value) for key, value in found[0][2].items())


@pytest.mark.slow
def test_an_error_of_one_process_ends_all(weights: Path, demo_yaml: Path, tmp_path: Path) -> None:
    bad = tmp_path / "data"
    for split in ("train", "val"):
        (bad / "images" / split).mkdir(parents=True)
        for image in sorted((demo_yaml.parent / "images" / split).iterdir()):
            (bad / "images" / split / image.name).write_bytes(image.read_bytes())
    broken = sorted((bad / "images" / "train").iterdir())[5]  # in the second batch: the second process reads it
    broken.write_bytes(b"no image")
    (bad / "data.yaml").write_text(demo_yaml.read_text().replace(str(demo_yaml.parent), str(bad)))
    done = calibrate(weights, bad / "data.yaml", tmp_path / "out", 2)
    assert done.returncode == 1
    assert f"Error: Image '{broken}'" in done.stderr
    assert not (tmp_path / "out" / "ptq.safetensors").exists()
