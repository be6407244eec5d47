"""PyTorch as a Runner: the float network or the fake-quantized one, to compare exported files with."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray

from trt_qat.checkpoint import Model
from trt_qat.metadata import NMS_FREE_KEY
from trt_qat.model.device import computing_on
from trt_qat.model.loading import is_end_to_end, raw_output


class TorchRunner:
    """A :class:`~trt_qat.runtime.runner.Runner` over a detector in memory.

    Args:
        threads: CPU threads, 0 for all cores.
        device: where the network is until this is closed, which brings it back; None leaves it where it lies.

    Attributes:
        network: the model's own, on the device.
    """

    name: str = "torch"
    parallel: int = 1
    largest_batch: int | None = None

    def __init__(self, model: Model, threads: int = 0, device: torch.device | None = None) -> None:
        torch.set_num_threads(threads or os.cpu_count() or 1)
        self.network = model.network.eval()
        self._moved = contextlib.ExitStack()
        if device is not None:
            self._moved.enter_context(computing_on(self.network, device))
        self.input_shape: tuple[int | None, ...] = (None, 3, *model.imgsz)
        self.metadata: Mapping[str, str] = {
            "names": str(dict(model.names)),
            "imgsz": str(list(model.imgsz)),
            "precision": "fp32" if model.quantized is None else "int8+fp32",
            NMS_FREE_KEY: str(is_end_to_end(self.network)),
        }
        self.device: str = str(next(self.network.parameters()).device)

    def infer(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """See :meth:`Runner.infer <trt_qat.runtime.runner.Runner.infer>`."""
        output = raw_output(self.network, torch.from_numpy(batch).to(self.device))
        return [output.cpu().numpy()]

    def __enter__(self) -> TorchRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The network belongs to the caller: it goes back to where it was."""
        self._moved.close()
