"""The ``trt-qat`` command: one short function per verb; the only place that prints or exits.

Exit codes: 0 done, 1 an expected failure (one line on stderr), lint errors, broken parity or a worse model, 2 wrong
usage, 3 everything is written but no model meets ``qat.max_drop`` (one line on stderr). Anything else is a bug and
keeps its traceback.
"""

from __future__ import annotations

import functools
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import click

from trt_qat import __version__, distributed
from trt_qat.artifacts import writable_file, writable_folder, write_json
from trt_qat.config import (
    Config,
    ExportFormat,
    FlavorChoice,
    InferMode,
    InferSection,
    Precision,
    SensitivityMetric,
    choices,
)
from trt_qat.demo.shipped import DETECTOR, SETTINGS
from trt_qat.errors import ArtifactError, ConfigError, TrtQatError
from trt_qat.extras import extras_named
from trt_qat.memory import MEMORY_RAN_OUT, is_out_of_memory
from trt_qat.progress import Progress, Silent
from trt_qat.reading import PICKLE_TRUSTED
from trt_qat.redact import redacted_message
from trt_qat.registry import DEPLOYMENTS, RUNTIMES, TARGETS
from trt_qat.results import NO_ACCURACY, NOT_ONE, Measure, ResultRow

if TYPE_CHECKING:
    import rich.progress
    from rich.table import Table

    from trt_qat.evaluation.group_sensitivity import GroupSensitivity
    from trt_qat.evaluation.parity_report import ParityReport
    from trt_qat.footage.named import Data
    from trt_qat.mixed_precision.advice import Advice, Form
    from trt_qat.mixed_precision.mixes import Budget
    from trt_qat.runtime.infer import Inferred

Item = TypeVar("Item")
Command = Callable[..., Any]
FILE = click.Path(path_type=Path)
SHOWN_GROUPS = 15
HELP: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Notes(Silent):
    """A :class:`~trt_qat.progress.Progress` without bars; notes go to stdout, or to stderr where results go there."""

    def __init__(self, on_stderr: bool = False) -> None:
        self._on_stderr = on_stderr

    def note(self, line: str) -> None:
        """Print a line, above the bars if there are any."""
        if distributed.is_main():
            click.echo(line, err=self._on_stderr)


class Bars(Notes):
    """The same with bars on stderr."""

    def __init__(self, bar: rich.progress.Progress, on_stderr: bool = False) -> None:
        super().__init__(on_stderr)
        self._bar = bar
        self._tasks: dict[str, Any] = {}
        self._starting = bar.add_task("starting", total=None, detail="")

    def over(self, items: Sequence[Item], description: str) -> Iterable[Item]:
        """Iterate with a bar."""
        self._bar.update(self._starting, visible=False)
        return self._bar.track(
            items, task_id=self._bar.add_task(description, total=len(items), detail=""), total=len(items)
        )

    def step(self, description: str, done: int, total: int, detail: str = "") -> None:
        """Move the bar of this description."""
        self._bar.update(self._starting, visible=False)
        if description not in self._tasks:
            self._tasks[description] = self._bar.add_task(description, total=None, detail="")
        self._bar.update(self._tasks[description], completed=done, total=total or None, detail=detail)


@contextmanager
def _bars(on_stderr: bool = False) -> Iterator[Progress]:
    if not (sys.stderr.isatty() and distributed.is_main()):
        yield Notes(on_stderr)
        return
    from rich import progress  # imported where it is used: a tenth of the time that `infer` needs to start
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn("{task.fields[detail]}"),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        yield Bars(bar, on_stderr)


def _command(function: Command, beneath: Sequence[Path] = ()) -> Command:
    """Options and error handling that every verb shares. The function gets a Config and returns its JSON result.

    Args:
        beneath: YAML files that a verb brings itself; --config and --set win over them.
    """

    @click.option(
        "--config", "files", multiple=True, type=FILE, help="YAML file as in configs/; repeatable, the last wins."
    )
    @click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="SECTION.KEY=VALUE",
        help="One setting, e.g. qat.epochs=5; repeatable, wins over --config.",
    )
    @click.option("--json", "json_file", type=FILE, help="Also write the result as JSON.")
    @functools.wraps(function)
    def wrapped(files: tuple[Path, ...], overrides: tuple[str, ...], json_file: Path | None, **arguments: Any) -> None:
        with _one_line_errors(), distributed.process_group():
            if json_file is not None:
                _check_json_path(json_file)
            _check_inputs_stay(json_file, arguments)
            result = function(config=Config.load((*beneath, *files), overrides), **arguments)
            if json_file is not None and distributed.is_main():
                write_json(json_file, result)

    return wrapped


@contextmanager
def _one_line_errors() -> Iterator[None]:
    # third-party deprecation notes mean nothing to a user; the tests turn warnings into errors
    warnings.simplefilter("ignore")
    try:
        with extras_named():
            yield
    except TrtQatError as exc:
        _say_error(str(exc))
        sys.exit(1)
    except (MemoryError, RuntimeError) as exc:
        if not is_out_of_memory(exc):
            raise
        _say_error(MEMORY_RAN_OUT)
        sys.exit(1)


def _check_json_path(path: Path) -> None:
    """Prove before the work that the result can be written after it."""
    if path.is_dir():
        raise ArtifactError(f"--json '{path}' is a folder. Give a file.")
    writable_folder(path.parent)


def _check_inputs_stay(json_file: Path | None, arguments: Mapping[str, Any]) -> None:
    """Refuse to write a result over a file that the command reads, or loose into the whole file system."""
    written = {"json": json_file, **{name: arguments.get(name) for name in ("out", "svg", "html", "jsonl", "csv")}}
    read = [value for name, value in arguments.items() if name not in written and isinstance(value, str | Path | tuple)]
    files = [Path(value) for entry in read for value in (entry if isinstance(entry, tuple) else (entry,))]
    for option, given in written.items():
        out = None if given is None else Path(given)
        if out is not None and os.path.realpath(out) == os.sep:
            raise ArtifactError(f"--{option} '{out}' is the root of the file system. Choose a place in it.")
        if out is not None and any(_is_same_file(out, file) for file in files):
            raise ArtifactError(f"--{option} '{out}' is a file that this command reads. Choose another name.")


def _is_same_file(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second) and not first.is_dir()
    except (OSError, ValueError):  # one of them is not there
        return False


def _say_error(message: str) -> None:
    click.echo(f"Error: {message}", err=True)


