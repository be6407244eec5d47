"""Meet every hostile input with its command and print the table: zeros everywhere, or exit code 1.

python tests/hostile/run.py [--only TEXT ...] [--fast] [--jobs N] [--keep FOLDER] [--json FILE] [--list]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process with idle threads cannot be forked safely
os.environ["OPENBLAS_NUM_THREADS"] = "1"
_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent), str(_HERE.parents[1])]


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose name begins with one of these texts")
    parser.add_argument("--fast", action="store_true", help="the short fixed set that `make test` runs")
    parser.add_argument("--names", type=Path, help="a file with a case's name on each line: only these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--keep", type=Path, help="folder for the cases' folders, which are else deleted")
    parser.add_argument("--json", type=Path, help="also write each case's verdict here")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that what runs is stopped
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))  # a TemporaryDirectory is deleted by the first fork that ends
    try:
        return _all(folder, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _all(folder: Path, given: argparse.Namespace) -> int:
    home = folder / "home"
    home.mkdir()
    # the loaded process reads these once, for all the forks
    os.environ.update(HOME=str(home), YOLO_CONFIG_DIR=str(home), MPLCONFIGDIR=str(home), XDG_CACHE_HOME=str(home))
    from corpus import all_cases
    from fast_set import FAST

    cases = all_cases()
    if given.fast:
        cases = [case for case in cases if case.name in FAST]
    if given.names:
        names = set(given.names.read_text().splitlines())
        cases = [case for case in cases if case.name in names]
    if given.only:
        cases = [case for case in cases if case.name.startswith(tuple(given.only))]
    if given.list:
        print("\n".join(case.name for case in cases))
        return 0
    return _met(cases, folder, given)


def _met(cases: Sequence, folder: Path, given: argparse.Namespace) -> int:
    from judge import forked, snapshot, wait
    from kit import PIECES, in_order

    with contextlib.redirect_stdout(io.StringIO()):  # Ultralytics says where its settings are
        _load()
    kit = folder / "kit"
    kit.mkdir()
    for piece in in_order({need for case in cases for need in case.needs}):
        wait(forked(lambda make=PIECES[piece]: _quietly(make, kit)), f"making {piece}")
    before, root = snapshot(folder / "home"), set(os.listdir("/"))
    verdicts = _run(cases, given.keep or folder / "cases", kit, given.jobs, bool(given.keep))
    strays = [f"/{name}" for name in sorted(set(os.listdir("/")) - root)]
    strays += [f"~/{name}" for name in sorted(snapshot(folder / "home").keys() - before.keys())]
    _print_table(verdicts)
    if strays:
        print(f"\nfiles in no case's folder: {', '.join(strays[:10])}")
    if given.json:
        given.json.write_text(json.dumps([_as_dict(verdict) for verdict in verdicts], indent=1) + "\n")
    return int(bool(strays) or any(verdict.findings for verdict in verdicts))


def _load() -> None:
    """Import everything once. Nothing is computed: threads would be started."""
    import modelopt.torch.quantization  # noqa: F401
    import onnx  # noqa: F401
    import onnxruntime  # noqa: F401
    import openvino  # noqa: F401
    import ultralytics.models.yolo.detect  # noqa: F401

    import trt_qat.cli
    import trt_qat.linter.report
    import trt_qat.pipeline
    import trt_qat.runtime.infer  # noqa: F401


def _quietly(make, kit: Path) -> None:
    """Make a piece of the kit; what it prints goes to a file beside it."""
    log = os.open(kit / f"{make.__name__}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    make(kit)


def _run(cases: Sequence, folder: Path, kit: Path, jobs: int, keep: bool) -> list:
    from judge import Running, Verdict, removed

    waiting, running, done = list(cases), [], {}
    random.Random(0).shuffle(waiting)  # the slow ones do not wait for the end
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                case = waiting.pop()
                try:
                    running.append(Running(case, folder / case.name.replace("/", "+").replace(" ", "_")[:120], kit))
                except RuntimeError as exc:  # a mistake of the corpus, which the other cases need not wait for
                    done[case.name] = Verdict(case, 70, 0.0, str(exc), {"tracebacks": "its files cannot be made"})
            time.sleep(0.01)
            for started in list(running):
                try:
                    verdict = started.finished()
                except Exception as exc:
                    verdict = Verdict(started.case, 70, 0.0, repr(exc), {"tracebacks": "it cannot be judged"})
                if verdict is None:
                    continue
                running.remove(started)
                done[verdict.case.name] = verdict
                _print_findings(verdict)
                if not keep:
                    removed(started.folder)
                if sys.stderr.isatty():
                    print(f"\r{len(done)} of {len(cases)}", end="", file=sys.stderr)
    finally:
        for started in running:
            started.stop()
    return [done[case.name] for case in cases]


def _print_findings(verdict) -> None:
    for kind, seen in verdict.findings.items():
        command = verdict.command[:400].encode("utf-8", "backslashreplace").decode()
        print(f"{kind}: {verdict.case.name}\n  {command}\n  {seen}\n  {verdict.last_line}\n", flush=True)


def _print_table(verdicts: Sequence) -> None:
    from judge import KINDS

    families = sorted({verdict.case.family for verdict in verdicts})
    header = ("family", "inputs", *KINDS)
    rows = []
    for family in (*families, "all"):
        chosen = [verdict for verdict in verdicts if family in ("all", verdict.case.family)]
        counts = Counter(kind for verdict in chosen for kind in verdict.findings)
        rows.append((family, str(len(chosen)), *(str(counts[kind]) for kind in KINDS)))
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, tuple("-" * width for width in widths), *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def _as_dict(verdict) -> dict:
    return {
        "name": verdict.case.name,
        "command": verdict.command,
        "exit_code": verdict.exit_code,
        "seconds": round(verdict.seconds, 2),
        "last_line": verdict.last_line,
        "findings": verdict.findings,
    }


if __name__ == "__main__":
    sys.exit(main())
