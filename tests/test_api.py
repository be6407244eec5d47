"""The package as a library: the documented examples run as they stand, and the verbs refuse what they cannot do."""

from __future__ import annotations

import ast
import copy
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from clips import write_clip

import trt_qat
from trt_qat import api
from trt_qat.checkpoint import Model, load
from trt_qat.data.dataset import Dataset, load_dataset
from trt_qat.demo.clip import street_clip
from trt_qat.demo.generate import generate_demo_set
from trt_qat.engine.flavor import import_tensorrt
from trt_qat.errors import ConfigError, DatasetError, MissingDependency, QuantizationError, TrtQatError
from trt_qat.model.loading import raw_output
from trt_qat.vision.image import read_image_bgr

# the documented examples -------------------------------------------------------------------------------------------

EXAMPLES = doctest.DocTestParser().get_examples(trt_qat.__doc__ or "")
FLAGS = doctest.NORMALIZE_WHITESPACE


def builds_engines() -> bool:
    try:
        import_tensorrt("tensorrt-rtx")
    except MissingDependency:
        return False
    return True


@pytest.fixture(scope="module")
def ran(demo_detector: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """The names that the package's own example leaves, run in its folder; the last example (the detector) is not run.

    ``best.pt`` is the shipped detector as Ultralytics saves one, to be seen at half its size; few images, for the time.
    """
    folder = tmp_path_factory.mktemp("example")
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.save({"model": copy.deepcopy(demo_detector.network).half(), "train_args": {"imgsz": 160}}, "best.pt")
        write_clip(folder / "street.mp4", (image for image, _ in street_clip(30, size_wh=(160, 96))), size_wh=(160, 96))
        few = generate_demo_set(folder / "set", train=8, val=16)
        content = yaml.safe_load(few.read_text(encoding="utf-8"))
        Path("data.yaml").write_text(yaml.safe_dump({**content, "path": str(few.parent)}), encoding="utf-8")
        for example in EXAMPLES[:-1]:
            if builds_engines() or "trt_qat.build" not in example.source:
                exec(example.source, names)
        yield names


def test_the_example_goes_from_a_checkpoint_to_an_engine(ran: dict[str, Any]) -> None:
    model, int8, tuned = ran["model"], ran["int8"], ran["tuned"]
    assert (model.stage, int8.stage, tuned.stage) == ("fp32", "ptq", "qat")
    assert (model.task, model.imgsz, model.names) == ("detect", (160, 160), int8.names)
    last = trt_qat.load("runs/x/last.safetensors")  # of so few images the start may be the best
    assert not torch.equal(last.network.model[0].conv.weight, int8.network.model[0].conv.weight)
    (row,) = ran["rows"]
    assert (row.model, row.precision, row.runtime, row.images) == ("best_int8.onnx", "int8+fp16", "openvino", 16)
    (of_float,) = api.evaluate([model], "data.yaml", latency_iterations=3, latency_warmup=0)
    assert of_float.map50_95 > 0.35
    assert row.map50_95 == pytest.approx(of_float.map50_95, abs=0.03)
    assert ran["report"].errors == 0
    assert ran["report"].counts.int8_convs > 50
    assert Path("best_int8.plan").is_file() == builds_engines()
    assert Path("runs/x/best.safetensors").is_file()


def test_the_example_ends_in_detections(ran: dict[str, Any]) -> None:
    """The first image in which the network sees a sign; its box lies on a labelled one of that class."""
    for image in load_dataset(Path("data.yaml")).val:
        names = {**ran, "frame_bgr": read_image_bgr(image)}
        exec(EXAMPLES[-1].source, names)
        found = names["detections"]
        if len(found.scores):
            break
    height, width = names["frame_bgr"].shape[:2]
    label = Path(str(image).replace("images", "labels")).with_suffix(".txt")
    signs = np.loadtxt(label, ndmin=2)  # class, centre x, centre y, width, height
    centre = (found.boxes_xyxy[0, :2] + found.boxes_xyxy[0, 2:]) / 2
    distances = np.abs(signs[:, 1:3] * (width, height) - centre).max(axis=1)
    assert distances.min() < 5
    assert signs[distances.argmin(), 0] == found.class_ids[0]


def test_the_readme_shows_the_same_example() -> None:
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", readme, flags=re.MULTILINE | re.DOTALL)
    (shown,) = [block for block in blocks if "trt_qat.finetune(" in block]
    assert ast.dump(ast.parse(shown)) == ast.dump(ast.parse("".join(example.source for example in EXAMPLES)))


DOCUMENTED = [name for name in trt_qat._HOMES if trt_qat._HOMES[name] in ("trt_qat.api", "trt_qat.checkpoint")]


# what these take many seconds for, tests/mixed_precision and tests/training/test_activation_training.py do too
SLOW = dict.fromkeys(("advise", "keep_budget", "replace_activation"), pytest.mark.slow)


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in DOCUMENTED])
def test_the_examples_of_a_verb_give_what_they_say(ran: dict[str, Any], name: str) -> None:
    if name in ("advise", "build") and not builds_engines():
        pytest.skip("tensorrt_rtx is not installed")
    documented = getattr(trt_qat, name)
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(documented) or "", dict(ran), name, None, 0)
    assert test.examples
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append)
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("name", [name for name in trt_qat.__all__ if name != "__version__"])
def test_every_public_name_is_documented(name: str) -> None:
    public = getattr(trt_qat, name)
    said = inspect.getdoc(public) or ""
    assert said.splitlines()[0].endswith((".", ":")), said
    if inspect.isfunction(public):
        assert "Raises:" in said
        assert "Examples:" in said or name not in DOCUMENTED
        annotations = inspect.signature(public)
        assert annotations.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in annotations.parameters.values())