def _exit_at_end(code: int) -> None:
    """Leave with this code once the command has returned its result and written its JSON."""
    click.get_current_context().call_on_close(lambda: sys.exit(code))


def _trust_pickle(function: Command) -> Command:
    text = "Unpickle *.pt, which runs any code that is in it; only for a file of somebody you trust."

    @click.option("--trust-pickle", is_flag=True, help=text)
    @functools.wraps(function)
    def wrapped(trust_pickle: bool, **arguments: Any) -> Any:
        before = PICKLE_TRUSTED.set(trust_pickle)
        try:
            return function(**arguments)
        finally:
            PICKLE_TRUSTED.reset(before)

    return wrapped


def _weights(function: Command) -> Command:
    text = "Ultralytics *.pt, architecture *.yaml (random weights) or trt_qat *.safetensors."
    return click.option("--weights", type=FILE, required=True, help=text)(_trust_pickle(function))


_LABELLED = "data.yaml, or a folder with images/ and labels/."
_ANY_DATA = (
    f"{_LABELLED[:-1]}; or without labels: a folder, an image, a video, a pattern in quotes, a list (*.txt); "
    "repeatable (docs/label-free.md)."
)


def _data(function: Command) -> Command:
    return _data_option(function, _ANY_DATA)


def _data_option(function: Command, text: str, required: bool = True) -> Command:
    """``--data``, repeatable; the function gets what was given, None where nothing was."""

    @click.option("--data", "given", type=FILE, multiple=True, required=required, help=text)
    @functools.wraps(function)
    def wrapped(given: tuple[Path, ...], **arguments: Any) -> Any:
        return function(data=(given[0] if len(given) == 1 else given) or None, **arguments)

    return wrapped


class _Command(click.Command):
    """A command with both help options whoever makes its context; click keeps those of the first one that does."""

    def __init__(self, *arguments: Any, **keys: Any) -> None:
        super().__init__(*arguments, **{"context_settings": HELP, **keys})


class _Group(click.Group):
    command_class = _Command
    group_class = type


@click.group(cls=_Group, context_settings=HELP)
@click.version_option(__version__, prog_name="trt-qat")
def cli() -> None:
    """YOLOv8 checkpoint to INT8 TensorRT engine, accuracy measured on the exported file.

    Exit codes: 0 done, 1 an error, lint errors, broken parity or a worse model, 2 wrong usage, 3 done but qat.max_drop
    is not met.
    """


@cli.command()
@click.option("--weights", type=FILE, required=True, help="Ultralytics *.pt, or architecture *.yaml (random weights).")
@_trust_pickle
@functools.partial(_data_option, text=_LABELLED)
@click.option("--out", type=FILE, required=True, help="Folder for the run.")
@_command
def train(config: Config, weights: Path, data: Data, out: Path) -> dict[str, str]:
    """Train an FP32 detector.

    Writes OUT/weights/best.pt (Ultralytics' format) and OUT/best.safetensors.
    """
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        best = pipeline.train(weights, data, out, config, bars)
    click.echo(f"Trained: {best.path}")
    return {"checkpoint": str(best.path), "ultralytics": str(out / "weights" / "best.pt")}


@cli.command()
@_weights
@_data
@click.option("--out", type=FILE, required=True, help="Checkpoint to write, e.g. ptq.safetensors.")
@_command
def calibrate(config: Config, weights: Path, data: Data, out: Path) -> dict[str, Any]:
    """Quantize and calibrate float weights (PTQ).

    Of --data the training images are used; of videos without labels frames that differ, which are not kept.

    The histograms of the training images are cached in data.calibration_cache (calib/), so that another calibrator
    needs no second pass over the images. torchrun -m trt_qat calibrate ... shares the images among processes.
    """
    writable_file(out, ".safetensors")
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        calibration = pipeline.calibrate(weights, data, out, config, bars).provenance["calibration"]
    if distributed.is_main():
        _print_candidates(calibration)
        click.echo(f"Calibrated: {out}")
    kept = {key: calibration[key] for key in ("calibrator", "candidates", "groups", "groups_error")}
    return {"checkpoint": str(out), **kept}


@cli.command()
@_weights
@_data
@click.option("--metric", type=click.Choice(choices(SensitivityMetric)), help="Same as --set sensitivity.metric=...")
@click.option("--out", type=FILE, required=True, help="JSON file to write; it is continued if it is there.")
@_command
def sensitivity(
    config: Config, weights: Path, data: Data, metric: SensitivityMetric | None, out: Path
) -> dict[str, Any]:
    """Rank layers by what INT8 costs in each alone.

    Each scale group is quantized alone, everything else float. OUT is rewritten after each group, so that an
    interrupted run continues; a bar chart (PNG) is written beside it. Float weights are calibrated first.
    """
    writable_file(out, ".json")
    if metric is not None:
        config = config.with_values("sensitivity", metric=metric)
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        ranking, content = pipeline.sensitivity(weights, data, out, config, bars)
    _print_sensitivity(ranking.rows, content.get("measure", "mAP"))
    click.echo(f"Ranking: {out}\nChart: {out.with_suffix('.png')}")
    click.echo(
        f"What to do about the first, after `trt-qat run`: trt-qat explain RUN --layer {ranking.rows[0].convs[0]}"
    )
    return dict(content)


@cli.command()
@_weights
@_data
@click.option("--epochs", type=click.IntRange(min=1), help="Same as --set qat.epochs=N.")
@click.option("--max-drop", type=float, help="Same as --set qat.max_drop=POINTS.")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run in OUT; give the same options as then.")
@click.option("--out", type=FILE, required=True, help="Folder for best.safetensors and last.safetensors.")
@_command
def qat(
    config: Config, weights: Path, data: Data, epochs: int | None, max_drop: float | None, resume: bool, out: Path
) -> dict[str, str]:
    """Fine-tune with quantization in the loop.

    Starts from a calibrated checkpoint; float weights are calibrated first. Beside the checkpoints OUT gets
    results.csv, quantization_error.csv (SQNR and drift per layer), TensorBoard's event file and resume.pt.

    With --max-drop, the fewest layers are left float that keep mAP50-95 (or agreement, where the FP32 model made the
    labels) within so many points of the float model, measured on exported files (OUT/mixed_precision.json says which
    and what they cost; OUT/best_int8.safetensors has none left float); exit code 3 if none do.
    """
    if epochs is not None:
        config = config.with_values("qat", epochs=epochs)
    if max_drop is not None:
        config = config.with_values("qat", max_drop=max_drop)
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        budget = pipeline.qat(weights, data, out, config, bars, resume)
    written = {"checkpoint": str(out / "best.safetensors")}
    if not distributed.is_main():
        return written
    click.echo(f"Fine-tuned: {written['checkpoint']}")
    if budget is not None:
        written["mixed_precision"] = str(_print_budget(budget, out))
    return written


