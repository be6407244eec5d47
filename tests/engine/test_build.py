from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import onnx as onnx_package
import pytest
from tiny_onnx import NAMES, write_free_size, write_tiny_detector, write_unknown_operator

import trt_qat
from trt_qat.artifacts import file_sha256
from trt_qat.config import EngineSection, Flavor
from trt_qat.engine import build
from trt_qat.engine.build import _note_form, build_engine, choose_flavor
from trt_qat.engine.engine_file import Gpu, Preprocessing, read_engine, read_sidecar
from trt_qat.engine.gpu import compute_capability, gpu_names
from trt_qat.errors import ArtifactError, ConfigError, EngineError, MissingDependency
from trt_qat.progress import Silent

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")


def test_plan_and_sidecar_of_a_dynamic_model(tmp_path: Path) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx", batch=None)
    section = EngineSection(max_batch=4, compute_capabilities=(89, 120), timing_cache=str(tmp_path / "t" / "t.cache"))
    artifact = build_engine(onnx, tmp_path / "out" / "tiny.plan", section)
    described = json.loads(artifact.sidecar.read_text())
    assert artifact.path.stat().st_size == described["size_bytes"] > 1000
    assert described["onnx"] == "tiny.onnx"
    assert described["onnx_sha256"] == file_sha256(onnx)
    assert described["flavor"] == artifact.flavor == "tensorrt-rtx"
    assert described["inputs"] == [{"name": "images", "dtype": "float32", "shape": [-1, 3, 64, 64]}]
    assert described["outputs"] == [{"name": "output0", "dtype": "float32", "shape": [-1, 7, 64]}]
    shapes = {"min": [1, 3, 64, 64], "opt": [1, 3, 64, 64], "max": [4, 3, 64, 64]}
    assert described["profiles"] == [{"images": shapes}]
    assert described["compute_capabilities"] == [89, 120]
    assert described["metadata"]["names"] == str(NAMES)
    assert described["build_seconds"] > 0
    assert (tmp_path / "t" / "t.cache").is_file()
    assert sorted(path.name for path in artifact.path.parent.iterdir()) == ["tiny.json", "tiny.plan"]


def test_the_sidecar_says_how_to_feed_the_plan_and_what_made_it(tmp_path: Path) -> None:
    import tensorrt_rtx

    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    section = EngineSection(flavor="tensorrt-rtx", compute_capabilities=(86, 120))
    described = read_sidecar(build_engine(onnx, tmp_path / "tiny.plan", section).path)
    assert described.tensorrt_version == tensorrt_rtx.__version__
    assert described.onnx_version == onnx_package.__version__
    assert described.trt_qat_version == trt_qat.__version__
    assert described.gpu == (Gpu(name=gpu_names()[0], compute_capability=compute_capability()) if gpu_names() else None)
    assert described.compute_capabilities == (86, 120)
    assert (described.hardware_compatible, described.version_compatible) == ("none", False)
    assert described.names == NAMES
    assert described.preprocessing == Preprocessing(size=(64, 64))
    text = (tmp_path / "tiny.json").read_text()
    (tmp_path / "tiny.json").write_text(text.replace("tiny.onnx", "other.onnx"))
    with pytest.raises(ArtifactError, match=r"tiny.json' was changed after it was written"):
        read_engine(tmp_path / "tiny.plan")


def test_height_and_width_may_be_free(tmp_path: Path) -> None:
    onnx = write_free_size(tmp_path / "free.onnx", props={"names": str(NAMES), "imgsz": "[96, 96]", "stride": "32"})
    section = EngineSection(flavor="tensorrt-rtx", min_size=(32, 64), max_size=(128, 96), max_batch=2)
    described = read_sidecar(build_engine(onnx, tmp_path / "free.plan", section).path)
    assert described.inputs[0].shape == (-1, 3, -1, -1)
    (profile,) = described.profiles
    assert (profile["images"].min, profile["images"].opt) == ((1, 3, 32, 64), (1, 3, 96, 96))
    assert profile["images"].max == (2, 3, 128, 96)
    assert described.preprocessing == Preprocessing(size=(96, 96))
    assert described.metadata["imgsz"] == "[96, 96]"
    smaller = build_engine(onnx, tmp_path / "free.plan", section.replace(opt_size=(64, 96), max_size=(64, 96)))
    assert read_sidecar(smaller.path).metadata["imgsz"] == "[64, 96]"  # what the plan takes, not what the file says


def test_shapes_that_contradict_the_file_build_nothing(tmp_path: Path) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError, match=r"max_batch=4: the batch of 'tiny.onnx' is fixed at 1"):
        build_engine(onnx, tmp_path / "x.plan", EngineSection(flavor="tensorrt-rtx", max_batch=4))
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.onnx"]


