"""A ``*.pt`` read as data: a zip archive of tensors beside a pickle that says how objects hold them.

A pickle is a program for a small stack machine, and unpickling imports what it names and calls it. The machine here
imports nothing and calls nothing: what the pickle would make becomes an :class:`Instance` that notes the name of the
class, its arguments and its state. A name outside of what Ultralytics' detection checkpoints hold is refused, so that
nobody takes a file for an ordinary one that is none.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trt_qat.errors import ArtifactError
from trt_qat.limits import PARAMETERS, PICKLE_MEGABYTES, WEIGHTS_MEGABYTES
from trt_qat.reading import regular_file, shortened

_REBUILD_TENSOR: Final = "torch._utils._rebuild_tensor_v2"
_REBUILD_PARAMETER: Final = frozenset({"torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state"})
_DTYPES: Final = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_CLASS_MODULES: Final = (
    *("torch.nn.modules.", "ultralytics.nn.modules."),
    *("ultralytics.utils.loss.", "ultralytics.utils.tal."),
)
_PATHS: Final = tuple(f"{kind}Path" for kind in ("Posix", "Windows", "PurePosix", "PureWindows"))
_GETATTR: Final = frozenset({"builtins.getattr", "__builtin__.getattr"})  # how a bound method is pickled
_METHODS: Final = frozenset({"forward", "forward_fuse"})
_KNOWN: Final = frozenset(
    {
        _REBUILD_TENSOR,
        *_REBUILD_PARAMETER,
        *_DTYPES,
        *(f"torch.{name}" for name in ("Size", "device", "float16", "float32", "float64", "bfloat16")),
        "torch.torch_version.TorchVersion",
        "ultralytics.nn.modules.head.v10Detect",  # the one class whose name begins with a small letter
        *("builtins.set", "__builtin__.set", "collections.OrderedDict", "collections.defaultdict", "builtins.dict"),
        *("ultralytics.utils.IterableSimpleNamespace", "ultralytics.yolo.utils.IterableSimpleNamespace"),
        *("types.SimpleNamespace", "argparse.Namespace", "_codecs.encode"),
        *(f"{module}.{name}" for module in ("pathlib", "pathlib._local") for name in _PATHS),
        *("numpy.dtype", "numpy.ndarray"),
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        *("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"),
    }
)
_MOST_VALUES = 100_000  # of an architecture or of class names, once what they repeat is written out
_DEEPEST = 20


@dataclass(frozen=True)
class Name:
    """A class or function that the pickle names; it is not imported."""

    full: str


@dataclass
class Instance:
    """What the pickle would make by calling ``name`` with ``arguments``.

    Args:
        state: what it would hold afterwards; an empty dictionary if the pickle does not say.
    """

    name: str
    arguments: tuple[Any, ...] = ()
    state: Any = field(default_factory=dict)

    @property
    def class_name(self) -> str:
        """The last part of the name."""
        return self.name.rpartition(".")[2]


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    numel: int


@dataclass(frozen=True)
class TorchFile:
    """An open ``*.pt``.

    Args:
        content: its top level.
    """

    content: Any
    path: Path
    _archive: zipfile.ZipFile
    _folder: str
    _bytes: dict[str, bytearray] = field(default_factory=dict)

    def tensors(self, stored: dict[str, Any]) -> dict[str, Tensor]:
        """Read tensors, each into its own memory.

        Args:
            stored: the pickle's tensors and parameters by name.

        Raises:
            ArtifactError: one is something else, does not fit its storage, or all of them exceed the limit.
        """
        views = {name: self._view(value, name) for name, value in stored.items()}
        total = sum(math.prod(size) for _, _, size, _ in views.values())
        PARAMETERS.check(total, f"'{self.path}'", ArtifactError)
        with _damage_named(self.path):
            return {name: self._read(*view) for name, view in views.items()}

    def _view(self, value: Any, name: str) -> tuple[_Storage, int, tuple[int, ...], tuple[int, ...]]:
        """Storage, offset, size and stride of a tensor, checked against the file."""
        if isinstance(value, Instance) and value.name in _REBUILD_PARAMETER and value.arguments:
            value = value.arguments[0]
        if not (isinstance(value, Instance) and value.name == _REBUILD_TENSOR and len(value.arguments) >= 4):
            raise ArtifactError(f"'{self.path}': '{name}' is not a plain tensor.")
        storage, offset, size, stride = value.arguments[:4]
        if isinstance(size, Instance) and size.name == "torch.Size":
            size = size.arguments[0] if size.arguments else ()
        shapes = (size, stride)
        if not (
            isinstance(storage, _Storage)
            and all(isinstance(shape, tuple) and len(shape) <= 8 for shape in shapes)
            and len(size) == len(stride)
            and all(type(number) is int and 0 <= number < 2**40 for number in (offset, *size, *stride))
        ):
            raise ArtifactError(f"'{self.path}': tensor '{name}' has no valid shape.")
        numel = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if numel else 0
        if numel > storage.numel or last >= max(storage.numel, 1):
            raise ArtifactError(
                f"'{self.path}': tensor '{name}' of shape {list(size)} does not fit its {storage.numel} stored values."
            )
        return storage, offset, size, stride

    def _read(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        if math.prod(size) == 0:
            return torch.zeros(size, dtype=storage.dtype)
        if storage.key not in self._bytes:
            self._bytes[storage.key] = bytearray(self._archive.read(self._entry(storage)))
        flat = torch.frombuffer(self._bytes[storage.key], dtype=storage.dtype)
        return flat.as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)

    def _entry(self, storage: _Storage) -> zipfile.ZipInfo:
        try:
            entry = self._archive.getinfo(f"{self._folder}/data/{storage.key}")
        except KeyError as exc:
            raise ArtifactError(f"'{self.path}' is damaged: it lacks the values 'data/{storage.key}'.") from exc
        if entry.file_size != storage.numel * storage.dtype.itemsize:
            raise ArtifactError(f"'{self.path}' is damaged: 'data/{storage.key}' has {entry.file_size} bytes.")
        return entry


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Within: the file's content as data.

    Raises:
        ArtifactError: missing, not a file of torch.save, damaged, too large, or it names something else than a
            detection checkpoint holds; the message lists it.
    """
    regular_file(path, "Weights file")
    WEIGHTS_MEGABYTES.check(path.stat().st_size / 1e6, f"Weights file '{path}'", ArtifactError)
    if not zipfile.is_zipfile(path):
        raise ArtifactError(
            f"'{path}' is not a PyTorch checkpoint (or it is truncated). "
            "Give an Ultralytics .pt, an architecture .yaml or a trt_qat .safetensors."
        )
    with _damage_named(path):
        archive = zipfile.ZipFile(path)
    with archive:
        folder = _folder(archive, path)
        content = _Machine(path).run(_part(archive, archive.getinfo(f"{folder}/data.pkl"), path))
        yield TorchFile(content, path, archive, folder)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Within: zipfile and PyTorch read what may be damaged, for which neither has one exception."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, OverflowError, struct.error) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ArtifactError(f"'{path}' is damaged or truncated: {reason}.") from exc