@cli.command()
@click.argument("checkpoint", type=FILE)
@_trust_pickle
@click.option("--target", type=click.Choice(list(TARGETS.rows)), help="Same as --set export.target=...")
@click.option("--format", "form", type=click.Choice(choices(ExportFormat)), help="Same as --set export.format=...")
@click.option("--precision", type=click.Choice(choices(Precision)), help="Same as --set export.precision=...")
@click.option("--nms", is_flag=True, help="Rows of detections as the file's output, with NMS built in.")
@click.option("--no-check", is_flag=True, help="Write the file without running it in its client.")
@click.option("--out", type=FILE, required=True, help="*.onnx, *_openvino_model or *.engine, see `trt-qat targets`.")
@_command
def export(
    config: Config,
    checkpoint: Path,
    target: str | None,
    form: ExportFormat | None,
    precision: Precision | None,
    nms: bool,
    no_check: bool,
    out: Path,
) -> dict[str, str]:
    """Write CHECKPOINT for the client that runs it.

    `trt-qat targets` lists the clients. After writing, the file is run in its client on two images; if that computes
    something else than CHECKPOINT, the command fails and writes nothing.

    INT8 needs a calibrated *.safetensors; float weights (*.pt, *.yaml too) become fp16 for TensorRT, fp32 elsewhere.
    """
    switches = {"nms": nms or None, "check": False if no_check else None}
    given = {"target": target, "format": form, "precision": precision, **switches}
    section = config.export.replace(**{key: value for key, value in given.items() if value is not None})
    from trt_qat.artifacts import size_bytes
    from trt_qat.targets.base import check_out
    from trt_qat.targets.nms import check_nms_form

    check_out(out, section)
    check_nms_form(section)
    with _bars() as bars:
        from trt_qat import api, pipeline  # seconds: torch and its friends

        model, device = pipeline.load_for_no_data(checkpoint, config, bars), config.model.device
        artifact = api.export(model, out, section, thresholds=config.infer, device=device, progress=bars)
    size = size_bytes(artifact.path) / 1e6
    click.echo(f"Exported: {artifact.path} (for {section.target}, {artifact.precision}, {size:.2f} MB)")
    return {
        section.format: str(artifact.path),
        "precision": artifact.precision,
        "target": section.target,
    }


@cli.command()
@click.option("--target", type=click.Choice(list(DEPLOYMENTS.rows)), required=True, help="The system, see above.")
@click.option("--model", type=FILE, required=True, help="*.onnx of `trt-qat export`, or *.plan with its side-car.")
@click.option("--name", help="What the model is called there [default: the file's name].")
@click.argument("out", type=FILE, metavar="DIR")
@_command
def deploy(config: Config, target: str, model: Path, name: str | None, out: Path) -> dict[str, Any]:
    """Write what another system needs to run a model.

    \b
    deepstream  NVIDIA DeepStream, with DeepStream-Yolo's parser.
    triton      NVIDIA Triton Inference Server: a model repository and a client.
    isaac-ros   NVIDIA Isaac ROS: encoder, TensorRT node, YOLOv8 decoder.
    jetson      NVIDIA Jetson: a container for `trt-qat infer` and a systemd unit.

    DIR is new or empty, or holds the same deployment unchanged. Thresholds are infer.conf, infer.iou and infer.max_det;
    engine.min_batch, opt_batch and max_batch count where the model's batch is dynamic.
    """
    from trt_qat.deploy.write import deploy as write_deployment

    done = write_deployment(model, target, out, name=name, infer=config.infer, engine=config.engine)
    click.echo(f"Written: {done.folder} ({', '.join(done.files)})")
    click.echo(f"Next: {done.deployment.next_step}\nNote: {done.deployment.not_run}")
    return {"target": target, "folder": str(done.folder), "files": list(done.files)}


@cli.command()
@_command
def targets(config: Config) -> list[dict[str, Any]]:
    """List the clients that `export --target` writes for."""
    del config
    from trt_qat.targets.base import all_targets

    rows = all_targets()
    _print_table(
        ("target", "client", "INT8 file", "opset", "formats", ""),
        [(row.name, row.client, row.precision, str(row.opset), row.formats, row.summary) for row in rows],
    )
    return [
        {
            "name": row.name,
            "client": row.client,
            "precision": row.precision,
            "opset": row.opset,
            "formats": {name: f"*{form.suffix}" for name, form in row.forms.items()},
            "summary": row.summary,
        }
        for row in rows
    ]


@cli.command()
@_weights
@functools.partial(_data_option, text=f"{_ANY_DATA} Without it no accuracy, and files only to look at.", required=False)
@click.option("--gpu", required=True, metavar="NAME", help="E.g. rtx4090; docs/compiler.md lists them.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per inference.")
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="What INT8 may cost, points of mAP50-95 or of agreement [default: any].",
)
@click.option("--mixes", type=click.IntRange(min=3), default=40, show_default=True, help="Mixes to compile at most.")
@click.option("--out", type=FILE, required=True, help="Folder for the ONNX file of every form and advice.json.")
@_command
def advise(
    config: Config,
    weights: Path,
    data: Data | None,
    gpu: str,
    batch: int,
    max_drop: float | None,
    mixes: int,
    out: Path,
) -> dict[str, Any]:
    """FP16, INT8 or a mix on this RTX GPU? Needs no GPU.

    TensorRT-RTX compiles each form; its kernels and bytes are counted, milliseconds ESTIMATED from the GPU's published
    rates, and accuracy is measured on the file itself. The mix leaves in FP16 what INT8 would make slower. Float
    weights are calibrated first.
    """
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        advice, file = pipeline.advise(weights, data, out, config, gpu, batch, max_drop, mixes, bars)
    header = (
        "form",
        "kernels",
        "activations, MB",
        "weights, MB",
        "estimated ms",
        f"{advice.measure}50-95",
        "in INT8",
        "",
    )
    _print_table(header, [_advice_row(advice, form) for form in advice.forms])
    click.echo(f"{advice.sentence}\nEstimates from published rates; nothing was run on a GPU.\nAdvice: {file}")
    return advice.as_dict()