# what the package is -----------------------------------------------------------------------------------------------


def test_public_names_are_those_that_can_be_had() -> None:
    assert sorted(dir(trt_qat)) == sorted(trt_qat.__all__)
    assert len(set(trt_qat.__all__)) == len(trt_qat.__all__)
    for name in trt_qat.__all__:
        assert getattr(trt_qat, name) is not None
    for name, home in trt_qat._HOMES.items():
        assert getattr(trt_qat, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="module 'trt_qat' has no attribute 'quantise'"):
        trt_qat.quantise  # noqa: B018
    namespace: dict[str, Any] = {}
    exec("from trt_qat import *", namespace)
    assert set(trt_qat.__all__) <= set(namespace)


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(inspect.getsource(trt_qat))
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    lines = [line for line in block.body if isinstance(line, ast.ImportFrom)]
    seen = {(alias.name, line.module) for line in lines for alias in line.names}
    assert seen == set(trt_qat._HOMES.items())
    assert set(trt_qat.__all__) == set(trt_qat._HOMES) | {"Config", "TrtQatError", "__version__"}


def test_no_module_hides_a_public_name() -> None:
    """``trt_qat.export`` would become a module as soon as anyone imports a module of that name."""
    modules = {module.name for module in pkgutil.iter_modules(trt_qat.__path__)}
    assert modules & set(trt_qat.__all__) == set()


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import trt_qat", {"torch", "onnx", "openvino", "onnxruntime", "ultralytics", "cv2", "numpy", "tensorrt"}),
        ("import trt_qat; trt_qat.Config(); dir(trt_qat)", {"torch", "onnx", "openvino", "ultralytics", "cv2"}),
        ("import trt_qat; trt_qat.lint", {"torch", "ultralytics", "openvino", "onnxruntime"}),
        ("import trt_qat; trt_qat.Detector; trt_qat.Detections", {"torch", "ultralytics", "openvino", "onnxruntime"}),
    ],
)
def test_a_name_loads_only_what_it_needs(code: str, absent: set[str]) -> None:
    code += f"\nimport sys\nprint(sorted({absent!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# quantize ----------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"calibrator": "max", "batch": 4}


def ranges(model: Model) -> dict[str, torch.Tensor]:
    return model.require_quantized().amax()


@pytest.fixture
def ptq(detector: Model, calibrated: Callable[..., Any]) -> Model:
    return detector.with_quantized(calibrated(), "ptq", {})


