"""What README.md and docs/ tell a reader to type exists, and what they show is valid; test_docs_run.py runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import ROOT, commands, pages, problems

import trt_qat
from trt_qat.cli import cli
from trt_qat.config import Config


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_settings_and_code_are_right(page: Path) -> None:
    assert problems(page.read_text(encoding="utf-8")) == []


def test_links_of_the_readme_lead_to_files() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", readme) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_make_targets_of_the_documents_can_be_made() -> None:
    """All in one call, which only prints. An environment that is older than its list of packages is not made anew."""
    called = [command.words for page in pages() for command in commands(page.read_text(encoding="utf-8"))]
    targets = sorted({word for words in called if words[0] == "make" for word in words[1:] if "=" not in word})
    assert {"demo", "test"} <= set(targets)
    command = ["make", "--dry-run", "--old-file=.venv/.ready", *targets]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


SHELL = [
    ("trt-qat calibrat --weights a.pt", "there is no command 'calibrat'"),
    ("trt-qat data demos --out x", "there is no command 'demos'"),
    ("trt-qat lint a.onnx --pgn b.png", "No such option '--pgn'"),
    ("trt-qat export a.safetensors --target tensort --out a.onnx", "'tensort' is not one of"),
    ("trt-qat qat --weights a.pt --data d.yaml", "Missing option '--out'"),
    ("trt-qat run ... --nosuch 3", "No such option '--nosuch'"),
    ("FFMPEG=1 ffmpeg -i a.mp4 - | trt-qat infer - --nosuch > b.txt", "No such option '--nosuch'"),
    ("make demo && trt-qat lint", "Missing argument 'ONNX'"),
    ("trt-qat run --weights a.pt --data d.yaml \\\n    --out x --set qat.epoch=3", "Did you mean 'epochs'?"),
    ("trt-qat targets --set qat.epochs=0", "greater than or equal to 1"),
    ("trt-qat targets --set quantization.calibrator=msee", "Did you mean 'mse'?"),
    ("trt-qat targets --config configs/nosuch.yaml", "does not exist"),
    ("python -m trt_qat lints a.onnx", "there is no command 'lints'"),
    ("python -m trt_qat.infer a.mp4 --nosuch", "No such option '--nosuch'"),
    ("python -m trt_qats", "no module 'trt_qats'"),
    ("torchrun --nproc-per-node 2 -m trt_qat qta", "there is no command 'qta'"),
    ("python scripts/nosuch.py", "there is no file 'scripts/nosuch.py'"),
    ("python benchmarks/infer.py --nosuch 3", "has no --nosuch"),
    ("make dmeo", "no target 'dmeo'"),
    ("make qat WEIGHT=a.pt", "no variable 'WEIGHT'"),
    ("pip install 'trt_qat[openvino,trian]'", "no extra trian"),
    ("trtqat lint a.onnx", "'trtqat' is no program"),
]
PLANTED = [
    *((f"```bash\n{line}\n```\n", said) for line, said in SHELL),
    ("Text.\n\n    trt-qat lints a.onnx\n", "there is no command 'lints'"),
    ("1. Item\n\n    ```bash\n    trt-qat lints a.onnx\n    ```\n", "there is no command 'lints'"),
    ("```yaml\nsteps:\n  - run: trt-qat lints a.onnx\n```\n", "there is no command 'lints'"),
    ("Then `trt-qat lints FILE`.", "there is no command 'lints'"),
    ("Then `trt-qat lint FILE --pgn`.", "it has no --pgn"),
    ("Then `make dmeo`.", "no target 'dmeo'"),
    ("Try `--set qat.epoch=3`.", "there is no such setting"),
    ("Try `qat.epoch`.", "there is no such setting"),
    ("Try `qat.epochs=0`.", "greater than or equal to 1"),
    ("```yaml\nqat:\n  epoch: 3\n```\n", "Did you mean 'epochs'?"),
    ("```yaml\nquantisation:\n  images: 3\n```\n", "Did you mean 'quantization'?"),
    ("```yaml\nqat: [3\n```\n", "not YAML"),
    ('```json\n{"source": "a.mp4", "detections": []}\n```\n', "no FrameRecord"),
    ('```json\n[{"map50_95": 41.8}]\n```\n', "no ResultRow"),
    ('```json\n{"a": 1,}\n```\n', "not JSON"),
    ("```python\nimport trt_qat\ntrt_qat.loads('a.pt')\n```\n", "trt_qat has no 'loads'"),
    ("```python\nfrom trt_qat.registry import CALIBRATOR\n```\n", "has no 'CALIBRATOR'"),
    ("```python\nfrom trt_qat.registries import Table\n```\n", "there is no module trt_qat.registries"),
    ("```python\ntrt_qat.quantize(model, 'd.yaml', calibratr='mse')\n```\n", "quantize() takes no 'calibratr'"),
    ("```python\ntrt_qat.build('a.onnx', 'a.plan', optimisation_level=3)\n```\n", "build() takes no"),
    ("```python\nwith trt_qat.Detector('a.onnx', confidence=0.4) as detect: ...\n```\n", "Detector() takes no"),
    ("```python\nmodel = trt_qat.load('a.pt'\n```\n", "not Python"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "said"), PLANTED)
def test_a_mistake_on_a_page_is_found(page: str, said: str) -> None:
    (found,) = problems(page)
    assert said in found


def test_a_page_without_mistakes_has_no_problem() -> None:
    page = """Both `qat.epochs=3` and `--set qat.max_drop=POINTS` of `trt-qat qat --max-drop POINTS`, in `data.yaml`.

