"""Where PyTorch computes: one setting, ``model.device``, which every verb resolves here.

Models lie on the CPU between the verbs. A verb that computes moves the network to the device and back again, so that
what is saved, traced or exported afterwards never depends on where the verb before it ran.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from trt_qat import distributed
from trt_qat.errors import ConfigError

CPU = torch.device("cpu")


def torch_device(wanted: str = "auto") -> torch.device:
    """The device that a setting means here, a GPU with its number.

    Args:
        wanted: ``auto`` (this process's GPU where there is one, else the CPU), ``cpu``, ``cuda`` (this process's GPU)
            or ``cuda:N`` (that one). The processes of one torchrun job each have the GPU of their own number.

    Raises:
        ConfigError: it is not here; the line names what is.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not count):
        return CPU
    kind, _, index = wanted.partition(":")
    if kind not in ("auto", "cuda") or not (index or "0").isdecimal():
        raise ConfigError(f"model.device = '{wanted}' must be auto, cpu, cuda or cuda:N with the number of a GPU.")
    if index and distributed.world_size() > 1:
        raise ConfigError(
            f"model.device = '{wanted}' is one GPU for {distributed.world_size()} processes. Set it to cuda: each "
            "takes the GPU of its own number; CUDA_VISIBLE_DEVICES says which those are."
        )
    number = int(index) if index else distributed.local_rank()
    if number >= count:
        raise ConfigError(f"model.device = '{wanted}': {_missing(number, count)} Set model.device=cpu or auto.")
    return torch.device("cuda", number)


@contextmanager
def computing_on(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Within: the network lies on ``device``. Afterwards it is where it was."""
    before = next(network.parameters()).device
    network.to(device)
    try:
        yield
    finally:
        network.to(before)


def _missing(number: int, count: int) -> str:
    """Why there is no GPU of this number, and what there is."""
    if torch.version.cuda is None:
        return f"this PyTorch ({torch.__version__}) is built without CUDA and has cpu alone."
    if not count:
        return f"PyTorch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU here, only cpu."
    names = ", ".join(f"cuda:{index} ({torch.cuda.get_device_name(index)})" for index in range(count))
    return f"there is no cuda:{number}, only cpu, {names}."