@pytest.mark.slow
def test_images_may_be_a_dataset_paths_strings_or_arrays(detector: Model, demo: Dataset, demo_yaml: Path) -> None:
    images = demo.train[:4]
    expected = ranges(api.quantize(detector, images, **QUICK))
    for data in (list(map(str, images)), [read_image_bgr(image) for image in images], iter(images)):
        found = ranges(api.quantize(detector, data, **QUICK))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], amax) for name, amax in expected.items())
    whole = [ranges(api.quantize(detector, data, **QUICK)) for data in (demo, demo_yaml, str(demo_yaml), demo.train)]
    assert all(torch.equal(found[name], amax) for found in whole[1:] for name, amax in whole[0].items())
    assert any(not torch.equal(whole[0][name], amax) for name, amax in expected.items())


def test_at_most_so_many_images_evenly_spaced(detector: Model, demo: Dataset) -> None:
    some = ranges(api.quantize(detector, demo.train, images=3, **QUICK))
    same = ranges(api.quantize(detector, demo.train[::4], **QUICK))
    assert all(torch.equal(some[name], amax) for name, amax in same.items())


def test_the_model_is_left_as_it_is(detector: Model, demo: Dataset) -> None:
    before = {name: value.clone() for name, value in detector.network.state_dict().items()}
    types = {name: type(module) for name, module in detector.network.named_modules()}
    images = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    output = raw_output(detector.network, images)
    int8 = api.quantize(detector, demo, images=2, **QUICK)
    assert (detector.stage, detector.quantized, detector.provenance) == ("fp32", None, {})
    assert (int8.names, int8.imgsz, int8.source) == (detector.names, detector.imgsz, detector.source)
    assert {name: type(module) for name, module in detector.network.named_modules()} == types
    after = detector.network.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert torch.equal(raw_output(detector.network, images), output)
    assert not torch.equal(raw_output(int8.network, images), output)


WATCHED = """
import os, sys
import cv2, torch, ultralytics
import trt_qat, trt_qat.api
import trt_qat.quantization.toolkits.modelopt
written = []
def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and path != os.devnull:
            written.append(str(path))
    elif event in ("os.mkdir", "os.rename", "os.remove"):
        written.append(str(arguments[0]))
model = trt_qat.load(sys.argv[1], imgsz=64)
sys.dont_write_bytecode = True
sys.addaudithook(watch)
int8 = trt_qat.quantize(model, sys.argv[2], images=4, calibrator="percentile")
sys.stdout.write(f"{int8.stage} {written} {os.listdir()}")
"""


def test_quantize_writes_nothing_anywhere(demo_detector: Model, demo_set: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_set.parent.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(demo_detector.source), str(demo_set)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(trt_qat.__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ptq [] []"
    assert {path: path.stat().st_mtime_ns for path in demo_set.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ([], "Calibration got no image. Give at least one file or array."),
        ([np.zeros((8, 8), np.uint8)], "must be a file or uint8 BGR pixels (h, w, 3), found uint8 (8, 8)."),
        ([np.zeros((8, 8, 3), np.float32)], "must be a file or uint8 BGR pixels (h, w, 3), found float32 (8, 8, 3)."),
        (np.zeros((8, 8, 3), np.uint8), "found uint8 (8, 3)."),  # one image in place of several
        ([torch.zeros(3, 8, 8)], "found torch.float32 torch.Size([3, 8, 8])."),
        ([np.zeros((0, 8, 3), np.uint8)], "found uint8 (0, 8, 3)."),
        ([7], "found int ()."),
        (["none.jpg"], "'none.jpg'"),
        ("none", "'none'"),
    ],
)
def test_what_is_no_image_is_refused(detector: Model, data: Any, said: str) -> None:
    with pytest.raises(TrtQatError, match=re.escape(said)) as caught:
        api.quantize(detector, data, **QUICK)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DatasetError)


# the verbs refuse --------------------------------------------------------------------------------------------------

NOTHING: Any = None  # what is not looked at before the keywords are