@cli.command()
@click.argument("onnx", type=FILE)
@click.option("--flavor", type=click.Choice(choices(FlavorChoice)), help="Same as --set engine.flavor=...")
@click.option("--out", type=FILE, required=True, help="*.plan or *.engine to write, e.g. engines/yolov8n_int8.plan.")
@_command
def engine(config: Config, onnx: Path, flavor: FlavorChoice | None, out: Path) -> dict[str, str]:
    """Build a TensorRT engine from an ONNX file.

    Flavor auto is tensorrt where it and a GPU are there, else tensorrt-rtx, which needs no GPU to build. OUT is a
    *.plan (plain, with a JSON file beside it that describes it) or a *.engine (with the header that Ultralytics reads).

    --set engine.KEY=VALUE: min_batch, opt_batch and max_batch where the file's batch is free; min_size, opt_size and
    max_size where height and width are, e.g. [480,640]; optimization_level, hardware_compatible and version_compatible
    for tensorrt; compute_capabilities, e.g. [86,89], for tensorrt-rtx. configs/export_config.yaml explains each.
    """
    from trt_qat.engine.build import build_engine
    from trt_qat.engine.engine_file import check_engine_name

    check_engine_name(out)
    writable_file(out, out.suffix)
    section = config.engine.replace(flavor=flavor) if flavor else config.engine
    with _bars() as bars:
        artifact = build_engine(onnx, out, section, bars)
    click.echo(f"Built: {artifact.path} ({artifact.flavor}, {artifact.path.stat().st_size / 1e6:.2f} MB)")
    sidecar = {"sidecar": str(artifact.sidecar)} if artifact.sidecar else {}
    return {"plan": str(artifact.path), **sidecar, "flavor": artifact.flavor}


@cli.command()
@click.argument("models", nargs=-1, required=True, type=FILE)
@_trust_pickle
@_data
@click.option(
    "--runtime",
    type=click.Choice([*RUNTIMES.rows, "torch"]),
    help="Default by file: *.onnx OpenVINO, *.plan TensorRT, else torch.",
)
@click.option(
    "--labels-from", type=FILE, help="Float model that labels --data without labels [default: the first of MODELS]."
)
@click.option("--details", is_flag=True, help="Also what stands behind each figure, into --json: compare needs it.")
@_command
def evaluate(
    config: Config,
    models: tuple[Path, ...],
    data: Data,
    runtime: str | None,
    labels_from: Path | None,
    details: bool,
) -> list[dict[str, Any]]:
    """Measure mAP, latency and size of MODELS.

    MODELS are *.onnx, *.plan, *.safetensors or *.pt files; the images are the val split of --data. Of images and videos
    without labels it is the part that is held out, and what is measured is agreement with a float model; the frames
    and labels are removed at the end (`data label` keeps them).
    """
    with _bars() as bars:
        from trt_qat import api  # seconds: torch and its friends

        device = config.model.device
        rows = api.evaluate(
            models,
            data,
            config.evaluation,
            runtime=runtime,
            labels_from=labels_from,
            footage=config.data,
            device=device,
            details=details,
            progress=bars,
        )
    _print_rows(rows)
    return [row.as_dict() for row in rows]


@cli.command()
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@click.option(
    "--model", "models", multiple=True, metavar="NAME[=NAME]", help="Of A, and of B if it is another; repeatable."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="How much worse B may be, points of mAP50-95 or of agreement.",
)
@click.option(
    "--max-latency-ratio",
    type=click.FloatRange(min=0, min_open=True),
    help="How much slower B may be, e.g. 1.1 [default: any].",
)
@_command
def compare(
    config: Config,
    first: Path,
    second: Path,
    models: tuple[str, ...],
    max_drop: float,
    max_latency_ratio: float | None,
) -> dict[str, Any]:
    """Is B worse than A, and by more than chance?

    A and B are folders of `trt-qat run`, their run.json, or files of `trt-qat evaluate --details --json`. The exit code
    is 1 if the mAP (or agreement) of a model in B is lower than in A by more than --max-drop, chance or not, or its
    latency above --max-latency-ratio. An agreement beside an mAP is refused.
    """
    from trt_qat.report.compare import Tolerance
    from trt_qat.report.compare import compare as compare_files

    found = compare_files(first, second, Tolerance(max_drop, max_latency_ratio), models)
    for line in found.lines():
        click.echo(line)
    if found.worse:
        _say_error(f"{len(found.worse)} of {len(found.pairs)} models in B are worse than the tolerance.")
        _exit_at_end(1)
    return found.as_dict()


@cli.command()
@click.argument("first", metavar="A", type=FILE)
@click.argument("second", metavar="B", type=FILE)
@_trust_pickle
@_data
@click.option("--runtime-a", type=click.Choice([*RUNTIMES.rows, "torch"]), help="What runs A. Default as for evaluate.")
@click.option("--runtime-b", type=click.Choice([*RUNTIMES.rows, "torch"]), help="What runs B. Default as for evaluate.")
@click.option("--bisect", is_flag=True, help="Also name the first layer that differs.")
@_command
def parity(
    config: Config,
    first: Path,
    second: Path,
    data: Data,
    runtime_a: str | None,
    runtime_b: str | None,
    bisect: bool,
) -> dict[str, Any]:
    """Do A and B compute the same?

    A and B are *.onnx, *.plan, *_openvino_model, or checkpoints (PyTorch, fake-quantized if calibrated); one file on
    two runtimes is A, A again and --runtime-b. Their outputs, detections and mAP (or agreement) are compared on images
    of the val split of --data; the exit code is 1 if a threshold of the section parity is not met.
    """
    with _bars() as bars:
        from trt_qat import api  # seconds: torch and its friends

        report = api.parity(
            first,
            second,
            data,
            config.parity,
            runtimes=(runtime_a, runtime_b),
            imgsz=config.model.fixed_imgsz,
            bisect=bisect,
            evaluation=config.evaluation,
            infer=config.infer,
            footage=config.data,
            device=config.model.device,
            progress=bars,
        )
    _print_parity(report)
    if report.broken:
        _say_error(f"Parity is broken: {report.summary()}")
        _exit_at_end(1)
    return report.as_dict()