def _part(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> bytes:
    with _damage_named(path):
        return archive.read(entry)


def _folder(archive: zipfile.ZipFile, path: Path) -> str:
    """The one folder in which torch.save puts everything.

    Raises:
        ArtifactError: there is none, or the archive would unpack to more than it is.
    """
    entries = archive.infolist()
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise ArtifactError(f"'{path}' is a TorchScript program. Give the Ultralytics checkpoint it was made of.")
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
        raise ArtifactError(f"'{path}' is not an Ultralytics checkpoint: torch.save neither packs nor encrypts.")
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ArtifactError(f"'{path}' is damaged: its parts are larger than the file.")
    found = [entry for entry in entries if entry.filename.count("/") == 1 and entry.filename.endswith("/data.pkl")]
    if len(found) != 1 or len({entry.filename for entry in entries}) != len(entries):
        raise ArtifactError(f"'{path}' is not an Ultralytics checkpoint: {len(found)} data.pkl in it, needs one.")
    folder = found[0].filename.partition("/")[0]
    PICKLE_MEGABYTES.check(found[0].file_size / 1e6, f"'{path}'", ArtifactError)
    order = f"{folder}/byteorder"
    named = [entry for entry in entries if entry.filename == order]
    if named and _part(archive, named[0], path) != b"little":
        raise ArtifactError(f"'{path}' was written on a big-endian machine, which trt_qat does not read.")
    return folder


class _Machine:
    """Runs a pickle without importing or calling anything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._refused: dict[str, None] = {}

    def run(self, program: bytes) -> Any:
        """What the program leaves.

        Raises:
            ArtifactError: it is none, or names what a detection checkpoint does not hold.
        """
        try:
            for operation, argument, _ in pickletools.genops(io.BytesIO(program)):
                step = _STEPS.get(operation.name)
                if step is None:
                    raise ValueError(f"pickle operation {operation.name}")
                step(self, argument)
            content = self._stack.pop()
        except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as exc:
            self._check_names()
            reason = f"{type(exc).__name__}: {' '.join(str(exc).split())[:100]}"
            raise ArtifactError(f"'{self._path}' is not an Ultralytics checkpoint: {reason}.") from exc
        self._check_names()
        return content

    def _check_names(self) -> None:
        if self._refused:
            names = list(self._refused)
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            raise ArtifactError(
                f"'{self._path}' asks for more than a detection checkpoint needs, and loading it could run any code: "
                f"{', '.join(shortened(name).strip(chr(39)) for name in names[:20])}{more}. "
                "Nothing of it was run. If you trust who made it, add --trust-pickle (trust_pickle=True)."
            )

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _put(self, key: int | None) -> None:
        self._memo[len(self._memo) if key is None else key] = self._stack[-1]

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _global(self, argument: str) -> None:
        self._name(argument.replace(" ", ".", 1))

    def _stack_global(self, _: Any) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(name, str) and isinstance(module, str)):
            raise ValueError("a name that is no text")
        self._name(f"{module}.{name}")

    def _name(self, full: str) -> None:
        if not (_is_known(full) or full in _GETATTR):
            self._refused[full] = None
        self._stack.append(Name(full))

    def _call(self, arguments: Any, callee: Any) -> None:
        if not (isinstance(callee, Name) and isinstance(arguments, tuple)):
            raise ValueError("a call of something that is no name")
        if callee.full in _GETATTR and not (isinstance(arguments[0], Instance) and arguments[1] in _METHODS):
            self._refused[callee.full] = None
        self._stack.append({} if callee.full == "collections.OrderedDict" else Instance(callee.full, arguments))

    def _reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        self._call(arguments, self._stack.pop())

    def _new_with_keywords(self, _: Any) -> None:
        self._stack.pop()
        self._reduce(None)

    def _instance(self, argument: str) -> None:
        arguments = tuple(self._marked())
        self._global(argument)
        self._call(arguments, self._stack.pop())

    def _object(self, _: Any) -> None:
        callee, *arguments = self._marked()
        self._call(tuple(arguments), callee)

    def _build(self, _: Any) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if isinstance(target, Instance):
            target.state = state

    def _persistent(self, _: Any) -> None:
        kind, dtype, key, _, numel = self._stack.pop()
        valid = isinstance(dtype, Name) and isinstance(key, str) and type(numel) is int and numel >= 0
        if kind != "storage" or not valid:
            raise ValueError("a storage that is none")
        if dtype.full not in _DTYPES:
            raise ValueError(f"values of type {shortened(dtype.full)}")
        self._stack.append(_Storage(_DTYPES[dtype.full], key, numel))

    def _tuple(self, length: int) -> None:
        items = tuple(self._stack[len(self._stack) - length :])
        if len(items) != length:
            raise IndexError("the stack is too short")
        del self._stack[len(self._stack) - length :]
        self._stack.append(items)

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):  # a key of another kind is of nothing that is asked for, and hashing it may crash
            target.update({k: v for k, v in zip(items[::2], items[1::2], strict=True) if isinstance(k, str | int)})


_LITERALS = (
    *("BINBYTES", "BINBYTES8", "BINFLOAT", "BININT", "BININT1", "BININT2", "BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
    *("FLOAT", "INT", "LONG", "LONG1", "LONG4", "SHORT_BINBYTES", "SHORT_BINUNICODE", "UNICODE"),
    *("BINSTRING", "SHORT_BINSTRING", "STRING"),
)
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(_LITERALS, lambda machine, value: machine._stack.append(value)),
    **dict.fromkeys(("BINPUT", "LONG_BINPUT", "MEMOIZE", "PUT"), _Machine._put),
    **dict.fromkeys(("BINGET", "GET", "LONG_BINGET"), lambda machine, key: machine._stack.append(machine._memo[key])),
    "NONE": lambda machine, _: machine._stack.append(None),
    "NEWTRUE": lambda machine, _: machine._stack.append(True),
    "NEWFALSE": lambda machine, _: machine._stack.append(False),
    "EMPTY_LIST": lambda machine, _: machine._stack.append([]),
    "EMPTY_SET": lambda machine, _: machine._stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine._stack.append({}),
    "EMPTY_TUPLE": lambda machine, _: machine._stack.append(()),
    "MARK": _Machine._mark,
    "POP": lambda machine, _: machine._stack.pop(),
    "POP_MARK": lambda machine, _: machine._marked(),
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "REDUCE": _Machine._reduce,
    "NEWOBJ": _Machine._reduce,
    "NEWOBJ_EX": _Machine._new_with_keywords,
    "INST": _Machine._instance,
    "OBJ": _Machine._object,
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "TUPLE": lambda machine, _: machine._stack.append(tuple(machine._marked())),
    "TUPLE1": lambda machine, _: machine._tuple(1),
    "TUPLE2": lambda machine, _: machine._tuple(2),
    "TUPLE3": lambda machine, _: machine._tuple(3),
    "LIST": lambda machine, _: machine._stack.append(machine._marked()),
    "APPEND": lambda machine, _: machine._append([machine._stack.pop()]),
    "APPENDS": lambda machine, _: machine._append(machine._marked()),
    "ADDITEMS": lambda machine, _: machine._append(machine._marked()),
    "SETITEM": lambda machine, _: machine._set_items([machine._stack.pop(-2), machine._stack.pop()]),
    "SETITEMS": lambda machine, _: machine._set_items(machine._marked()),
}


def _is_known(full: str) -> bool:
    if full in _KNOWN:
        return True
    name = full.rpartition(".")[2]
    is_name = full.isascii() and full.replace(".", "").replace("_", "").isalnum() and "__" not in full
    is_class = is_name and (name[:1].isupper() or name.endswith("Loss"))
    is_model = full == f"ultralytics.nn.tasks.{name}" and name.endswith("Model")
    return is_class and (is_model or full.startswith(_CLASS_MODULES))


def plain(value: Any, what: str) -> Any:
    """A copy of plain values: nothing in it is shared, so it is as large as it looks.

    Raises:
        ArtifactError: it holds something else, too much, or itself.
    """
    return _plain(value, what, [0], 0)


def _plain(value: Any, what: str, count: list[int], depth: int) -> Any:
    count[0] += 1
    if count[0] > _MOST_VALUES or depth > _DEEPEST:
        raise ArtifactError(f"{what} holds more than {_MOST_VALUES:,} values, or {_DEEPEST} levels of them.")
    if isinstance(value, Instance) and value.class_name in _PATHS:
        return "/".join(str(part) for part in value.arguments if isinstance(part, str))
    if isinstance(value, dict):
        return {key: _plain(part, what, count, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part, what, count, depth + 1) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ArtifactError(f"{what} holds a {value.class_name if isinstance(value, Instance) else type(value).__name__}.")