def test_static_model_has_no_profile(tmp_path: Path) -> None:
    onnx, section = write_tiny_detector(tmp_path / "tiny.onnx"), EngineSection(compute_capabilities=(89,))
    artifact = build_engine(onnx, tmp_path / "tiny.plan", section)
    assert read_sidecar(artifact.path).profiles == ()
    assert read_engine(artifact.path) == (read_sidecar(artifact.path), artifact.path.read_bytes())


def test_an_engine_file_has_the_header_of_ultralytics_and_a_plan(tmp_path: Path) -> None:
    from ultralytics.nn.backends.base import BaseBackend

    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    section = EngineSection(compute_capabilities=(89,), flavor="tensorrt-rtx")
    artifact = build_engine(onnx, tmp_path / "tiny.engine", section)
    assert artifact.sidecar is None
    offset, metadata = BaseBackend.engine_header(artifact.path)
    assert metadata["names"] == str(NAMES)
    description, plan = read_engine(artifact.path)
    assert (description.flavor, description.metadata["names"]) == ("tensorrt-rtx", str(NAMES))
    assert plan == artifact.path.read_bytes()[offset:]
    assert description.tensorrt_version == metadata["trt_qat"]["tensorrt_version"] != "of unknown version"
    backend = SimpleNamespace(dynamic=False)
    BaseBackend.apply_metadata(backend, metadata)  # what Ultralytics does with a header
    assert (backend.names, backend.imgsz) == (NAMES, [64, 64])
    built = build_engine(onnx, tmp_path / "tiny.plan", section).path.read_bytes()
    assert plan[:4] == built[:4]


def test_an_engine_file_that_ultralytics_could_not_run_is_refused(tmp_path: Path) -> None:
    if choose_flavor("auto")[0] == "tensorrt":
        pytest.skip("TensorRT and a GPU are here")
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(EngineError, match=r"'x.engine' is for Ultralytics, which runs TensorRT: .* or a \*.plan"):
        build_engine(onnx, tmp_path / "x.engine", EngineSection())


@pytest.mark.parametrize(
    "content", [b"", b"abc", b"\xff\xff\xff\x7f{}", b"\x02\x00\x00\x00[]plan", b"\x02\x00\x00\x00{"]
)
def test_broken_engine_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.engine").write_bytes(content)
    with pytest.raises(
        ArtifactError,
        match=r"is empty|not an Ultralytics engine: .*Build the engine again|not valid JSON",
    ):
        read_engine(tmp_path / "x.engine")


@pytest.fixture
def timings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of timing caches, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "trt_qat" / "timing"


def _timing_caches(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.cache"))


def test_a_timing_cache_is_kept_per_version_and_device(tmp_path: Path, timings: Path) -> None:
    import tensorrt_rtx

    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    build_engine(onnx, tmp_path / "tiny.plan", EngineSection(compute_capabilities=(89,)))
    (cache,) = _timing_caches(timings)
    assert cache.name == f"tensorrt-rtx-{tensorrt_rtx.__version__}-sm89.cache"
    kept = cache.read_bytes()
    cache.write_bytes(b"garbage")  # a damaged one is replaced
    build_engine(onnx, tmp_path / "tiny.plan", EngineSection(compute_capabilities=(89,)))
    assert len(cache.read_bytes()) == len(kept)
    build_engine(onnx, tmp_path / "tiny.plan", EngineSection(compute_capabilities=(120,)))
    assert len(_timing_caches(timings)) == 2


def test_no_timing_cache_where_none_is_wanted(tmp_path: Path, timings: Path) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    build_engine(onnx, tmp_path / "tiny.plan", EngineSection(compute_capabilities=(89,), timing_cache=""))
    assert _timing_caches(timings) == []


def test_a_build_without_a_place_for_timings_is_still_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    assert build_engine(onnx, tmp_path / "tiny.plan", EngineSection(compute_capabilities=(89,))).path.is_file()


@pytest.mark.parametrize(
    ("installed", "gpus", "expected", "why"),
    [
        (True, ("NVIDIA A",), "tensorrt", r"package tensorrt and a GPU \(NVIDIA A\) are here"),
        (True, (), "tensorrt-rtx", "here is no GPU$"),
        (False, ("NVIDIA A",), "tensorrt-rtx", "here is no package tensorrt$"),
        (False, (), "tensorrt-rtx", "no package tensorrt and no GPU$"),
    ],
)
def test_flavor_auto(
    monkeypatch: pytest.MonkeyPatch, installed: bool, gpus: tuple[str, ...], expected: str, why: str
) -> None:
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object() if installed else None)
    monkeypatch.setattr(build, "gpu_names", lambda: gpus)
    flavor, reason = choose_flavor("auto")
    assert flavor == expected
    assert re.search(why, reason)
    assert choose_flavor("tensorrt") == ("tensorrt", "it was asked for")