@cli.command()
@_weights
@_data
@click.option("--out", type=FILE, required=True, help="Folder for every artifact and result.json.")
@click.option("--anew", is_flag=True, help="Make again what an earlier run in OUT has finished.")
@_command
def run(config: Config, weights: Path, data: Data, out: Path, anew: bool) -> list[dict[str, Any]]:
    """All stages, from float weights to an engine.

    --data needs no labels: images and videos are labelled by the float weights themselves (into OUT/footage), and what
    is measured then is agreement with them.

    Calibrate, fine-tune, export, build the engine, evaluate FP32 against PTQ and QAT, and compare the exported files
    with the checkpoint that they are of. The exit code is 1 if that parity is broken, and with qat.max_drop set 3 if
    the QAT model does not meet it; everything is written all the same. With quantization.scheme=asymmetric, which
    TensorRT does not take, export.target must be openvino or onnxruntime, and there is no engine.

    Run again, it reuses every stage in OUT whose inputs have not changed (OUT/manifest.json) and goes on inside the
    fine-tuning where it was interrupted.
    """
    return _all_stages(config, weights, data, out, anew)


def _all_stages(config: Config, weights: Path, data: Data, out: Path, anew: bool = False) -> list[dict[str, Any]]:
    with _bars() as bars:
        from trt_qat.run import run as run_all  # seconds: torch and its friends

        result = run_all(weights, data, out, config, bars, anew=anew)
    _print_rows(result.rows)
    for what, path in {
        **{f"checkpoint {name}": file for name, file in result.checkpoints.items()},
        **{f"ONNX {name}": file for name, file in result.exported.items()},
        **({f"engine ({result.engine.flavor}, built here, not run)": result.engine.path} if result.engine else {}),
        "result": result.result_json,
        "picture": result.picture,
        "parity": result.parity_json,
        "record": result.record,
    }.items():
        click.echo(f"{what}: {path}")
    for report in result.parity:
        click.echo(f"Parity of {report.first} and {report.second}: {'broken' if report.broken else 'kept'}")
    broken = [report for report in result.parity if report.broken]
    if broken:  # said first: with a missed budget, too, the code is that of a fault
        _say_error(f"Parity is broken: {' '.join(report.summary() for report in broken)}")
        _exit_at_end(1)
    if result.budget is not None:
        _print_budget(result.budget, out / "qat")
    click.echo(f"report: {result.report}")
    return [row.as_dict() for row in result.rows]


@cli.command()
@click.option(
    "--out", type=FILE, default=Path("runs/demo"), show_default=True, help="Folder: data/ is the images, result/ a run."
)
@functools.partial(_command, beneath=(SETTINGS,))
def demo(config: Config, out: Path) -> list[dict[str, Any]]:
    """`run` on what the package brings; no download.

    Generates images of Vietnamese traffic signs (as `data demo` does) and takes the shipped detector of such signs
    through all stages of `run`, with small images and few epochs: minutes on two cores.
    """
    return _all_stages(config, DETECTOR, _demo_set(out / "data"), out / "result")


@cli.command()
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("--model", type=FILE, help="*.plan, *.onnx, *.engine or OpenVINO folder [default: newest in engines/].")
@click.option("--out", help="Annotated file, folder, or rtsp:// rtmp:// udp:// address [default: runs/infer].")
@click.option("--no-save", is_flag=True, help="Write no annotated images and videos.")
@click.option("--jsonl", type=FILE, help="One JSON object per frame; - is standard output (docs/infer.md).")
@click.option("--csv", type=FILE, help="One row per detection; - is standard output.")
@click.option("--save-txt", type=FILE, help="Folder for YOLO label files.")
@click.option("--save-crops", type=FILE, help="Folder for a picture of each detection.")
@click.option("--show", is_flag=True, help="Show the annotated frames in a window; q ends.")
@click.option("--track", is_flag=True, help="Give each object an id that it keeps (ByteTrack).")
@click.option(
    "--count-line", "lines", multiple=True, metavar="[NAME:]X1,Y1,X2,Y2", help="Count what crosses; repeatable."
)
@click.option(
    "--count-zone", "zones", multiple=True, metavar="[NAME:]X1,Y1,...", help="Count what is inside; repeatable."
)
@click.option("--conf", type=click.FloatRange(0, 1, max_open=True), help="Same as --set infer.conf=...")
@click.option("--iou", type=click.FloatRange(0, 1, min_open=True), help="Same as --set infer.iou=...")
@click.option("--classes", metavar="LIST", help="Ids or names to keep, e.g. 0,stop.")
@click.option("--batch", type=click.IntRange(min=1), help="Same as --set infer.batch=...")
@click.option("--every", type=click.IntRange(min=1), help="Take each Nth frame; same as --set infer.every=...")
@click.option("--max-fps", type=click.FloatRange(min=0, min_open=True), help="Same as --set infer.max_fps=...")
@click.option("--mode", type=click.Choice(choices(InferMode)), help="Same as --set infer.mode=...")
@click.option("--recursive", is_flag=True, help="Take a folder's sub-folders, too.")
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Share the files among the machines of a Ray cluster ('local' starts one here), Parquet into --out.",
)
@click.option("--device", default="auto", show_default=True, metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--runtime",
    type=click.Choice(["auto", *RUNTIMES.rows]),
    default="auto",
    show_default=True,
    help="auto is TensorRT where it works, else OpenVINO.",
)
@_command
def infer(
    config: Config,
    sources: tuple[str, ...],
    model: Path | None,
    runtime: str,
    device: str,
    recursive: bool,
    track: bool,
    lines: tuple[str, ...],
    zones: tuple[str, ...],
    **given: Any,
) -> dict[str, Any]:
    """Detect objects in images, videos and streams.

    SOURCE is an image, a video, a folder, a pattern ("*.jpg"), a list (*.txt), a camera (0 or /dev/video0), an RTSP,
    HTTP or UDP address, or - for an encoded stream on standard input. Annotated files are written; Ctrl-C ends a stream
    and finishes them. If one of several images cannot be read, the others are done and the exit code is 1. Where
    engines/ holds no model and none is given, the shipped detector of generated traffic signs is made first.
    """
    from trt_qat.runtime import infer as job
    from trt_qat.runtime.sinks.choice import Outputs
    from trt_qat.runtime.sources import name_sources

    given["classes"] = _class_list(given["classes"])
    keys = ("conf", "iou", "classes", "batch", "every", "max_fps", "mode")
    section = config.infer.replace(**{key: given[key] for key in keys if given[key] is not None})
    if given["ray"] is not None:
        elsewhere = {**given, "track": track, "count-line": lines, "count-zone": zones}
        return _infer_on_ray(sources, model, section, elsewhere, runtime=runtime, device=device, recursive=recursive)
    outputs = Outputs(
        **_file_or_address(given["out"]),
        jsonl=_file_or_stdout(given["jsonl"]),
        csv=_file_or_stdout(given["csv"]),
        save_txt=given["save_txt"],
        save_crops=given["save_crops"],
        show=given["show"],
        save=not given["no_save"],
        results=click.get_current_context().params["json_file"] is not None,
    )
    if model is None and job.newest_model() is None:
        name_sources(sources, recursive=recursive)  # a wrong SOURCE is said before the time that making a model takes
        model = _demo_model()
    on_stderr = Path("-") in (given["jsonl"], given["csv"])
    with _bars(on_stderr) as bars:
        done = job.infer(
            sources,
            model,
            section,
            outputs=outputs,
            runtime=runtime,
            device=device,
            recursive=recursive,
            track=track,
            lines=lines,
            zones=zones,
            progress=bars,
        )
    _print_inferred(done, on_stderr)
    return done.as_dict()


