from __future__ import annotations

from pathlib import Path

import pytest

from trt_qat.config import QatSection
from trt_qat.errors import ArtifactError
from trt_qat.report.training_curves import training_record

RESULTS = """epoch,time,train/box_loss,train/score,metrics/mAP50-95(B),lr/pg0,lr/pg1,lr/pg2
1,740.993,nan,0.03382,0.37846,7.76878e-06,7.76878e-06,7.76878e-06
2,2517.74,nan,0.0225,0.38053,1e-06,1e-06,1e-06
"""
NOISE = """epoch,kind,layer,sqnr_db,amax,drift
0,activation,x,49.087,1,0.0000
0,weight,model.0.conv,inf,1,0.0000
1,activation,x,48.5,1,0.0100
1,weight,model.0.conv,40.25,1,0.2000
"""
KEPT = {"epoch": 2, "fake_quant_map50_95": 0.38053, "start_fake_quant_map50_95": 0.3726}


def test_the_curves_of_a_fine_tuning(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(RESULTS)
    (tmp_path / "quantization_error.csv").write_text(NOISE)
    found = training_record(tmp_path, QatSection(epochs=2, seed=3), 100, KEPT, "mAP")
    assert [(entry.epoch, entry.map50_95) for entry in found.epochs] == [(0, 0.3726), (1, 0.37846), (2, 0.38053)]
    assert found.epochs[2].losses == {"score": 0.0225}  # a part that was not asked for is NaN there
    assert (found.epochs[2].learning_rate, found.epochs[2].seconds) == (1e-6, 2517.74)
    assert (found.best, found.seed, found.images, found.stopped) == (2, 3, 100, "")
    assert [(row.kind, row.layer, row.sqnr_db, row.drift) for row in found.noise] == [
        ("activation", "x", (49.087, 48.5), (0.0, 0.01)),
        ("weight", "model.0.conv", (None, 40.25), (0.0, 0.2)),
    ]


def test_a_table_of_agreement_is_read_as_such(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(RESULTS.replace("mAP", "agreement"))
    kept = {"measure": "agreement", "epoch": 2, "start_fake_quant_agreement50_95": 0.9}
    found = training_record(tmp_path, QatSection(epochs=2), 1, kept, "agreement")
    assert [entry.map50_95 for entry in found.epochs] == [0.9, 0.37846, 0.38053]
    with pytest.raises(ArtifactError, match=r"table of epochs \('metrics/mAP50-95\(B\)'\)"):
        training_record(tmp_path, QatSection(epochs=2), 1, kept, "mAP")


def test_a_run_that_ended_early_says_so(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text(RESULTS)
    assert training_record(tmp_path, QatSection(epochs=5), 1, KEPT, "mAP").stopped == "it ended after 2 of 5 epochs"


def test_a_table_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("epoch,time\n1,2\n")
    with pytest.raises(ArtifactError, match=r"results\.csv' is not Ultralytics' table of epochs"):
        training_record(tmp_path, QatSection(), 1, KEPT, "mAP")
