"""Without torchrun nothing happens; with real processes they agree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from trt_qat import distributed

TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "LOCAL_WORLD_SIZE": "1",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "0",
}
WORKER = """
import sys
import torch
from trt_qat import distributed
with distributed.process_group():
    rank = distributed.rank()
    assert distributed.world_size() == distributed.local_world_size() == 2
    assert distributed.local_rank() == rank
    assert distributed.is_main() == (rank == 0)
    mine = torch.tensor([rank, 10.0 - rank])
    assert distributed.all_sum(mine).tolist() == [1.0, 19.0]
    assert distributed.all_max(mine).tolist() == [1.0, 10.0]
    assert mine.tolist() == [rank, 10.0 - rank]
    assert distributed.broadcast({"from": rank}) == {"from": 0}
    distributed.barrier()
assert distributed.world_size() == 1
print("done", flush=True)
"""


def test_one_process_without_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    with distributed.process_group():
        assert not torch.distributed.is_initialized()
        assert (distributed.rank(), distributed.world_size(), distributed.local_rank()) == (0, 1, 0)
        assert distributed.local_world_size() == 1
        assert distributed.is_main()
        distributed.barrier()
        tensor = torch.ones(2)
        assert distributed.all_sum(tensor) is tensor
        assert distributed.all_max(tensor) is tensor
        assert distributed.broadcast("a") == "a"


def test_environment_without_a_group_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library user under torchrun who made no group does all the work in each process."""
    for name, value in {**TORCHRUN, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.world_size(), distributed.local_world_size()) == (0, 1, 1)


def test_group_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)

    def fail_inside() -> None:
        with distributed.process_group():
            assert torch.distributed.is_initialized()
            with distributed.process_group():  # an inner one changes nothing
                pass
            assert torch.distributed.is_initialized()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert not torch.distributed.is_initialized()


def test_command_line_loads_no_torch() -> None:
    code = "import sys, trt_qat.cli, trt_qat.distributed as d; assert d.is_main(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_two_processes_agree(tmp_path: Path) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*torchrun, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done") == 2