@cli.command()
@click.argument("onnx", type=FILE)
@click.option(
    "--target", type=click.Choice(list(TARGETS.rows)), default="tensorrt", show_default=True, help="Whose rules hold."
)
@click.option("--svg", type=FILE, help="Also draw the network: INT8 edges coloured by scale group.")
@_command
def lint(config: Config, onnx: Path, target: str, svg: Path | None) -> dict[str, Any]:
    """Check the Q/DQ placement of any ONNX file.

    A finding is "broken" (the client refuses the file, or computes something useless), "slow" (INT8 speed is lost), a
    warning, or an info. The exit code is 1 if anything is broken or slow.
    """
    del config
    from trt_qat.linter.picture import draw
    from trt_qat.linter.report import lint as lint_file

    report = lint_file(onnx, target)
    click.echo(report.as_text())
    if svg is not None:
        draw(onnx, svg, report.findings)
        click.echo(f"Drawn: {svg}")
    if report.errors:
        _exit_at_end(1)
    return report.as_dict()


@cli.command()
@click.argument("file", type=FILE)
@click.option("--against", multiple=True, type=FILE, help="Another file beside it; repeatable.")
@click.option("--sm", type=click.IntRange(min=1), default=89, show_default=True, help="Compute capability, e.g. 86.")
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Images per inference.")
@click.option(
    "--gpu", "gpus", multiple=True, help="Estimate for this GPU, e.g. rtx4060; repeatable [default: by --sm]."
)
@click.option("--launch-us", type=click.FloatRange(min=0), help="Assumed cost of a launch, microseconds.")
@click.option("--layers", is_flag=True, help="Also list every kernel.")
@click.option("--html", type=FILE, help="Also write a page with a bar per kernel.")
@click.option("--svg", type=FILE, help="Also write the bars alone.")
@_command
def inspect(
    config: Config,
    file: Path,
    against: tuple[Path, ...],
    sm: int,
    batch: int,
    gpus: tuple[str, ...],
    launch_us: float | None,
    layers: bool,
    html: Path | None,
    svg: Path | None,
) -> list[dict[str, Any]]:
    """Show what the compiler makes of FILE.

    FILE is a *.onnx, which TensorRT-RTX compiles here without a GPU, or a *.plan or *.engine, which needs a GPU that
    runs it. Kernels, what is fused into convolutions, memory moved, and an estimate from published rates of named
    GPUs: no measurement, and for cards that run TensorRT a lower bound only. What the lint predicts is looked up.
    """
    del config
    from trt_qat.engine import report
    from trt_qat.engine.picture import write_html, write_svg
    from trt_qat.engine.roofline import LAUNCH_US

    for out, suffix in ((html, ".html"), (svg, ".svg")):
        if out is not None:
            writable_file(out, suffix)
    launch = LAUNCH_US if launch_us is None else launch_us
    with _bars() as bars:
        inspected = report.inspect_files((file, *against), sm, batch, gpus, launch, bars)
    _print_table(report.HEADER, [report.kernel_cells(entry) for entry in inspected])
    _print_table(report.SIZES_HEADER, [report.size_cells(entry) for entry in inspected])
    _print_table(*report.estimate_table(inspected))
    for entry in inspected if layers else ():
        click.echo(entry.engine.source)
        _print_table(report.LAYERS_HEADER, report.layer_cells(entry.engine))
    click.echo("\n".join(report.notes(inspected, sm)))
    if html is not None:
        write_html(inspected, sm, html)
        click.echo(f"Written: {html}")
    if svg is not None:
        write_svg(inspected, svg)
        click.echo(f"Drawn: {svg}")
    return [entry.as_dict() for entry in inspected]


@cli.command()
@click.argument("run", type=FILE)
@click.option(
    "--format",
    "form",
    type=click.Choice(["html", "markdown"]),
    default="html",
    show_default=True,
    help="What to write.",
)
@click.option("--out", type=FILE, help="File to write [default: RUN/report.html or RUN/report.md].")
@_command
def report(config: Config, run: Path, form: str, out: Path | None) -> dict[str, str]:
    """Show what a run found.

    RUN is the folder of `trt-qat run`, or its run.json, which is all that is read. The page is one file that loads
    nothing; `run` writes it as its last step.
    """
    del config
    from trt_qat.report.markdown import write_markdown
    from trt_qat.report.page import write_report
    from trt_qat.report.record import read_record, record_file

    write, suffix = (write_report, ".html") if form == "html" else (write_markdown, ".md")
    file = writable_file(out or record_file(run).with_name(f"report{suffix}"), suffix)
    write(read_record(run), file)
    click.echo(f"Report: {file}")
    return {"report": str(file)}


@cli.command()
@click.argument("run_folder", metavar="RUN", type=FILE)
@click.option("--layer", metavar="NAME", help="A convolution, a scale group, or the beginning or ending of a name.")
@_command
def explain(config: Config, run_folder: Path, layer: str | None) -> dict[str, Any]:
    """What about this layer, and what to try?

    RUN is the folder of `trt-qat run`; only its run.json is read. Without --layer the layers that matter are listed,
    worst first. With it: range, histogram, SQNR, sensitivity, what shares its scale, what lint and compiler say, and
    what to try, each with its figures and the command. A name that means several layers lists them.
    """
    del config
    from trt_qat.report import explain as explaining
    from trt_qat.report.layer_facts import Network
    from trt_qat.report.record import read_record

    record = read_record(run_folder)
    found = None if layer is None else Network(record).find(layer)
    if found is not None and len(found) == 1:
        explanation = explaining.explain(found[0], run_folder)
        click.echo(explanation.as_text())
        return explanation.as_dict()
    listed = explaining.overview(record, run_folder, found)
    _print_table(explaining.HEADER, listed.cells(), wrap_last=True)
    click.echo(f"Next: {listed.command}")
    return listed.as_dict()


