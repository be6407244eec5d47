"""``scripts/gpu_check.sh`` where no GPU is, and every part of its report that needs none."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result
from fake_gpu import COMPUTE_MS, COPY_MS, Gpu, install
from tiny_network import NAMES, tiny_network

from trt_qat.checkpoint import Model, save
from trt_qat.config import QuantizationSection
from trt_qat.engine.gpu import gpu_names
from trt_qat.model.loading import fold_batchnorm
from trt_qat.quantization.insert import quantize_model

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
SCRIPT = SCRIPTS / "gpu_check.sh"


@pytest.fixture(scope="module")
def parts() -> ModuleType:
    """scripts/gpu_check.py."""
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPTS / "gpu_check.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(parts: ModuleType, *arguments: str | Path) -> Result:
    return CliRunner().invoke(parts.cli, [str(argument) for argument in arguments], catch_exceptions=False)


def test_the_script_is_valid_bash() -> None:
    for script in SCRIPTS.glob("*.sh"):
        subprocess.run(["bash", "-n", str(script)], check=True)
        assert script.stat().st_mode & 0o100, f"{script.name} cannot be executed"
        assert "set -euo pipefail" in script.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    subprocess.run(["shellcheck", *map(str, SCRIPTS.glob("*.sh"))], check=True)


@pytest.mark.skipif(bool(gpu_names()), reason="a GPU is here")
def test_without_a_gpu_it_says_so_and_writes_what_it_could(tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "out")],
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "HOME": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    said = done.stdout.splitlines()
    assert [line for line in said if "GPU" in line] == [
        "No usable NVIDIA GPU here (libcuda finds none): nothing of the GPU was checked."
    ]
    page = (tmp_path / "out" / "gpu_check.md").read_text(encoding="utf-8")
    assert "nothing of the GPU was checked" in page
    assert '"gpus": []' in page
    with tarfile.open(tmp_path / "out" / "gpu_check.tar.gz") as archive:
        names = archive.getnames()
    assert {"gpu_check/gpu_check.md", "gpu_check/json/machine.json", "gpu_check/logs/machine.log"} <= set(names)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """What a run with one failed and one skipped step has left."""
    folder = tmp_path / "out"
    (folder / "logs").mkdir(parents=True)
    (folder / "json").mkdir()
    (folder / "logs" / "build_int8.log").write_text(f"reading {folder}/work/x.onnx\nError: it | failed\n\n")
    elsewhere = "/".join(("", "home", "somebody", "y"))
    (folder / "logs" / "qat.log").write_text(f"{Path.home()}/x rtsp://me:secret@camera/1 {elsewhere}\n")
    times = {"fp16": {"median": 2.0, "p90": 2.1, "p99": 2.2}, "int8": {"median": 1.6, "p90": 1.7, "p99": 1.8}}
    latency = {"input": [1, 3, 320, 320], "gpu_ms": times, "gpu_with_copies_ms": times, "int8_speed_up": 1.25}
    (folder / "json" / "latency.json").write_text(json.dumps(latency))
    (folder / "json" / "machine.json").write_text(json.dumps({"gpus": ["NVIDIA Test"]}))
    return folder


def test_the_report_says_what_each_step_found(parts: ModuleType, out: Path) -> None:
    said = _run(parts, "note", out, "qat", "passed", "10", "12.25").output
    assert said == "passed       2.2 s  qat\n"
    assert _run(parts, "note", out, "build_int8", "failed", "0", "1").output.endswith(
        "build_int8: Error: it | failed\n"
    )
    _run(parts, "note", out, "parity", "skipped", "0", "0.1")
    assert _run(parts, "report", out).exit_code == 0
    page = (out / "gpu_check.md").read_text(encoding="utf-8")
    assert "GPU: NVIDIA Test. **Failed: build_int8.**" in page
    assert "| build_int8 | failed | 1.0 | Error: it / failed |" in page
    assert "| parity | skipped | 0.1 |  |" in page
    assert "| [1, 3, 320, 320] | 2.0 (2.0) | 1.6 (1.6) | 1.25 |" in page


def test_nothing_that_names_a_person_or_a_place_is_packed(
    parts: ModuleType, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts.getpass, "getuser", lambda: "somebody")
    monkeypatch.setattr(parts.platform, "node", lambda: "basement-pc")
    with (out / "logs" / "qat.log").open("a") as stream:
        stream.write("owner: somebody on basement-pc, nobody else\n")
    _run(parts, "note", out, "qat", "failed", "0", "1")
    _run(parts, "report", out)
    with tarfile.open(out / "gpu_check.tar.gz") as archive:
        texts = {entry.name: archive.extractfile(entry).read().decode() for entry in archive}  # type: ignore[union-attr]
        assert {(entry.uid, entry.uname, entry.mtime) for entry in archive} == {(0, "", 0)}
    everything = "\n".join(texts.values())
    for secret in (str(out), str(Path.home()) + "/", "secret", "somebody", "basement-pc"):
        assert secret not in everything, secret
    assert "owner: *** on ***, nobody else" in texts["gpu_check/logs/qat.log"]
    assert "reading OUT/work/x.onnx" in texts["gpu_check/logs/build_int8.log"]


def test_ranges_that_differ_are_found(parts: ModuleType, tmp_path: Path) -> None:
    first, second, found = (tmp_path / name for name in ("a.safetensors", "b.safetensors", "found.json"))
    quantized = quantize_model(fold_batchnorm(tiny_network()), NAMES, QuantizationSection())
    quantized.load_amax_({f"activation.{group.name}": torch.tensor(1.0) for group in quantized.placement.groups})
    model = Model(quantized.network, NAMES, (64, 64), Path("tiny.yaml"), "ptq", quantized)
    save(first, model)
    assert _run(parts, "ranges", first, first, "--json", found).exit_code == 0
    figures = json.loads(found.read_text())
    assert figures["equal"] == figures["ranges"] > 20
    assert figures["off_by"] == 0
    name, amax = next(iter(quantized.amax().items()))
    quantized.load_amax_({name: amax * 1.1})
    save(second, model)
    assert _run(parts, "ranges", first, second, "--json", found).exit_code == 1
    figures = json.loads(found.read_text())
    assert figures["worst"] == name
    assert figures["off_by"] == pytest.approx(0.1, rel=1e-3)


def test_files_that_differ_are_found(parts: ModuleType, tmp_path: Path) -> None:
    first, second, found = tmp_path / "a", tmp_path / "b", tmp_path / "found.json"
    first.write_bytes(b"x")
    second.write_bytes(b"y")
    assert _run(parts, "same", first, first, "--json", found).exit_code == 0
    assert _run(parts, "same", first, second, "--json", found).exit_code == 1
    assert json.loads(found.read_text()) == {"equal": False, "bytes": [1, 1]}


def test_what_this_gpu_does_not_run_is_skipped(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "x.plan"
    assert _run(parts, "runs", plan).exit_code == 1
    plan.write_bytes(b"plan")
    sidecar = {"flavor": "tensorrt-rtx", "tensorrt_version": "1.7", "metadata": {"names": "{0: 'a'}"}}
    plan.with_suffix(".json").write_text(json.dumps(sidecar))
    for name, code in (("NVIDIA H100", 77), ("NVIDIA GeForce RTX 4090", 0)):
        monkeypatch.setattr(parts, "gpu_names", lambda name=name: (name,))
        assert _run(parts, "runs", plan).exit_code == code


@pytest.fixture
def gpu(parts: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """One that is not there, with an engine for 32x32 pixels."""
    machine = Gpu()
    machine.engine.update(shape=(-1, 3, 32, 32), profiles=[((1, 3, 32, 32),) * 3])
    install(monkeypatch, "cuda-python", machine)
    monkeypatch.setattr(parts, "gpu_names", lambda: ("NVIDIA Fake",))
    monkeypatch.setattr(parts, "nvidia_smi", lambda fields: [dict.fromkeys(fields, "1 MHz")])
    monkeypatch.setattr(parts, "BATCHES", 6)
    monkeypatch.setattr(parts, "ROUNDS", 2)
    return machine


def _plan(path: Path) -> Path:
    path.write_bytes(b"plan")
    sidecar = {"flavor": "tensorrt", "tensorrt_version": "11.0", "metadata": {"names": "{0: 'a'}"}}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    return path


def test_results_are_compared_whichever_way_they_come(parts: ModuleType, gpu: Gpu, out: Path) -> None:
    file = out / "json" / "requests.json"
    assert _run(parts, "requests", _plan(out / "x.plan"), "--json", file).exit_code == 0
    found = json.loads(file.read_text())
    assert list(found["ways"]) == ["graph", "enqueued", "1 in flight", "2 in flight", "3 in flight"]
    assert found["off_by"] == dict.fromkeys(list(found["ways"])[1:], 0.0)
    assert found["clocks_after"][0]["clocks.sm"] == "1 MHz"
    assert gpu.steps.count("launch") > gpu.steps.count("execute") > 18
    page = parts.report_page(out)
    assert "INT8, input [1, 3, 32, 32]" in page
    assert "| 3 in flight | " in page
    assert gpu.kinds() == {}


def test_results_that_differ_fail(parts: ModuleType, gpu: Gpu, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "_difference", lambda outputs, expected: 0.5)
    file = out / "json" / "requests.json"
    assert _run(parts, "requests", _plan(out / "x.plan"), "--json", file).exit_code == 1
    gpu.failing = {"deserialize"}
    failed = _run(parts, "requests", out / "x.plan", "--json", file)
    assert failed.exit_code == 1
    assert "cannot load" in failed.output


def test_latency_by_events(parts: ModuleType, gpu: Gpu, out: Path) -> None:
    plans = [_plan(out / f"{name}.plan") for name in ("fp16", "int8")]
    assert _run(parts, "latency", *plans, "--json", out / "json" / "latency.json").exit_code == 0
    found = json.loads((out / "json" / "latency.json").read_text())
    assert found["gpu_ms"]["int8"] == {"median": COMPUTE_MS, "p90": COMPUTE_MS, "p99": COMPUTE_MS}
    assert found["gpu_with_copies_ms"]["fp16"]["median"] == COMPUTE_MS + 3 * COPY_MS