```bash
# a comment
pip install 'trt_qat[openvino]'   # another
FUZZ=1 trt-qat run --weights yolov8n.pt --data data.yaml --out runs/mine \\
    --set qat.epochs=3 --set model.imgsz=[384,640] > log.txt 2>&1
trt-qat evaluate ... --json result.json && make qat WEIGHTS=best.pt
```

```toml
[project.entry-points."trt_qat.calibrators"]
energy = "energy_range:Energy"
```

    trt-qat calibrate --weights best.pt --data data.yaml --set quantization.calibrator=energy --out e.safetensors

```yaml
path: .
train: images
names: [car]
```

```python
import trt_qat
from trt_qat.registry import TARGETS
int8 = trt_qat.quantize(trt_qat.load("best.pt"), "data.yaml", calibrator="mse")
```
"""
    assert problems(page) == []
    assert [command.words[0] for command in commands(page)] == ["pip", "trt-qat", "trt-qat", "make", "trt-qat"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, as ``make docs`` builds it in continuous integration."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    mkdocs = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(mkdocs, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.mark.slow
def test_the_reference_has_every_setting_command_and_name(site: Path) -> None:
    def ids(page: str) -> set[str]:
        return set(re.findall(r' id="([^"]+)"', (site / "reference" / page).read_text(encoding="utf-8")))

    settings = {f"{section}.{key}" for section, keys in Config().model_dump().items() for key in keys}
    assert settings <= ids("configuration.html")
    assert {f"trt-qat-{name}" for name in cli.commands} <= ids("commands.html")
    assert {f"trt_qat.{name}" for name in set(trt_qat.__all__) - {"__version__"}} <= ids("python.html")
    assert {"RunRecord", "ResultRow", "FrameRecord", "ParityReport", "EngineDescription"} <= ids("files.html")


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_the_site_is_readable_from_a_disk(site: Path, width: int) -> None:
    """In a browser, without a server: no error, nothing asked of a network, nothing wider than the window; search."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or pytest.skip("no Chromium is here")
    wrong: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900})
        tab.on("console", lambda message: wrong.append(message.text))
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith("file:") else wrong.append(request.url))
        for page in sorted(site.rglob("*.html")):
            if page.name != "404.html":  # its links start at the root of a server
                tab.goto(page.as_uri())
                if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wrong.append(f"{page.name} is wider than {width} pixels")
        tab.goto((site / "reference" / "python.html").as_uri())
        tab.keyboard.press("s")
        tab.keyboard.type("calibrator")
        tab.wait_for_selector(".md-search-result__link", state="attached")
        browser.close()
    assert wrong == []