@cli.group()
def data() -> None:
    """Check, convert and generate datasets."""


@data.command()
@click.argument("dataset", type=FILE)
@_command
def validate(config: Config, dataset: Path) -> list[dict[str, str]]:
    """List what is wrong with DATASET.

    DATASET is a data.yaml or a folder in YOLO layout. The exit code is 1 if there are errors.
    """
    del config
    from trt_qat.data.dataset import load_dataset
    from trt_qat.data.validate import validate_dataset

    loaded = load_dataset(dataset)
    with _bars() as bars:
        findings = validate_dataset(loaded, bars)
    for finding in findings:
        click.echo(f"{finding.severity}: {finding.kind}: {finding.path}: {finding.detail}")
    errors = sum(finding.severity == "error" for finding in findings)
    click.echo(
        f"{len(loaded.train)} train, {len(loaded.val)} val images: {errors} errors, {len(findings) - errors} warnings"
    )
    if errors:
        _exit_at_end(1)
    return [{"kind": f.kind, "severity": f.severity, "path": str(f.path), "detail": f.detail} for f in findings]


@data.command()
@click.option("--from", "source_format", type=click.Choice(["coco", "voc"]), required=True, help="Format now.")
@click.option("--annotations", type=FILE, required=True, help="COCO JSON file, or folder of VOC XML files.")
@click.option("--images", type=FILE, required=True, help="Folder with the images.")
@click.option(
    "--val-fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.2,
    show_default=True,
    help="Share of the images that become the val split.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which images become the val split.")
@click.option("--out", type=FILE, required=True, help="New folder for the YOLO dataset.")
@_command
def convert(
    config: Config, source_format: str, annotations: Path, images: Path, val_fraction: float, seed: int, out: Path
) -> dict[str, str]:
    """Convert COCO JSON or Pascal VOC to YOLO layout.

    The Zalo traffic-sign challenge's annotations are COCO JSON.
    """
    del config
    from trt_qat.data.convert import yolo_from_coco, yolo_from_voc

    convert_from = yolo_from_coco if source_format == "coco" else yolo_from_voc
    yaml_file = convert_from(annotations, images, out, val_fraction, seed)
    click.echo(f"Converted: {yaml_file}")
    return {"data": str(yaml_file)}


@data.command("label")
@_weights
@_data
@click.option("--out", type=FILE, required=True, help="New or empty folder, or one of this command.")
@_command
def label_footage(config: Config, weights: Path, data: Data, out: Path) -> dict[str, Any]:
    """Make a dataset of images and videos without labels.

    Its labels are what the float weights detect: what is measured on it is agreement with them, never mAP. Frames of
    videos that differ are taken (data.frames, data.difference), the last of them held out (data.held_out). `run` and
    `qat` do the same in OUT/footage.
    """
    with _bars() as bars:
        from trt_qat import pipeline  # seconds: torch and its friends

        dataset = pipeline.label(weights, data, out, config, bars)
    click.echo(f"Labelled: {dataset.source}")
    return {"data": str(dataset.source), "train": len(dataset.train), "val": len(dataset.val)}


@data.command("demo-model")
@click.option("--out", type=FILE, required=True, help="ONNX file to write.")
@_command
def demo_model(config: Config, out: Path) -> dict[str, str]:
    """Export the shipped demo detector in INT8.

    It knows generated traffic signs; the file is for OpenVINO.
    """
    del config
    writable_file(out, ".onnx")
    with _bars() as bars:
        from trt_qat.demo.model import export_demo_model  # seconds: torch and its friends

        artifact = export_demo_model(out, bars)
    click.echo(f"Exported: {artifact.path} ({artifact.precision})")
    return {"onnx": str(artifact.path)}


@data.command("demo")
@click.option("--train", "train_count", type=click.IntRange(min=1), default=256, show_default=True, help="Images.")
@click.option("--val", "val_count", type=click.IntRange(min=1), default=64, show_default=True, help="Images.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed draws the same images.")
@click.option("--out", type=FILE, required=True, help="Folder for the generated dataset.")
@_command
def demo_set(config: Config, train_count: int, val_count: int, seed: int, out: Path) -> dict[str, str]:
    """Generate images of Vietnamese traffic signs.

    Drawn, warped, on varied backgrounds: for trying everything without a download.
    """
    del config
    return {"data": str(_demo_set(out, (train_count, val_count), seed))}


@data.command("demo-clip")
@click.option("--frames", type=click.IntRange(min=1), default=250, show_default=True, help="25 of them are a second.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The same seed draws the same street."
)
@click.option("--out", type=FILE, required=True, help="Video to write, e.g. street.mp4.")
@_command
def demo_clip(config: Config, frames: int, seed: int, out: Path) -> dict[str, str]:
    """Generate a video of a drive past Vietnamese traffic signs.

    For the demo detector (`data demo-model`), and for trying tracking and counting.
    """
    del config
    from trt_qat.demo.clip import write_street_clip

    with _bars() as bars:
        write_street_clip(out, frames, seed, bars)
    click.echo(f"Generated: {out}")
    return {"video": str(out)}


def _infer_on_ray(
    sources: tuple[str, ...], model: Path | None, section: InferSection, given: Mapping[str, Any], **where: Any
) -> dict[str, Any]:
    from trt_qat.runtime.infer import default_model
    from trt_qat.runtime.ray_data import infer_on_ray

    not_there = ("no_save", "jsonl", "csv", "save_txt", "save_crops", "show", "track", "count-line", "count-zone")
    if unfit := [f"--{name.replace('_', '-')}" for name in not_there if given[name]]:
        raise ConfigError(f"--ray writes Parquet and nothing else: leave {', '.join(unfit)} away.")
    out = given["out"] or Path("runs/ray")
    done = infer_on_ray(given["ray"], sources, out, model or default_model(), section, **where)
    workers = f"{done.workers} worker{'s' if done.workers > 1 else ''}"
    click.echo(f"{done.frames} frames of {done.files} files, {workers}\nWritten: {done.out}")
    if done.failed:
        _say_error(f"{done.failed} of {done.files} files left out; the first: {done.first_error}")
        _exit_at_end(1)
    return done.as_dict()


def _demo_set(out: Path, counts: tuple[int, int] = (256, 64), seed: int = 0) -> Path:
    """Draw the demo's images, so many for training and for validation, into a folder; its ``data.yaml``."""
    from trt_qat.demo.generate import generate_demo_set

    with _bars() as bars:
        yaml_file = generate_demo_set(out, *counts, seed, progress=bars)
    click.echo(f"Generated: {yaml_file}")
    return yaml_file


