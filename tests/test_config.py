from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from trt_qat.config import RENAMED, Config, Precision, Section, choices
from trt_qat.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
SECTIONS_OF_FILE = {
    "base_config.yaml": {"model", "data", "train", "evaluation", "parity", "infer"},
    "qat_config.yaml": {"qat"},
    "quantization_config.yaml": {"quantization", "sensitivity"},
    "export_config.yaml": {"export", "engine"},
}
DEFAULTS: dict[str, dict[str, Any]] = Config().model_dump(mode="json")


def _refused(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Config.load(overrides=overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def _value(override: str) -> Any:
    section, _, key = override.partition("=")[0].partition(".")
    return getattr(getattr(Config.load(overrides=[override]), section), key)


def test_the_config_files_are_these() -> None:
    assert {file.name for file in CONFIGS.iterdir()} == set(SECTIONS_OF_FILE)


@pytest.mark.parametrize("name", SECTIONS_OF_FILE)
def test_config_file_holds_every_key_of_its_sections_with_its_default(name: str) -> None:
    content = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    assert content == {section: DEFAULTS[section] for section in SECTIONS_OF_FILE[name]}
    assert Config.load([CONFIGS / name]) == Config()


def test_each_section_is_in_exactly_one_config_file() -> None:
    sections = [section for file in SECTIONS_OF_FILE.values() for section in file]
    assert sorted(sections) == sorted(Config.model_fields)


@pytest.mark.parametrize("name", SECTIONS_OF_FILE)
def test_each_key_stands_once_and_has_a_comment(name: str) -> None:
    lines = (CONFIGS / name).read_text(encoding="utf-8").splitlines()
    section, keys = "", []
    for before, line in zip(["", *lines], lines, strict=False):
        if found := re.match(r"(\w+):", line):
            section = found[1]
        if found := re.match(r"  (\w+):", line):
            keys.append(f"{section}.{found[1]}")
            assert before.strip().startswith("# ") or " # " in line, f"{keys[-1]} has no comment"
    assert sorted(keys) == sorted(f"{part}.{key}" for part in SECTIONS_OF_FILE[name] for key in DEFAULTS[part])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("qat.epoch=3", "Unknown key 'qat.epoch' in --set qat.epoch=3. Did you mean 'epochs'?"),
        ("quantization.calibratr=max", "Did you mean 'calibrator'?"),
        ("quantisation.calibrator=max", "Unknown key 'quantisation' in --set quantisation.calibrator=max. "),
        ("quantisation.calibrator=max", "Did you mean 'quantization'?"),
        (
            "infer.zzz=1",
            "Known: infer.batch, infer.classes, infer.conf, infer.every, infer.iou, infer.max_det, infer.max_fps, "
            "infer.mode.",
        ),
        (
            "zzz.zzz=1",
            "Known: data, engine, evaluation, export, infer, model, parity, qat, quantization, sensitivity, train.",
        ),
    ],
)
def test_unknown_key_suggests_the_nearest(override: str, message: str) -> None:
    assert message in _refused(override)


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_names_the_new_one(old: str, new: str, tmp_path: Path) -> None:
    """On the command line, in a file and as a keyword of the API; the new names are keys that exist."""
    section, _, key = old.partition(".")
    assert key not in DEFAULTS[section]
    names = [name.split(".") for name in re.findall(r"\w+\.\w+", new)]
    assert names
    assert all(leaf in DEFAULTS[part] for part, leaf in names)
    assert _refused(f"{old}=1") == f"Key '{old}' in --set {old}=1 has a new name: {new}."
    file = tmp_path / "old.yaml"
    file.write_text(f"{section}:\n  {key}: 1\n")
    with pytest.raises(ConfigError, match=re.escape(f"Key '{old}' in {file} has a new name: {new}.")):
        Config.load([file])
    for replace in (getattr(Config(), section).replace, partial(Config().with_values, section)):
        with pytest.raises(ConfigError, match=re.escape(f"Key '{old}' has a new name: {new}.")):
            replace(**{key: 1})


@pytest.mark.parametrize(("section", "name"), [(getattr(Config(), name), name) for name in Config.model_fields])
def test_values_given_by_keyword_are_checked_like_those_of_a_file(section: Section, name: str) -> None:
    assert section.replace() == section
    key = next(iter(DEFAULTS[name]))
    with pytest.raises(ConfigError, match=rf"^Unknown key '{name}\.{key}x'\. Did you mean '{key}'\?$"):
        section.replace(**{f"{key}x": 1})
    with pytest.raises(ConfigError, match=rf"^Invalid configuration: {name}\.{key} = \[\[\]\]: "):
        section.replace(**{key: [[]]})


