"""The plain install: what it brings is enough to run a model, and what it lacks is named with the extra that has it.

The environment without the rest is made by a gate in a process of its own, which hides every installed package that
the plain install of pyproject.toml with OpenVINO does not bring; `scripts/slim_check.sh` makes a real one.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tiny_onnx import write_tiny_detector

from trt_qat.extras import EXTRA_OF, extras_named, install_hint
from trt_qat.results import Latency, ResultRow, write_rows

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
# Modules that no extra brings: they come with a driver, with torch, or are built by hand.
FOREIGN = {"cuda", "tensorrt", "pytorch_quantization"}
# What gives a module that is not called as its package, where that package may be absent or share the module.
MODULE_OF = {"opencv-python-headless": {"cv2"}, "tensorrt-rtx": {"tensorrt_rtx"}}
GATE = """
import json, sys
refused = set(json.loads(sys.argv.pop(1)))
class Gate:
    finders = list(sys.meta_path)
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in refused:
            for finder in self.finders:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
sys.meta_path[:] = [Gate()]
"""


@cache
def _project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


@cache
def _modules() -> dict[str, set[str]]:
    """Installed package, by its canonical name, to the modules that it brings."""
    found: dict[str, set[str]] = {}
    for module, packages in packages_distributions().items():
        for package in packages:
            found.setdefault(canonicalize_name(package), set()).add(module)
    return found


def _modules_of(package: str) -> set[str]:
    return MODULE_OF.get(package) or _modules().get(package) or {package.replace("-", "_")}


def _wanted(requirements: list[str], extras: frozenset[str] = frozenset()) -> list[Requirement]:
    """Those that hold in this environment."""
    parsed = map(Requirement, requirements)
    return [
        need
        for need in parsed
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in extras or {""})
    ]


def _brought(requirements: list[str]) -> set[str]:
    """Modules that installing these brings, with everything that they need in turn."""
    waiting, seen = _wanted(requirements), set()
    while waiting:
        need = waiting.pop()
        package, extras = canonicalize_name(need.name), frozenset(need.extras)
        if (package, extras) in seen:
            continue
        seen.add((package, extras))
        try:
            waiting += _wanted(requires(package) or [], extras)
        except PackageNotFoundError:  # of its own modules the table knows
            continue
    return set().union(*(_modules_of(package) for package, _ in seen))


def _hidden() -> list[str]:
    project = _project()
    kept = _brought([*project["dependencies"], *project["optional-dependencies"]["openvino"]]) | {"trt_qat"}
    return sorted(set().union(*_modules().values(), EXTRA_OF, FOREIGN) - kept)


def _gated(code: str, *words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", GATE + code, json.dumps(_hidden()), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)


def test_the_table_is_that_of_the_project_file() -> None:
    """Both ways: each package of an extra has its row, each row its package."""
    extras = _project()["optional-dependencies"]
    declared: dict[str, set[str]] = {}
    for extra in ("openvino", "onnxruntime", "train", "gpu", "track", "ray"):
        for need in map(Requirement, extras[extra]):
            if need.name != "trt_qat":
                for module in _modules_of(canonicalize_name(need.name)) - {"typing_extensions"}:
                    declared.setdefault(module, set()).add(extra)
    absent = {module for module, extra in EXTRA_OF.items() if extra not in declared.get(module, set())}
    assert absent == set()
    used = set().union(*_third_party().values())  # a package brings more, as torch brings functorch
    assert used & set(declared) - set(EXTRA_OF) == set()


@cache
def _third_party() -> dict[str, set[str]]:
    found = {}
    for file in sorted((ROOT / "trt_qat").rglob("*.py")):
        modules = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
        found[str(file.relative_to(ROOT))] = modules - set(sys.stdlib_module_names) - {"trt_qat"}
    return found


def test_every_import_of_the_package_is_asked_for() -> None:
    known = set(EXTRA_OF) | FOREIGN | _brought(_project()["dependencies"])
    assert {file: left for file, modules in _third_party().items() if (left := modules - known)} == {}


def test_all_extras_of_a_developer_are_those_of_the_trainer_and_more() -> None:
    extras = _project()["optional-dependencies"]
    assert "trt_qat[train,track,docs]" in extras["dev"]
    assert "trt_qat[openvino,onnxruntime]" in extras["train"]
    assert not {"torch", "ultralytics", "matplotlib"} & {Requirement(text).name for text in _project()["dependencies"]}


def test_every_package_that_make_installs_is_pinned() -> None:
    """So that `make install` in a fresh clone gives what was tested."""
    pins = (ROOT / "scripts" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    extras = _project()["optional-dependencies"]
    wanted = [
        *_project()["dependencies"],
        *(text for extra in extras.keys() - {"gpu", "ray"} for text in extras[extra]),
    ]
    named = {canonicalize_name(Requirement(text).name) for text in wanted} - {"trt-qat"}
    assert named - {canonicalize_name(Requirement(pin).name) for pin in pins} == set()


def test_a_module_is_found_by_its_dotted_name() -> None:
    assert install_hint("torch.nn.functional") == "pip install 'trt_qat[train]'"
    assert install_hint("numpy") == "pip install trt_qat"


def test_a_missing_module_of_our_own_is_a_bug() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such"), extras_named():
        import trt_qat.no_such  # noqa: F401


def test_whatever_runs_a_model_imports_without_the_rest() -> None:
    """Each module of the package imports, or lacks a package that an extra brings; those that run a model import."""
    code = """
import importlib, pkgutil, warnings
import trt_qat
warnings.simplefilter("ignore")
missing = {}
for module in pkgutil.walk_packages(trt_qat.__path__, "trt_qat.", onerror=lambda name: None):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as exc:
        missing[module.name] = exc.name
    except trt_qat.TrtQatError as exc:
        missing[module.name] = str(exc)
