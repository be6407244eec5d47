"""Run a case in a fork of a process that has everything loaded, and judge what it did."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import resource
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from case import MARKER, Case

KINDS = (
    "tracebacks", "executions", "hangs", "crashes", "files outside --out", "half-written", "noise", "secrets"
)  # fmt: skip
_MEMORY = 6 << 30  # bytes above what the loaded process maps
_PROCESSOR_SECONDS = 100
_IDLE_SECONDS = 4
_TIMINGS = "home/.cache/trt_qat/timing"  # of TensorRT's kernels: the one thing that is kept in the user's cache
# what libraries say by themselves; a user can do nothing with it
_NOISE = (
    "Warning:", "libpng", "Corrupt JPEG", "Premature end", "TIFF", "[ WARN", "[ERROR:", "[W:", "[E:", "OpenCV",
    "Exception ignored", "Fontconfig", "GStreamer", "mov,mp4", "moov", "onnxruntime:",
)  # fmt: skip
_OWN = ("Error: ", "Warning: ", "Interrupted", "Usage: ", "Try '")

Snapshot = dict[str, tuple[int, int, int, int]]


@dataclass
class Verdict:
    """What a case did.

    Args:
        exit_code: 128 + signal if it was killed.
        findings: kind (one of KINDS) to what was seen.
    """

    case: Case
    exit_code: int
    seconds: float
    last_line: str
    findings: dict[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command line as it can be typed."""
        return shlex.join(["trt-qat", *self.case.command])