def _demo_model() -> Path:
    """``engines/demo_int8.onnx``, made in a process of its own: this one loads no torch."""
    out = Path("engines") / "demo_int8.onnx"
    click.echo(f"No model in engines/ and no --model: making '{out}' of the shipped demo detector (generated signs).")
    done = subprocess.run([sys.executable, "-m", "trt_qat", "data", "demo-model", "--out", str(out)], check=False)
    if done.returncode:
        raise ArtifactError("The demo model could not be made, see above. Give --model PATH.")
    return out


def _file_or_stdout(path: Path | None) -> Path | BinaryIO | None:
    return sys.stdout.buffer if path == Path("-") else path


def _file_or_address(out: str | None) -> dict[str, Any]:
    """``--out`` of `infer`: not a path until it is known to be none of an address, which a path would damage."""
    if out is None:
        return {}
    from trt_qat.runtime.sinks.stream import is_stream

    return {"address": out} if is_stream(out) else {"out": Path(out)}


def _class_list(text: str | None) -> tuple[int | str, ...] | None:
    """``0,stop`` as (0, "stop")."""
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(int(name) if name.isascii() and name.isdigit() else name for name in names)


def _print_inferred(done: Inferred, on_stderr: bool) -> None:
    """What was done; a message for people stays out of an output that goes to standard output."""
    for line in done.lines():
        click.echo(line, err=on_stderr)
    missed = {"dropped": done.dropped, "broken": done.broken, "reconnects": done.reconnects}
    if any(missed.values()):
        click.echo(f"Warning: {', '.join(f'{count} {what}' for what, count in missed.items() if count)}.", err=True)
    if done.errors:
        of = f"{done.announced} images" if done.announced else f"{len(done.sources)} sources"
        _say_error(f"{len(done.errors)} of {of} left out; the first: {done.errors[0][1]}")
        _exit_at_end(1)
    elif done.frames + done.broken + done.dropped < done.announced:
        click.echo(f"Warning: {done.frames} of {done.announced} frames were readable.", err=True)


def _print_rows(rows: Sequence[ResultRow]) -> None:
    from trt_qat.evaluation.report import cells, header

    measure = rows[0].measure
    _print_table(header(measure), [cells(row) for row in rows])
    if measure == "agreement":
        click.echo(f"{NO_ACCURACY}\n{NOT_ONE}")


def _print_sensitivity(rows: Sequence[GroupSensitivity], measure: Measure) -> None:
    header = ("worst groups alone in INT8", "output error", f"{measure}50-95 drop, points")
    _print_table(
        header,
        [
            (
                row.label,
                "" if row.error is None else f"{row.error:.6f}",
                "" if row.map50_95_drop is None else f"{100 * row.map50_95_drop:.3f}",
            )
            for row in rows[:SHOWN_GROUPS]
        ],
    )


def _print_parity(report: ParityReport) -> None:
    from trt_qat.evaluation.parity_report import HEADER as OUTPUTS

    for line in (*report.lines(), *(report.bisect.lines() if report.bisect else ())):
        click.echo(line)
    _print_table(OUTPUTS, [row.cells() for row in report.outputs])


def _print_budget(budget: Budget, folder: Path) -> Path:
    """Show what ``qat.max_drop`` led to; a budget that is not met ends the command with code 3. Returns its file."""
    from trt_qat.mixed_precision.files import REPORT
    from trt_qat.mixed_precision.mixes import table

    header, rows, said = table(budget.report)
    _print_table(header, rows)
    click.echo(f"{said}\nMixed precision: {folder / REPORT}")
    if not budget.met:
        measure, points = budget.report.get("measure", "mAP"), budget.report["max_drop_points"]
        _say_error(
            f"No mix keeps {measure}50-95 within {points:g} points of the float model; "
            f"'{folder / 'best.safetensors'}' is the most accurate one. Raise qat.max_drop or fine-tune longer."
        )
        _exit_at_end(3)
    return folder / REPORT


def _advice_row(advice: Advice, form: Form) -> tuple[str, ...]:
    groups = len(form.int8_groups) + len(form.float_groups)
    recommended = "<- recommended" if form is advice.recommended else ""
    return (
        form.name,
        str(form.engine.kernel_count),
        f"{form.engine.activation_bytes / 1e6:.1f}",
        f"{form.engine.weight_bytes / 1e6:.1f}",
        f"{form.ms:.3f}",
        "" if form.map50_95 is None else f"{form.map50_95:.4f}",
        f"{len(form.int8_groups)} of {groups} groups" if form.int8_groups else "",
        recommended if advice.keeps_accuracy(form) else f"costs too much {advice.measure}",
    )


def _print_table(header: Sequence[str], rows: Iterable[Sequence[str]], wrap_last: bool = False) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for number, name in enumerate(header, 1):
        table.add_column(name, no_wrap=not (wrap_last and number == len(header)))
    for row in rows:
        table.add_row(*map(Text, row))  # what comes from files is no markup
    _print(table)


def _print_candidates(calibration: Mapping[str, Any]) -> None:
    if not calibration["candidates"]:
        return
    from rich.table import Table

    table = Table("calibrator", "percentile", "output error", "")
    for candidate in sorted(calibration["candidates"], key=lambda candidate: float(candidate["error"])):
        percentile = "" if candidate["percentile"] is None else str(candidate["percentile"])
        chosen = "chosen" if candidate["chosen"] else ""
        table.add_row(candidate["calibrator"], percentile, f"{candidate['error']:.4f}", chosen)
    _print(table)
    if calibration["groups_error"] is not None:
        others, error = len(calibration["groups"]), calibration["groups_error"]
        click.echo(f"Scale groups with another calibrator: {others}; output error with those: {error:.4f}")


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 200  # a piped table must stay readable
    console.print(table)


def call(command: click.Command, name: str) -> None:
    """Run a command and exit. Wrong usage is said as click says it, but for passwords in what was typed.

    Args:
        name: of the program, for its help.
    """
    try:
        code = command.main(prog_name=name, standalone_mode=False)
    except click.ClickException as exc:
        said = io.StringIO()
        exc.show(file=said)
        click.echo(redacted_message(said.getvalue()), err=True, nl=False)
        sys.exit(exc.exit_code)
    except click.Abort:  # the end of an input that was asked for; signals do not come this far, see entry.py
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
