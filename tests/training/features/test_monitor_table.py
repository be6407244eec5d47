"""The monitor's table is read back on resume: a torn last line is left out, anything else that is wrong is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trt_qat.errors import ArtifactError
from trt_qat.training.features.error_monitor import HEADER, read_rows

HEAD = ",".join(HEADER) + "\r\n"
ROW = "1,weight,model.0.conv,31.250,0.5,-0.0100\r\n"


def _table(folder: Path, text: str) -> Path:
    (folder / "t.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder / "t.csv"


def test_good_rows(tmp_path: Path) -> None:
    rows = HEAD + ROW + "2,activation,silu,inf,0.5,nan\r\n"
    assert [row[0] for row in read_rows(_table(tmp_path, rows))] == ["1", "2"]
    assert [row[0] for row in read_rows(_table(tmp_path, rows + "3,weig"))] == ["1", "2"]
    assert read_rows(_table(tmp_path, "")) == read_rows(_table(tmp_path, HEAD)) == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a,b\r\n", "line 1: the columns are"),
        (HEAD + ROW.replace("1,", "x,", 1), "line 2: epoch = 'x'"),
        (HEAD + ROW.replace("1,", "-1,", 1), "line 2: epoch = '-1'"),
        (HEAD + ROW + ROW.replace("1,", "1e99,", 1), "line 3: epoch = '1e99'"),
        (HEAD + ROW.replace("weight", "bias"), "line 2: kind = 'bias'"),
        (HEAD + ROW.replace("model.0.conv", ""), "line 2: layer = ''"),
        (HEAD + ROW.replace("31.250", "many"), "line 2: sqnr_db = 'many'"),
        (HEAD + ROW.replace("0.5", "-0.5"), "line 2: amax = '-0.5'"),
        (HEAD + ROW.replace("-0.0100", ""), "line 2: drift = ''"),
        (HEAD + "1,weight\r\n", "line 2: 2 values, 6 are needed"),
        (HEAD + ROW.replace("conv", "\udcff"), "is not UTF-8"),
        (HEAD + ROW.replace("conv", "x" * 200_000), "field larger than field limit"),
    ],
)
def test_a_violation_is_one_line(text: str, found: str, tmp_path: Path) -> None:
    file = _table(tmp_path, text)
    with pytest.raises(ArtifactError) as caught:
        read_rows(file)
    assert found in str(caught.value)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    with pytest.raises(ArtifactError, match="is a pipe"):
        read_rows(tmp_path / "t.csv")