class Running:
    """A case whose command has been started."""

    def __init__(self, case: Case, folder: Path, kit: Path) -> None:
        self.case, self.folder = case, folder
        for name in ("place", "home", "tmp", "record"):
            (folder / name).mkdir(parents=True)
        wait(forked(lambda: case.make(folder / "place", kit)), f"making the files of {case.name}")
        self.before = snapshot(folder)
        self.started, self.used = time.monotonic(), (0.0, 0.0)
        self.pid = forked(self._command)

    def finished(self) -> Verdict | None:
        """The verdict, once there is one. Kills what takes too long."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        seconds = time.monotonic() - self.started
        hangs = pid == 0 and seconds > self.case.seconds and self._hangs(seconds)
        if pid == 0 and not hangs:
            return None
        self.stop()
        if hangs:
            _, status = os.waitpid(self.pid, 0)
        return self._verdict(os.waitstatus_to_exitcode(status), seconds, hangs)

    def stop(self) -> None:
        """Kill the command, and what it started and left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def _hangs(self, seconds: float) -> bool:
        """Whether it waits for nothing, or has had its time: on a busy machine the clock alone says little."""
        used, before = _processor_seconds(self.pid), self.used
        if seconds - before[0] < _IDLE_SECONDS:
            return False
        self.used = (seconds, used)
        return used >= self.case.seconds or used - before[1] < 0.05 or seconds > 4 * self.case.seconds

    def _verdict(self, code: int, seconds: float, hangs: bool) -> Verdict:
        said = _said(self.folder / "record/stderr")
        verdict = Verdict(self.case, code if code >= 0 else 128 - code, seconds, (said.splitlines() or [""])[-1][:300])
        if hangs:
            verdict.findings["hangs"] = f"killed after {seconds:.0f} s"
        else:
            verdict.findings.update(_judged_end(self.case, code, said, _said(self.folder / "record/stdout")))
        verdict.findings.update(self._judged_files(code))
        return verdict

    def _judged_files(self, code: int) -> Iterator[tuple[str, str]]:
        place, after = self.folder / "place", snapshot(self.folder)
        touched = {path for path, state in after.items() if self.before.get(path) != state}
        if self.case.command[0] in ("engine", "run"):
            touched = {path for path in touched if not _inside(path, [_TIMINGS]) and not _inside(_TIMINGS, [path])}
        gone = self.before.keys() - after.keys()
        marks = [path for path in touched if Path(path).name.startswith(MARKER)]
        record = self.folder / "record/events"
        if marks or record.exists():
            yield "executions", record.read_text(errors="replace")[:300] if record.exists() else marks[0]
        own = [os.path.normpath(os.path.join("place", path)) for path in (*self.case.written(), *self.case.leaves)]
        own = [path for path in own if path != "place"]  # --out . allows nothing in particular
        beside = [os.path.splitext(path)[0] + suffix for path in own for suffix in (".json", ".png")]
        # a folder that was made on the way to --out holds nothing that anyone could take for a result
        files = {path for path in touched if not stat.S_ISDIR(after[path][0]) or Path(path).name.startswith(".")}
        stray = sorted(path for path in files | gone if not _inside(path, own + beside) or _is_temporary(path, after))
        stray = [path for path in stray if path not in marks]
        if stray:
            yield "files outside --out", ", ".join(stray[:4])
        reports = code == 1 and _is_report(self.case)
        if code in (0, 3) or reports or self.case.stdout != "file":
            if broken := self._unreadable([place / path for path in self.case.written()]):
                yield "half-written", broken
        else:
            may = [os.path.normpath(f"place/{path}") for path in self.case.leaves]
            results = [path for path in own if path not in may]
            if left := sorted(path for path in files if _inside(path, results) and not _inside(path, may)):
                yield "half-written", ", ".join(left[:4])
        if any(secret in _everything(self.folder, touched) for secret in self.case.secrets):
            yield "secrets", "a secret of the command line was printed or written"

    def _unreadable(self, paths: list[Path]) -> str:
        answer = self.folder / "record/unreadable"
        wait(forked(lambda: answer.write_text("; ".join(filter(None, map(_defect, paths))))), "reading the results")
        return answer.read_text()

    def _command(self) -> None:
        """In the fork: become the command. Does not return."""
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.chdir(self.folder / "place")
        _obey_permissions()
        self._environment()
        if self.case.alone:
            self._redirect()
            os.execv(sys.executable, [sys.executable, "-m", "trt_qat", *self.case.command])
        tempfile.tempdir = None
        _limits()
        self._redirect()
        _watch(self.folder / "record/events")
        sys.argv = ["trt-qat", *self.case.command]
        code = _run_main()
        with contextlib.suppress(BaseException):
            threading._shutdown()
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):
                stream.flush()
        os._exit(code)

    def _environment(self) -> None:
        os.environ.update(
            HOME=str(self.folder / "home"),
            TMPDIR=str(self.folder / "tmp"),
            PYTHONPATH=str(Path(__file__).resolve().parents[2]),
            XDG_CACHE_HOME=str(self.folder / "home/.cache"),
        )
        if self.case.alone:  # a fork has read these already
            for name in ("YOLO_CONFIG_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
                os.environ.pop(name, None)
        for name, value in (self.case.environment or {}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value.replace("{home}", str(self.folder / "home"))

    def _redirect(self) -> None:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        err = os.open(self.folder / "record/stderr", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(err, 2)
        if self.case.stdout == "closed":
            os.close(1)
        else:
            target = "/dev/full" if self.case.stdout == "full" else self.folder / "record/stdout"
            os.dup2(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)


def _processor_seconds(session: int) -> float:
    """User and system time so far of all processes of a session that live."""
    ticks = 0
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = file.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def forked(job: Callable[[], Any]) -> int:
    """Do something in a fork, which ends with 0, or 70 if the job raised; its process id."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        job()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(70)


def wait(pid: int, what: str) -> None:
    """Wait for a fork that may not fail."""
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise RuntimeError(f"{what} ended with {code}")


def snapshot(folder: Path) -> Snapshot:
    """Everything below a folder but ``record``: mode, size, time of change and inode."""
    found: Snapshot = {}
    waiting = [entry.path for entry in os.scandir(folder) if entry.name != "record"]
    while waiting:
        path = waiting.pop()
        status = os.lstat(path)
        is_folder = stat.S_ISDIR(status.st_mode)
        changed = (status.st_mode, 0, 0, 0) if is_folder else (
            status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino
        )  # fmt: skip
        name = os.path.relpath(path, folder)
        if name not in ("place", "home", "tmp"):
            found[name] = changed
        if is_folder and len(found) < 200_000:
            with contextlib.suppress(PermissionError):
                waiting += [entry.path for entry in os.scandir(path)]
    return found


def _run_main() -> int:
    """The exit code of the console script's function."""
    try:
        from trt_qat.__main__ import main

        main()
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            return (exc.code or 0) & 0xFF
        print(exc.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _limits() -> None:
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + _MEMORY, mapped + _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_PROCESSOR_SECONDS, _PROCESSOR_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _obey_permissions() -> None:
    """Make root an ordinary owner, whom a read-only folder stops: drop CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None)
    for capability in (1, 2):
        libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP: what is executed does not get it back
    head, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(head, sets) == 0:
        for index in range(3):  # effective, permitted, inheritable
            sets[index] &= ~0b110
        libc.capset(head, sets)


def _watch(record: Path) -> None:
    """Note every attempt to reach the network, to install something or to run a shell; refuse the network."""

    def note(event: str, arguments: Any) -> None:
        with record.open("a") as stream:
            stream.write(f"{event}: {str(arguments)[:200]}\n")

    def hook(event: str, arguments: Any) -> None:
        if event == "os.system":
            note(event, arguments)
        elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn"):
            if any(tool in str(arguments) for tool in ("pip", "'uv'", "apt", "curl", "wget", "touch")):
                note(event, arguments)
        elif event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
            if event == "socket.connect" and getattr(arguments[0], "family", None) == socket.AF_UNIX:
                return
            note(event, arguments)
            raise OSError("there is no network")

    sys.addaudithook(hook)


def _judged_end(case: Case, code: int, said: str, printed: str) -> Iterator[tuple[str, str]]:
    lines = said.splitlines()
    if code < 0:
        yield "crashes", f"killed by {signal.Signals(-code).name}"
        return
    errors = [line for line in lines if line.startswith("Error: ")]
    has_report = bool(printed.strip()) or case.stdout == "closed"  # there it goes nowhere
    if "Traceback (most recent" in said:
        yield "tracebacks", "a traceback"
    elif code not in (0, 1, 2, 3):
        yield "tracebacks", f"exit code {code}"
    elif code in (1, 2) and len(errors) != 1 and not (code == 1 and _is_report(case) and has_report):
        yield "tracebacks", f"exit code {code} with {len(errors)} 'Error: ' lines"
    elif code == 0 and errors:
        yield "tracebacks", "exit code 0 with an 'Error: ' line"
    noise = [line for line in lines if any(word in line for word in _NOISE) and not line.startswith(_OWN)]
    if noise:
        yield "noise", noise[0][:200]


def _is_report(case: Case) -> bool:
    """Whether exit code 1 can mean findings, which are printed and written."""
    return case.command[0] == "lint" or case.command[:2] == ("data", "validate")


def _defect(path: Path) -> str:
    """Why a result that was written cannot be read; empty if it can."""
    import cv2
    import onnx
    from safetensors import safe_open

    try:
        if path.is_dir():
            return "; ".join(filter(None, (_defect(file) for file in sorted(path.rglob("*")) if file.is_file())))
        if not path.is_file():
            return ""
    except OSError:  # no such name is possible
        return ""
    try:
        suffix = path.suffix.lower()
        if suffix == ".onnx":
            onnx.checker.check_model(onnx.load(path))
        elif suffix == ".safetensors":
            with safe_open(path, framework="np") as stream:
                list(stream.keys())
        elif suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        elif suffix in (".png", ".jpg", ".bmp", ".webp", ".tiff") and path.stat().st_size < 1 << 24:
            import numpy as np

            if cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR) is None:
                return f"{path.name} is not an image"
        elif suffix in (".mp4", ".avi", ".mkv"):
            capture = cv2.VideoCapture(str(path))
            if not capture.read()[0]:
                return f"{path.name} is not a video"
        elif path.stat().st_size == 0 and suffix in (".pt", ".plan", ".yaml", ".csv"):
            return f"{path.name} is empty"
    except Exception as exc:  # whatever a reader makes of a broken file
        return f"{path.name}: {type(exc).__name__}: {str(exc)[:100]}"
    return ""


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} in JSON")


def _is_temporary(path: str, after: Snapshot) -> bool:
    """Whether it is in a hidden folder, or is one: what an atomic writer leaves when it is not done."""
    parts = Path(path).parts
    folders = parts if path in after and stat.S_ISDIR(after[path][0]) else parts[:-1]
    return any(part.startswith(".") for part in folders)


def _inside(path: str, folders: list[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def _said(path: Path) -> str:
    return path.read_bytes()[-200_000:].decode("utf-8", "replace") if path.exists() else ""


def _everything(folder: Path, touched: set[str]) -> str:
    files = [folder / "record/stdout", folder / "record/stderr", *(folder / path for path in touched)]
    return "".join(_said(file) for file in files if file.is_file() and not file.is_symlink()) + "".join(touched)


def removed(folder: Path) -> None:
    """Delete a case's folder, read-only folders in it too."""
    for path in [entry for entry in folder.rglob("*") if entry.is_dir() and not entry.is_symlink()]:
        path.chmod(0o700)
    shutil.rmtree(folder, ignore_errors=True)