@pytest.mark.parametrize(
    ("verb", "arguments", "wrong", "nearest"),
    [
        ("train", 3, "epoch", "train.epoch'. Did you mean 'epochs'?"),
        ("quantize", 2, "calibratr", "quantization.calibratr'. Did you mean 'calibrator'?"),
        ("sensitivity", 2, "metrc", "sensitivity.metrc'. Did you mean 'metric'?"),
        ("finetune", 3, "epoch", "qat.epoch'. Did you mean 'epochs'?"),
        ("export", 2, "targt", "export.targt'. Did you mean 'target'?"),
        ("build", 2, "flavour", "engine.flavour'. Did you mean 'flavor'?"),
        ("evaluate", 2, "thread", "evaluation.thread'. Did you mean 'threads'?"),
    ],
)
def test_an_unknown_keyword_suggests_the_nearest(
    detector: Model, demo: Dataset, verb: str, arguments: int, wrong: str, nearest: str
) -> None:
    given: tuple[Any, ...] = (detector, demo, "out")
    if verb in ("export", "build"):
        given = (detector, "out") if verb == "export" else ("none.onnx", "none.plan")
    elif verb == "evaluate":
        given = ([detector], demo)
    with pytest.raises(ConfigError) as caught:
        getattr(api, verb)(*given[:arguments], **{wrong: 1})
    assert str(caught.value) == f"Unknown key '{nearest}"
    with pytest.raises(TypeError, match="positional"):
        getattr(api, verb)(*given[:arguments], None, 1)


def test_bad_value_of_a_keyword(detector: Model) -> None:
    with pytest.raises(ConfigError, match=r"quantization\.images = 0: .* greater than or equal to 1"):
        api.quantize(detector, [], images=0)
    with pytest.raises(ConfigError, match=r"^Key 'qat\.learned_scales' has a new name: qat\.lsq\.$"):
        api.finetune(detector, NOTHING, "out", learned_scales=True)


def test_a_quantized_model_is_not_quantized_again(ptq: Model, demo: Dataset) -> None:
    with pytest.raises(TrtQatError, match=r"^'yolov8n\.yaml' is quantized already \(ptq\)\. Give the float weights\.$"):
        api.quantize(ptq, demo)


@pytest.mark.parametrize(
    "verb",
    [
        lambda model, data, out: api.finetune(model, data, out),
        lambda model, data, out: api.sensitivity(model, data),
        lambda model, data, out: api.keep_budget(model, model, data, 1, evaluation=None),
    ],
    ids=["finetune", "sensitivity", "keep_budget"],
)
def test_a_float_model_is_calibrated_first(
    detector: Model, demo: Dataset, tmp_path: Path, verb: Callable[..., object]
) -> None:
    with pytest.raises(QuantizationError, match=r"^'yolov8n\.yaml' is a float model.*Quantize it first\.$"):
        verb(detector, demo, tmp_path / "out")
    assert not (tmp_path / "out" / "best.safetensors").exists()


def test_a_dataset_of_other_classes_is_refused(detector: Model, ptq: Model, demo_yaml: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(demo_yaml.read_text(encoding="utf-8"))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({**content, "path": str(demo_yaml.parent), "names": ["stop", "yield"]}))
    for verb in (
        lambda: api.quantize(detector, other),
        lambda: api.sensitivity(ptq, other),
        lambda: api.finetune(ptq, other, tmp_path / "out"),
        lambda: api.keep_budget(ptq, ptq, other, 1),
        lambda: api.evaluate([ptq], other),
    ):
        with pytest.raises(DatasetError, match=r"2 classes \(stop, yield\), the model 7") as caught:
            verb()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_section_and_keywords_together(detector: Model, demo: Dataset) -> None:
    """Keywords change single settings of the section that is given."""
    section = trt_qat.Config().quantization.replace(calibrator="max", images=3, exclude=("model.[4-9].*", "model.1*"))
    by_section = api.quantize(detector, demo, section)
    changed = api.quantize(detector, demo, section, calibrator="percentile", percentile=90)
    assert by_section.provenance["calibration"]["calibrator"] == "max"
    assert changed.provenance["calibration"]["percentile"] == 90
    assert ranges(by_section).keys() == ranges(changed).keys()
    activations = [name for name in ranges(changed) if name.startswith("activation.")]
    assert 0 < len(activations) < 20
    assert all(ranges(changed)[name] < ranges(by_section)[name] for name in activations)


def test_a_model_in_memory_is_evaluated_like_its_file(demo_detector: Model, demo_set: Path) -> None:
    loaded = load(demo_detector.source)
    rows = api.evaluate([demo_detector, loaded.source], demo_set, latency_iterations=3, latency_warmup=0)
    assert rows[0].map50_95 == rows[1].map50_95 > 0.6
    assert [row.model for row in rows] == [str(demo_detector.source)] * 2
