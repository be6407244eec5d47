"""QAT under torchrun: every process ends with the same weights, one writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trt_qat.checkpoint import Model, load, save

WORKER = """
import json, sys
from pathlib import Path
import torch
from trt_qat import distributed, pipeline
from trt_qat.config import Config
from trt_qat.training import qat

trained = []
original = qat.QATTrainer.train
qat.QATTrainer.train = lambda trainer: (original(trainer), trained.append(trainer))[0]
weights, data, out = map(Path, sys.argv[1:4])
with distributed.process_group():
    pipeline.qat(weights, data, out, Config.load(overrides=sys.argv[4:]))
    state = trained[0]._quantized.network.state_dict()
    first = distributed.broadcast({name: value for name, value in state.items()})
    same = all(torch.equal(value, state[name]) for name, value in first.items())
    images = [batch["im_file"] for batch in trained[0].train_loader]
    Path(f"{out}/rank{distributed.rank()}.json").write_text(json.dumps({"same": same, "images": sum(images, ())}))
    distributed.barrier()
"""


@pytest.mark.slow
def test_two_processes_share_the_images_and_agree(detector: Model, demo_yaml: Path, tmp_path: Path) -> None:
    weights = save(tmp_path / "tiny.safetensors", detector).path
    script, out = tmp_path / "worker.py", tmp_path / "out"
    script.write_text(WORKER, encoding="utf-8")
    settings = ["model.imgsz=64", "qat.epochs=2", "qat.batch=4", "qat.lsq=true", "qat.dampening=0.1"]
    settings += ["qat.progressive=depth", f"data.calibration_cache={tmp_path / 'calib'}"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *torchrun, str(script), str(weights), str(demo_yaml), str(out), *settings]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((out / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert all(rank["same"] for rank in ranks)
    assert len(ranks[0]["images"]) == len(ranks[1]["images"]) == 6
    assert not set(ranks[0]["images"]) & set(ranks[1]["images"])
    assert len((out / "results.csv").read_text().splitlines()) == 3
    last = load(out / "last.safetensors")
    assert last.provenance["training"]["epoch"] == 2
    name = "model.0.conv.weight"
    assert not last.network.state_dict()[name].equal(detector.network.state_dict()[name])
