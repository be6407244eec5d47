"""Detections of many files by many machines: Ray Data shares the files among one :class:`Detector` per device.

Ray decides where each file is worked on, and starts a worker that died anew with the files that it had (max_restarts
and max_task_retries of its actors, without end by default; where nothing comes for half an hour, the run fails). A
block of files is there whole in the end. Nothing here schedules. Each row is the object of one frame that ``--jsonl``
writes, with an error in place of detections where a file cannot be read.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from trt_qat.artifacts import writable_folder
from trt_qat.config import InferSection
from trt_qat.errors import ArtifactError, DatasetError, RunnerError, TrtQatError
from trt_qat.extras import extras_named
from trt_qat.limits import LISTED_FILES
from trt_qat.redact import redacted, redacted_message
from trt_qat.runtime.detector import Detector
from trt_qat.runtime.frames import Frame, Result
from trt_qat.runtime.sinks.jsonl import frame_record
from trt_qat.runtime.sources import VIDEO_SUFFIXES, name_sources, open_sources
from trt_qat.vision.image import IMAGE_SUFFIXES
from trt_qat.vision.quiet import NO_STDERR

LOCAL: Final = "local"
_STORES: Final = frozenset({"s3", "gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"})  # what pyarrow opens by address
_FILES_PER_BLOCK: Final = 16  # done again if a worker dies
_BLOCKS_PER_WORKER: Final = 4  # so that no worker waits long for the last one
_ROWS_AT_ONCE: Final = 1024  # of a long video
_CONNECT_SECONDS: Final = 10.0


@dataclass(frozen=True)
class RayInferred:
    """What :func:`infer_on_ray` did.

    Attributes:
        out: the folder or bucket with ``*.parquet``.
        files: that were shared out.
        workers: that worked on them.
        frames: rows with detections.
        failed: rows with an error.
        first_error: the source and the error of one of those.
    """

    out: str
    files: int
    workers: int
    frames: int
    failed: int
    first_error: str | None

    def as_dict(self) -> dict[str, Any]:
        """The object that ``--json`` writes."""
        return asdict(self)


def infer_on_ray(
    address: str,
    sources: Sequence[str],
    out: str | Path,
    model: str | Path,
    section: InferSection | None = None,
    *,
    runtime: str = "auto",
    device: str = "auto",
    recursive: bool = False,
    workers: int | None = None,
) -> RayInferred:
    """Detect in files on the machines of a Ray cluster and write Parquet.

    Each row has ``source``, ``frame`` (number), ``seconds``, ``width``, ``height``, ``detections`` (a list of
    ``class_id``, ``name``, ``score``, ``box_xyxy``) and ``error``. The order of rows is not that of the sources. Every
    machine has trt_qat installed and finds the model and local files at the same paths.

    Args:
        address: of the cluster, e.g. ``ray://head:10001`` or "auto"; "local" starts one here and ends it.
        sources: images, videos, folders, patterns and lists as for ``infer``, and files or folders in a bucket
            (``s3://bucket/folder``; pyarrow finds the credentials).
        out: a folder, or one in a bucket; it must hold no Parquet yet.
        model: see :class:`~trt_qat.runtime.detector.Detector`.
        section: thresholds, ``batch``, ``every`` and ``max_fps``.
        runtime, device: see :class:`~trt_qat.runtime.detector.Detector`; each worker sees its own GPU as the first.
        recursive: whether a folder's sub-folders count.
        workers: how many detectors; None is one per GPU, and without any or with ``device="cpu"`` one per machine.

    Raises:
        DatasetError: a source does not exist, or is no file (a camera, a stream).
        ArtifactError: ``out`` cannot be written or holds results, or the model cannot be read.
        MissingDependency: ray is not installed, or a worker lacks a package.
        RunnerError: the cluster cannot be reached, a worker cannot run the model, or Ray gave up.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its C++ part writes to the terminal
    with extras_named():
        import ray
        import ray.data
    files = _files_of(sources, recursive)
    out = _place(out)
    _check_out(out)
    with _cluster(address), _one_error():
        gpus = 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))
        count = min(workers or gpus or sum(node["Alive"] for node in ray.nodes()), len(files))
        ray.data.from_items(
            [{"file": file} for file in files],
            override_num_blocks=min(len(files), max(_BLOCKS_PER_WORKER * count, -(-len(files) // _FILES_PER_BLOCK))),
        ).map_batches(
            Worker,
            fn_constructor_args=(str(Path(model).absolute()), section or InferSection(), runtime, device),
            batch_size=None,
            batch_format="numpy",
            concurrency=count,
            num_cpus=1,  # of Ray's book-keeping: a runtime takes the cores that it finds
            num_gpus=1 if gpus else 0,
        ).write_parquet(out)
    return RayInferred(redacted(out), len(files), count, *_counted(out))


class Worker:
    """One detector for as long as its process lives, which is until Ray ends it."""

    def __init__(self, model: str, section: InferSection, runtime: str, device: str) -> None:
        self._section = section
        self._model, self._runtime, self._device = model, runtime, device

    @cached_property
    def _detector(self) -> Detector:
        """Opened by the first call: of an error while a worker starts, Ray keeps the text alone."""
        return Detector(self._model, self._section, runtime=self._runtime, device=self._device, mode="throughput")

    def __call__(self, files: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
        """The rows of some files, as tables."""
        detector = self._detector
        failed: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        frames = self._frames(files["file"], failed)
        for frame, found in detector.stream(frames, self._section.batch):
            rows.append(frame_record(Result(frame, found), detector.names))
            if len(rows) == _ROWS_AT_ONCE:
                yield _table(rows)
                rows = []
        yield _table(rows + failed)

    def _frames(self, files: Sequence[str], failed: list[dict[str, Any]]) -> Iterator[Frame]:
        """All frames of all files; what a file cannot give is noted in ``failed``."""
        for file in map(str, files):
            shown = redacted(file)
            try:
                with _local(file) as path:
                    for frame in self._frames_of(path, shown):
                        yield replace(frame, source=shown, path=None)
            except DatasetError as exc:
                failed.append({"source": shown, "error": str(exc)})
            except OSError as exc:  # a bucket's
                failed.append({"source": shown, "error": f"'{shown}' cannot be read: {redacted_message(str(exc))}"})

    def _frames_of(self, path: Path, shown: str) -> Iterator[Frame]:
        try:
            (source,) = open_sources([str(path)], every=self._section.every, max_fps=self._section.max_fps)
            with closing(source):
                yield from source.frames()
        except DatasetError as exc:  # it knows a copy's name only
            raise DatasetError(str(exc).replace(str(path), shown)) from exc


def _table(rows: list[dict[str, Any]]) -> Any:
    """One schema for all, whatever is empty in these rows: a Parquet folder has one."""
    import pyarrow as pa

    box = pa.struct(
        {"class_id": pa.int64(), "name": pa.string(), "score": pa.float64(), "box_xyxy": pa.list_(pa.float64())}
    )
    schema = pa.schema(
        {
            "source": pa.string(),
            "frame": pa.int64(),
            "seconds": pa.float64(),
            "width": pa.int64(),
            "height": pa.int64(),
            "detections": pa.list_(box),
            "error": pa.string(),
        }
    )
    return pa.Table.from_pylist(rows, schema=schema)


def _files_of(sources: Sequence[str], recursive: bool) -> list[str]:
    """Absolute paths and addresses of all files, one each."""
    found: list[str] = []
    for text in sources:
        if _in_store(text):
            found += _files_in_store(text, recursive)
            continue
        for named in name_sources([text], recursive=recursive):
            if not named.paths:
                raise DatasetError(
                    f"Source '{redacted(named.text)}' is a stream; --ray shares files among machines. Leave --ray away."
                )
            found += [str(path.absolute()) for path in named.paths]
    LISTED_FILES.check(len(found), "SOURCE", DatasetError)
    return found


def _in_store(text: str) -> bool:
    return text.partition("://")[0].lower() in _STORES and "://" in text


def _files_in_store(text: str, recursive: bool) -> list[str]:
    from pyarrow import fs

    shown = redacted(text)
    try:
        store, place = fs.FileSystem.from_uri(text)
        info = store.get_file_info(place)
        if info.type == fs.FileType.File:
            return [text]
        entries = store.get_file_info(fs.FileSelector(place, recursive=recursive, allow_not_found=True))
    except (OSError, ValueError) as exc:
        raise DatasetError(f"Source '{shown}' cannot be listed: {exc}.") from exc
    known = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    names = sorted(
        entry.path.removeprefix(place).lstrip("/")
        for entry in entries
        if entry.type == fs.FileType.File and Path(entry.path).suffix.lower() in known
    )
    if not names:
        deeper = "" if recursive else "; sub-folders count with --recursive"
        raise DatasetError(f"Source '{shown}' holds no images and no videos ({', '.join(sorted(known))}{deeper}).")
    head, mark, options = text.partition("?")
    return [f"{head.rstrip('/')}/{name}{mark}{options}" for name in map(quote, names)]


@contextmanager
def _local(file: str) -> Iterator[Path]:
    """Within: the file on this machine. A bucket's is copied: decoders jump about in a video."""
    if not _in_store(file):
        yield Path(file)
        return
    from pyarrow import fs

    with tempfile.TemporaryDirectory(prefix="trt_qat_ray_") as folder:
        path = Path(folder) / Path(unquote(urlsplit(file).path)).name
        store, place = fs.FileSystem.from_uri(file)
        with store.open_input_stream(place) as stream, path.open("wb") as copy:
            shutil.copyfileobj(stream, copy, 1 << 20)
        yield path


def _place(out: str | Path) -> str:
    """An address, or the absolute path of a folder on all machines. A path has made ``//`` to ``/``."""
    scheme, mark, rest = str(out).partition(":/")
    address = f"{scheme}://{rest.lstrip('/')}"
    return address if mark and _in_store(address) else str(Path(out).absolute())


def _check_out(out: str) -> None:
    """Refuse to mix results with others, which nobody could take apart again."""
    if not _in_store(out):
        writable_folder(Path(out))
    from pyarrow import fs

    try:
        store, place = fs.FileSystem.from_uri(out)
        entries = store.get_file_info(fs.FileSelector(place, allow_not_found=True))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"--out '{redacted(out)}' cannot be listed: {exc}.") from exc
    if any(entry.path.endswith(".parquet") for entry in entries):
        raise ArtifactError(f"--out '{redacted(out)}' holds *.parquet of another run. Choose a new folder.")


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Within: connected. One that the caller has connected to already stays connected."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    before = signal.getsignal(signal.SIGTERM)
    try:
        _check_answers(address)
        with NO_STDERR:  # it says there that it says nothing
            ray.init(address=address, **quiet, **({"include_dashboard": False} if address == LOCAL else {}))
    except (OSError, ValueError, RuntimeError) as exc:
        reason = " ".join(str(exc).split()).rstrip(".")
        raise RunnerError(
            f"No Ray cluster at '{redacted(address)}': {reason}. Start one ('ray start --head'), or give --ray local."
        ) from exc
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray's own exits without a word
    try:
        yield
    finally:
        gc.collect()  # references that outlive this Ray would be taken for those of the next one
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Ray itself waits minutes for a machine that is not there."""
    place = urlsplit(address if "://" in address else f"ray://{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_CONNECT_SECONDS).close()


@contextmanager
def _one_error() -> Iterator[None]:
    """Within: what a worker raised comes out as itself, and what Ray says as one line."""
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    failure: TrtQatError | None = None
    try:
        yield
    except ray.exceptions.RayError as exc:
        cause: BaseException | None = exc
        while cause is not None and not isinstance(cause, TrtQatError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        failure = RunnerError(f"Ray gave up: {exc}") if cause is None else type(cause)(str(cause))
    if failure is not None:  # without Ray's own, which holds references to what is in Ray
        raise failure


def _counted(out: str) -> tuple[int, int, str | None]:
    """Rows with detections, rows with an error, and one of the errors."""
    from pyarrow import dataset

    written = dataset.dataset(out, format="parquet")
    bad = dataset.field("error").is_valid()
    failed = written.count_rows(filter=bad)
    first = written.head(1, columns=["source", "error"], filter=bad).to_pylist() if failed else []
    said = f"'{first[0]['source']}': {first[0]['error']}" if first else None
    return written.count_rows() - failed, failed, said
