"""A CUDA device that is not there: tensors without values on ``cuda:0``, and an error where one meets a CPU tensor.

PyTorch's FakeTensorMode computes shapes, types and devices of every operator and no values. What Python asks for all
the same gets a stand-in: a number is 1, a mask has one true entry, an array is all ones. So the lines of a GPU run are
passed once, with their devices checked; whether the numbers are right, the tests on the CPU and tests/gpu say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

CUDA = torch.device("cuda", 0)
aten = torch.ops.aten
# values are positive and finite: what asks otherwise, and of which any is asked, is answered no; a place is the first
_ZEROS = {aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.isnan.default, aten.isinf.default, aten.argmax.default}
_SOME = {aten.any.default, aten.any.dim}


class _NoDriver(FakeTensorMode):
    """Asks no driver for anything, although ``torch.cuda.is_available`` says yes within :func:`fake_cuda`."""

    avoid_device_init = True  # type: ignore[assignment]


class _StandIns(TorchDispatchMode):
    """Answers what depends on values, for which FakeTensorMode has none."""

    def __init__(self) -> None:
        super().__init__()
        self._zeros = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default and getattr(args[0], "constant", None) is None:
            kind = args[0].dtype
            number: float = int(args[0] not in self._zeros)
            return bool(number) if kind == torch.bool else float(number) if kind.is_floating_point else number
        if func in _ZEROS or (func in _SOME and args[0] in self._zeros):
            answer = func(*args, **kwargs)
            self._zeros[answer] = True
            return answer
        if func is aten.equal.default:
            args[0] + args[1]  # both on one device
            return True
        if func is aten.nonzero.default:
            return args[0].new_zeros((1, args[0].dim()), dtype=torch.int64)
        if func is aten.bincount.default:
            return args[0].new_zeros(args[2] if len(args) > 2 else kwargs.get("minlength", 1), dtype=torch.int64)
        if func is aten._unique2.default:
            one = args[0].new_zeros(1), args[0].new_zeros(args[0].shape, dtype=torch.int64)
            return *one, args[0].new_zeros(1, dtype=torch.int64)
        if func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default):
            places = [_places(index) for index in args[1]]
            args = (args[0], [place for some in places for place in some], *args[2:])
        return func(*args, **kwargs)


def _places(index: Tensor | None) -> list[Tensor | None]:
    """A mask as the indices of its true entries, which are one."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    return [index.new_zeros(1, dtype=torch.int64) for _ in range(index.dim())]


@contextmanager
def fake_cuda() -> Iterator[FakeTensorMode]:
    """Within: ``cuda:0`` is there, for tensors without values."""
    mode = _NoDriver(allow_non_fake_inputs=True)
    with mode, _StandIns(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        patch.setattr(torch.cuda, "get_device_name", lambda device=None: "fake")
        patch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr(torch.Tensor, "numpy", _numpy)
        patch.setattr(torch.Tensor, "__deepcopy__", _deepcopy)
        patch.setattr(nn.Module, "_apply", _apply)
        yield mode


def backward(loss: Tensor) -> None:
    """What ``loss.backward()`` does, whose own engine wants a CUDA driver: each node's formula, latest first.

    Raises:
        RuntimeError: a gradient has another device than what it is of, which the engine refuses too.
    """
    with torch.no_grad():
        _backward(loss)


def _backward(loss: Tensor) -> None:
    order: list[Node] = []
    seen: set[Node] = set()
    waiting: list[tuple[Node, bool]] = [(loss.grad_fn, False)] if loss.grad_fn else []
    while waiting:
        node, done = waiting.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            waiting.append((node, True))
            waiting += [(following, False) for following, _ in node.next_functions if following is not None]
    given: dict[Node, dict[int, Tensor]] = {order[-1]: {0: torch.ones_like(loss)}}
    for node in reversed(order):
        gradients = given.pop(node, {})
        if hasattr(node, "variable"):
            _accumulate(node.variable, gradients[0])
            continue
        inputs = [gradients.get(index) for index in range(len(node._input_metadata))]
        apply = node.apply if hasattr(node, "apply") else node
        results = apply(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        for (following, index), result in zip(node.next_functions, results, strict=False):
            if following is not None and result is not None:
                wanted = following._input_metadata[index]
                if result.device != wanted.device:
                    raise RuntimeError(f"{node.name()}: a gradient on {result.device} of a tensor on {wanted.device}")
                held = given.setdefault(following, {})
                result = result.sum_to_size(wanted.shape).to(wanted.dtype)
                held[index] = held[index] + result if index in held else result


def _accumulate(leaf: Tensor, gradient: Tensor) -> None:
    leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


def _apply(module: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``Module.to`` and its like with new parameters: those of FakeTensorMode cannot be changed in place."""
    for child in module.children() if recurse else ():
        child._apply(fn)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                moved = fn(parameter)
            if moved is not parameter:
                module._parameters[name] = nn.Parameter(moved, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else fn(buffer)
    return module


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    """Without the storage, which a tensor without values has not."""
    if id(tensor) not in memo:
        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
    copied: Tensor = memo[id(tensor)]
    return copied


def _numpy(tensor: Tensor, *, force: bool = False) -> Any:
    if not isinstance(tensor, FakeTensor):
        return _REAL_NUMPY(tensor, force=force)
    if tensor.device.type != "cpu":
        raise TypeError(f"can't convert {tensor.device} tensor to numpy")
    return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


_REAL_NUMPY = torch.Tensor.numpy


def devices(network: nn.Module) -> set[torch.device]:
    """Where its parameters and buffers lie."""
    return {tensor.device for tensor in (*network.parameters(), *network.buffers())}