def test_a_changed_copy_leaves_the_original() -> None:
    before = Config()
    after = before.with_values("qat", epochs=7, lr0=1)
    assert (after.qat.epochs, after.qat.lr0, before.qat.epochs) == (7, 1.0, DEFAULTS["qat"]["epochs"])
    assert after.quantization == before.quantization
    assert before == Config()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("quantization.calibrator=mes", "quantization.calibrator = 'mes': unknown calibrator. Did you mean 'mse'?"),
        ("evaluation.runtime=openvin", "evaluation.runtime = 'openvin': unknown runtime. Did you mean 'openvino'?"),
        ("evaluation.runtime=x", "unknown runtime. Known: onnxruntime, openvino, tensorrt, torch."),
        ("export.target=tensorrtx", "export.target = 'tensorrtx': unknown target. Did you mean 'tensorrt'?"),
    ],
)
def test_unknown_name_of_a_table_suggests_the_nearest(override: str, said: str) -> None:
    assert said in _refused(override)


@pytest.mark.parametrize(
    ("override", "belongs"),
    [
        ("qat.calibrator=max", "quantization.calibrator"),
        ("evaluation.imgsz=320", "model.imgsz"),
        ("train.max_det=3", "evaluation.max_det"),
    ],
)
def test_key_in_the_wrong_section_names_the_right_one(override: str, belongs: str) -> None:
    assert _refused(override).endswith(f"It belongs to another section: '{belongs}'.")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("qat.epochs=two", "qat.epochs = 'two'"),
        ("qat.epochs=2.5", "qat.epochs = 2.5"),
        ("qat.epochs=true", "qat.epochs = True: must be a number"),
        ("qat.max_drop=true", "qat.max_drop = True: must be a number"),
        ("qat.epochs=", "qat.epochs = None"),
        ("quantization.exclude=model.22", "Input should be a list, e.g. [a, b]"),
        ("data.calibration_cache=5", "data.calibration_cache = 5"),
        ("sensitivity.metric=loss", "'error', 'drop' or 'both'"),
        ("export.precision=int4", "'int8+fp32', 'int8+fp16', 'fp32' or 'fp16'"),
        ("quantization.float_roles=[last]", "'first_conv', 'head_last' or 'dfl'"),
    ],
)
def test_wrong_type_says_what_was_given_and_what_is_allowed(override: str, said: str) -> None:
    message = _refused(override)
    assert message.startswith("Invalid configuration: ")
    assert said in message


@pytest.mark.parametrize(
    "override",
    [
        "qat.epochs=0",
        "qat.lr0=0",
        "qat.lr0=.inf",
        "qat.lr0=nan",
        "qat.max_drop=-0.1",
        "qat.max_drop=nan",
        "qat.lrf=1.01",
        "qat.fliplr=-0.1",
        "quantization.percentile=50",
        "quantization.histogram_bins=126",
        "quantization.histogram_bins=129",
        "export.opset=18",
        "export.opset=24",
        "evaluation.conf=1",
        "infer.iou=0",
        "evaluation.latency_iterations=2",
        "engine.workspace_mib=15",
        "model.imgsz=0",
        "sensitivity.images=0",
        "sensitivity.val_images=0",
    ],
)
def test_out_of_range(override: str) -> None:
    key, _, value = override.partition("=")
    assert f"{key} = {value.lstrip('.')}" in _refused(override)


@pytest.mark.parametrize("override", ["qat.lrf=1", "quantization.percentile=100", "export.opset=23", "infer.conf=0"])
def test_ends_of_ranges_are_allowed(override: str) -> None:
    assert _value(override) == float(override.partition("=")[2])


@pytest.mark.parametrize(("imgsz", "nearest"), [(100, 96), (639, 640), (33, 32)])
def test_imgsz_must_be_a_multiple_of_32(imgsz: int, nearest: int) -> None:
    assert f"must be a multiple of 32, the nearest is {nearest}" in _refused(f"model.imgsz={imgsz}")
    assert Config.load(overrides=[f"model.imgsz={nearest}"]).model.imgsz == (nearest, nearest)