try:
    trt_qat.load
except trt_qat.TrtQatError as exc:
    missing["load"] = str(exc)
print(json.dumps(missing))
"""
    done = _gated(code)
    assert done.returncode == 0, done.stderr
    missing = json.loads(done.stdout)
    assert missing.pop("load") == (
        "This needs the package 'torch', which is not installed: pip install 'trt_qat[train]'."
    )
    lacking = {name.partition(".")[0] for name in missing.values() if "'" not in name}
    assert {EXTRA_OF[name] for name in lacking} == {"train", "gpu"}  # the latter for Polygraphy
    running = ("vision", "linter", "engine", "runtime", "cli", "infer", "config", "registry")
    assert [name for name in missing if name.split(".")[1] in running] == []


TRAIN = r"Error: .*: pip install 'trt_qat\[train\]'( \(Linux, x86-64\))?\.\n"
CALIBRATE = ("--weights", "x.pt", "--data", "data.yaml", "--out")
SAYS = {
    "train": (*CALIBRATE, "out"),
    "calibrate": (*CALIBRATE, "out.safetensors"),
    "sensitivity": (*CALIBRATE, "out.json"),
    "qat": (*CALIBRATE, "out"),
    "run": (*CALIBRATE, "out"),
    "export": ("x.safetensors", "--out", "out.onnx"),
    "advise": (*CALIBRATE, "out.onnx", "--gpu", "rtx4090"),
    "evaluate": ("tiny.onnx", "--data", "data.yaml"),
    "parity": ("tiny.onnx", "tiny.onnx", "--data", "data.yaml"),
    "data demo-model": ("--out", "demo.onnx"),
    "inspect": ("tiny.onnx",),
    "lint": ("tiny.onnx", "--svg", "net.svg"),
    "engine": ("tiny.onnx", "--out", "tiny.plan"),
    "deploy": ("--target", "deepstream", "--model", "tiny.onnx", "deepstream"),  # it rewrites the graph's output
    "infer": ("one.png", "--model", "tiny.onnx", "--runtime", "onnxruntime"),
    "infer --ray local": ("one.png", "--model", "tiny.onnx"),
    "infer --track": ("one.png", "--model", "tiny.onnx"),
}
EXPECTED = {
    "infer": r"Error: Runtime 'onnxruntime' .*: pip install 'trt_qat\[onnxruntime\]'\.\n",
    "infer --ray local": r"Error: .* 'ray', .*: pip install 'trt_qat\[ray\]'\.\n",
    "infer --track": r"Error: .* 'trackers': pip install 'trt_qat\[track\]'\.\n",
}
DO = {
    "infer": ("one.png", "--model", "tiny.onnx", "--no-save", "--jsonl", "found.jsonl"),
    "infer --out found.png": ("one.png", "--model", "tiny.onnx"),
    "data demo": ("--out", "set", "--train", "1", "--val", "1"),
    "data validate": ("set/data.yaml",),
    "targets": (),
    "compare": ("rows.json", "rows.json"),
    "deploy": ("--target", "triton", "--model", "tiny.onnx", "triton"),
    "lint": ("tiny.onnx",),  # exit code 1: it finds that nothing is quantized
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What every verb said in an environment without the rest: exit code, stdout and stderr."""
    import cv2
    import numpy as np

    folder = tmp_path_factory.mktemp("slim")
    write_tiny_detector(folder / "tiny.onnx")
    write_rows(
        folder / "rows.json", [ResultRow("m.onnx", "fp32", "openvino", 0.4, 0.6, 9, 1000, Latency(1.0, 2.0, 3.0))]
    )
    cv2.imwrite(str(folder / "one.png"), np.full((64, 64, 3), (0, 0, 255), np.uint8))
    lines = [(which, name, words) for which, table in (("does", DO), ("says", SAYS)) for name, words in table.items()]
    code = """
from click.testing import CliRunner
from trt_qat.cli import cli
for which, name, words in json.loads(sys.argv[1]):
    done = CliRunner().invoke(cli, [*name.split(), *words])
    failure = repr(done.exception) if done.exception else ""
    print(json.dumps([which + " " + name, [done.exit_code, done.stdout, done.stderr, failure]]))
    if (which, name) == ("does", "infer"):  # the first
        print(json.dumps(["loaded", sorted({"matplotlib", "rich", "scipy", "supervision"} & set(sys.modules))]))
"""
    done = _gated(code, json.dumps(lines), folder=folder)
    assert done.returncode == 0, done.stderr
    answers = dict(map(json.loads, done.stdout.splitlines()))
    return {**answers, "folder": folder}


@pytest.mark.parametrize("verb", SAYS)
def test_a_verb_that_lacks_a_part_names_its_extra_in_one_line(said: dict[str, Any], verb: str) -> None:
    code, _, error, failure = said[f"says {verb}"]
    assert code == 1, failure
    assert re.fullmatch(EXPECTED.get(verb, TRAIN), error)


@pytest.mark.parametrize("verb", DO)
def test_a_verb_that_runs_a_model_needs_no_more(said: dict[str, Any], verb: str) -> None:
    code, _, error, failure = said[f"does {verb}"]
    assert (code, error) == (int(verb == "lint"), ""), failure


def test_infer_writes_its_picture_and_loads_what_draws_for_a_picture_only(said: dict[str, Any]) -> None:
    assert (said["folder"] / "found.png").is_file()
    assert len((said["folder"] / "found.jsonl").read_text().splitlines()) == 1
    assert said["loaded"] == []