class _Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_the_build_says_which_flavor_and_why(tmp_path: Path) -> None:
    notes = _Notes()
    section = EngineSection(flavor="tensorrt-rtx")
    build_engine(write_tiny_detector(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan", section, notes)
    assert notes.lines == ["Building with tensorrt-rtx: it was asked for."]
    one = (tmp_path / "tiny.plan").stat().st_size
    build_engine(tmp_path / "tiny.onnx", tmp_path / "two.plan", section.replace(compute_capabilities=(75, 89)), notes)
    assert notes.lines[-1].startswith("The oldest GPU generation decides the kernels for all: with 75 in ")
    assert (tmp_path / "two.plan").stat().st_size > one  # both are in it


def test_parser_error_names_the_node(tmp_path: Path) -> None:
    onnx = write_unknown_operator(tmp_path / "unknown.onnx")
    with pytest.raises(EngineError, match=r"cannot parse 'unknown.onnx': node 'strange_node' \(Mystery\): .*Plugin"):
        build_engine(onnx, tmp_path / "out.plan", EngineSection())
    assert [path.name for path in tmp_path.iterdir()] == ["unknown.onnx"]


def test_unknown_compute_capability_lists_the_known_ones(tmp_path: Path) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError, match=r"11 is unknown.*Known: \[75, 80"):
        build_engine(onnx, tmp_path / "out.plan", EngineSection(compute_capabilities=(11,)))


def test_missing_and_truncated_onnx(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        build_engine(tmp_path / "none.onnx", tmp_path / "out.plan", EngineSection())
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    onnx.write_bytes(onnx.read_bytes()[:300])
    with pytest.raises(ArtifactError, match="truncated"):
        build_engine(onnx, tmp_path / "out.plan", EngineSection())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_batch": 3}, "ascending order"),
        ({"timing_cache": "model.onnx"}, r"named \*.cache"),
        ({"flavor": "tensorrt", "compute_capabilities": (89,)}, "tensorrt-rtx only"),
        ({"flavor": "tensorrt-rtx", "optimization_level": 5}, "--flavor tensorrt only"),
        ({"flavor": "tensorrt-rtx", "version_compatible": True}, "--flavor tensorrt only"),
        ({"flavor": "tensorrt-rtx", "hardware_compatible": "ampere_plus"}, "--flavor tensorrt only"),
    ],
)
def test_wrong_section(tmp_path: Path, values: dict[str, object], message: str) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(ConfigError, match=message):
        build_engine(onnx, tmp_path / "out.plan", EngineSection(**values))


def test_only_plan_files_are_written(tmp_path: Path) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    with pytest.raises(EngineError, match=r"named \*.plan"):
        build_engine(onnx, onnx, EngineSection())


def test_flavor_tensorrt_without_package_or_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx, section = write_tiny_detector(tmp_path / "tiny.onnx"), EngineSection(flavor="tensorrt")
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependency, match="pip install tensorrt, or use --flavor tensorrt-rtx"):
        build_engine(onnx, tmp_path / "out.plan", section)
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(build, "gpu_names", tuple)
    with pytest.raises(EngineError, match="No NVIDIA GPU found"):
        build_engine(onnx, tmp_path / "out.plan", section)


@pytest.mark.parametrize(("code", "message"), [("raise SystemExit(3)", "exit code 3"), ("os.abort()", "SIGABRT")])
def test_crash_of_the_build_process_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    onnx = write_tiny_detector(tmp_path / "tiny.onnx")
    (tmp_path / "crashing_child.py").write_text(f"import os\nprint('last words', flush=True)\n{code}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(build, "_CHILD_MODULE", "crashing_child")
    with pytest.raises(EngineError, match=f"{message}. Its last words: last words$"):
        build_engine(onnx, tmp_path / "out" / "out.plan", EngineSection())
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("content", ["{", "[]", '{"flavor": "other"}'])
def test_broken_sidecar(tmp_path: Path, content: str) -> None:
    (tmp_path / "tiny.json").write_text(content)
    with pytest.raises(ArtifactError, match="Build the engine again"):
        read_sidecar(tmp_path / "tiny.plan")


@pytest.mark.parametrize(
    ("target", "precision", "flavor", "said"),
    [
        ("tensorrt", "int8+fp16", "tensorrt-rtx", True),
        ("tensorrt-rtx", "int8+fp16", "tensorrt", True),
        ("tensorrt", "int8+fp16", "tensorrt", False),
        ("tensorrt-rtx", "int8+fp16", "tensorrt-rtx", False),
        ("tensorrt", "fp16", "tensorrt-rtx", False),
        ("ultralytics", "int8+fp16", "tensorrt-rtx", False),
        (None, "int8+fp16", "tensorrt-rtx", False),
    ],
)
def test_int8_for_another_compiler_is_noted(target: str | None, precision: str, flavor: Flavor, said: bool) -> None:
    notes = _Notes()
    _note_form({"precision": precision} | ({"target": target} if target else {}), flavor, notes)
    assert [f"export --target {flavor}" in line for line in notes.lines] == [True] * said