@pytest.mark.parametrize("override", ["qat.epochs", "qat=3", "=3", ".epochs=3", "qat.=3", ""])
def test_override_without_its_parts(override: str) -> None:
    assert "is not of the form section.key=value, e.g. --set qat.epochs=5." in _refused(override)


def test_override_with_broken_yaml() -> None:
    assert _refused("quantization.exclude=[a").startswith("--set 'quantization.exclude=[a' is not valid YAML: ")


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("qat.lr0=1e-5", 1e-5),
        ("qat.lr0=1E-5", 1e-5),
        ("qat.lr0=3", 3.0),
        ("qat.epochs=1e1", 10),
        ("qat.epochs= 7", 7),
        ("quantization.exclude=[model.22, 'model.1*']", ("model.22", "model.1*")),
        ("quantization.exclude=[]", ()),
        ("engine.compute_capabilities=[86, 89]", (86, 89)),
        ("export.dynamic_batch=true", True),
        ("engine.timing_cache=a=b.cache", "a=b.cache"),
        ("quantization.calibrator=entropy", "entropy"),
    ],
)
def test_override_values(override: str, value: Any) -> None:
    found = _value(override)
    assert found == value
    assert type(found) is type(value)


def test_several_errors_are_told_at_once() -> None:
    message = _refused("qat.epochs=0", "model.imgsz=100")
    assert "qat.epochs = 0" in message
    assert "model.imgsz = 100" in message


def test_later_files_win_and_overrides_win_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("qat: {epochs: 3, batch: 4, lr0: 1e-3}\nmodel: {imgsz: 320}\n")
    second.write_text("qat: {epochs: 5, batch: 2}\ninfer:\n")
    config = Config.load([first, second], ["qat.batch=1", "qat.batch=6"])
    assert (config.qat.epochs, config.qat.batch, config.qat.lr0, config.model.imgsz) == (5, 6, 1e-3, (320, 320))
    assert config.infer == Config().infer
    assert Config.load([second, first]).qat.epochs == 3


def test_empty_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert Config.load([tmp_path / "empty.yaml"]) == Config()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"qat: [1, 2", "is not valid YAML: "),
        (b"\xff\xfe\x00", "is not UTF-8 text: byte 0"),
        (b"- qat\n", "must hold sections (a mapping), found list."),
        (b"qat: 3\n", "Section 'qat' in "),
        (b"qat: {epoch: 3}\n", "Did you mean 'epochs'?"),
        (b"qta: {epochs: 3}\n", "Did you mean 'qat'?"),
        (b"3: {epochs: 3}\n", "Unknown key '3' in "),
    ],
)
def test_broken_file_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        Config.load([file])
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for file, reason in ((tmp_path / "none.yaml", "does not exist"), (tmp_path, "is a folder, not a file")):
        with pytest.raises(ConfigError, match=re.escape(f"Config file '{file}' {reason}.")):
            Config.load([file])


def test_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.qat.epochs = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.qat = Config().qat  # type: ignore[misc]
    assert config == Config()


def test_choices() -> None:
    assert choices(Precision) == ("int8+fp32", "int8+fp16", "fp32", "fp16")


@pytest.mark.parametrize(
    ("override", "imgsz"),
    [
        ("model.imgsz=64", (64, 64)),
        ("model.imgsz=[384, 640]", (384, 640)),
        ("model.imgsz=auto", "auto"),
        ("model.imgsz=null", None),
    ],
)
def test_imgsz_is_a_square_two_sides_or_auto(override: str, imgsz: object) -> None:
    model = Config.load(overrides=[override]).model
    assert model.imgsz == imgsz
    assert model.fixed_imgsz == (None if imgsz == "auto" else imgsz)
    assert model.replace(device="cpu").imgsz == imgsz
    assert Config.load(overrides=[f"model.imgsz={model.model_dump_json(include={'imgsz'})[9:-1]}"]).model == model


@pytest.mark.parametrize("value", ["wide", "[64]", "[64, 64, 64]", "64.0", "[64, 64.0]", "true", "[true, 64]", "{}"])
def test_what_is_no_imgsz(value: str) -> None:
    message = _refused(f"model.imgsz={value}")
    assert "model.imgsz = " in message
    assert message.endswith("must be a number of pixels, [height, width] or auto.")


def test_each_side_is_a_multiple_of_32() -> None:
    assert "500 must be a multiple of 32, the nearest is 512" in _refused("model.imgsz=[384, 500]")
