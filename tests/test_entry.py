"""What stands around every command: signals, streams that cannot be written, names that are not text."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAITS = """
import tempfile, time
from pathlib import Path
from trt_qat import entry

def command():
    with tempfile.TemporaryDirectory(dir="."):
        Path("started").touch()
        while True:
            try:
                time.sleep(0.02)
            except Exception:
                pass  # a library that goes on whatever happens

entry.run(command)
"""


def _run(script: str, folder: Path, **keys: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", f"from trt_qat import entry\n{script}"]
    found = subprocess.run(  # type: ignore[call-overload]
        command, cwd=folder, **{"capture_output": True, "text": True, "check": False, "timeout": 60, **keys}
    )
    assert isinstance(found, subprocess.CompletedProcess)
    return found


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "Interrupted.\n"),
        (signal.SIGTERM, 143, "Terminated.\n"),
        (signal.SIGHUP, 129, "Terminated: the terminal is gone.\n"),
    ],
)
def test_a_signal_cleans_up_says_one_line_and_has_its_code(
    number: signal.Signals, code: int, said: str, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WAITS],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # nohup and a shell's background ignore some
    ) as process:
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        process.send_signal(number)
        process.send_signal(number)  # an impatient user: cleaning up goes on
        try:
            assert process.communicate(timeout=30)[1] == said
        finally:
            process.kill()  # else leaving the block waits for one that heard nothing
    assert process.returncode == code
    assert [file.name for file in tmp_path.iterdir()] == ["started"]


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As under nohup."""
    script = "import os, signal\nentry.run(lambda: (os.kill(os.getpid(), signal.SIGHUP), print('done')))"
    done = _run(script, tmp_path, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_a_forked_worker_ends_as_if_nothing_was_installed(tmp_path: Path) -> None:
    script = """
import os, signal, time
def command():
    ready, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.write(tell, b"1")
        time.sleep(60)
    os.read(ready, 1)
    os.kill(worker, signal.SIGTERM)
    print(os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]))
entry.run(command)
"""
    done = _run(script, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{-signal.SIGTERM}\n", "")


@pytest.mark.parametrize(("code", "found"), [("0", 0), ("3", 3), ("None", 0)])
def test_exit_codes_go_through(code: str, found: int, tmp_path: Path) -> None:
    assert _run(f"import sys\nentry.run(lambda: sys.exit({code}))", tmp_path).returncode == found


@pytest.mark.parametrize(
    ("unbuffered", "said"),
    [
        ("", "Error: Standard output cannot be written: No space left on device. The files are.\n"),
        ("1", "Error: Output cannot be written: No space left on device.\n"),
    ],
)
def test_standard_output_that_is_full(unbuffered: str, said: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        keys = {"stdout": full, "stderr": subprocess.PIPE, "capture_output": False, "env": environment}
        done = _run("entry.run(lambda: print('result'))", tmp_path, **keys)
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_stream_takes_no_message_into_a_file(closed: tuple[int, ...], tmp_path: Path) -> None:
    script = """
import os
def command():
    with open("result", "w") as file:
        os.write(1, b"said by a library")
        os.write(2, b"said by a library")
        print("said by us")
        file.write("whole")
entry.run(command)
"""
    done = _run(script, tmp_path, capture_output=False, preexec_fn=lambda: [os.close(number) for number in closed])
    assert done.returncode == 0
    assert (tmp_path / "result").read_text() == "whole"


@pytest.mark.parametrize("locale", ["C.UTF-8", "C"])
def test_names_that_are_not_text_can_be_printed(locale: str, tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": locale, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "entry.run(lambda: print('bi\\u1ec3n', b'\\xff'.decode('utf-8', 'surrogateescape')))"
    done = _run(script, tmp_path, env=environment, text=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout in (b"bi\xe1\xbb\x83n \\udcff\n", b"bi\\u1ec3n \\udcff\n")


def test_libraries_write_into_a_folder_that_goes(tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    kept = {name: value for name, value in os.environ.items() if name != "YOLO_CONFIG_DIR"}
    script = """
import os
def command():
    with open(os.path.join(os.environ["YOLO_CONFIG_DIR"], "settings.json"), "w") as file:
        print(file.name)
entry.run(command)
"""
    done = _run(script, tmp_path, env={**kept, "TMPDIR": str(tmp_path / "temporary")})
    assert Path(done.stdout).parent.parent == tmp_path / "temporary"
    assert list((tmp_path / "temporary").iterdir()) == []
    done = _run(script, tmp_path, env={**kept, "YOLO_CONFIG_DIR": str(tmp_path)})
    assert Path(done.stdout.strip()) == tmp_path / "settings.json"
    assert (tmp_path / "settings.json").exists()


def test_a_failure_of_the_file_system_is_one_line(tmp_path: Path) -> None:
    done = _run("entry.run(lambda: open('/dev/full/x', 'w'))", tmp_path)
    assert (done.returncode, done.stderr) == (1, "Error: '/dev/full/x': Not a directory.\n")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    done = _run("entry.run(lambda: 1 / 0)", tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")
