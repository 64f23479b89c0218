"""Files of tensors and dictionaries: written with torch.save, read without executing anything."""

import gc
import io
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from common.files import open_regular, write_atomically

_NOT_PLAIN = (
    "is not a torch.save file, is damaged, or holds more than plain data (tensors, numbers, strings, lists, "
    "dictionaries); give one written by this project"
)
# First bytes of files of PyTorch before 1.6: magic number, version. Such files are read into memory as a whole.
_LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
_MOST_LEGACY_BYTES = 2**29
_MOST_DIMENSIONS = 64
# In a pickle; a run of numbers counts once. A checkpoint of 10,000 factors trained by Adam has 1.3e6, and 8e4 calls.
_MOST_OPCODES, _MOST_CALLS = 2 * 10**6, 10**5
# Numbers of one length in a row. A checkpoint of the original code has millions of them.
_NUMBERS = re.compile(rb"(?:G.{8}){1,1000}|(?:K.){1,1000}|(?:M..){1,1000}|(?:J.{4}){1,1000}", re.DOTALL)
_NUMBER_TYPES = {
    opcode: np.dtype([("opcode", "u1"), ("number", number)])
    for opcode, number in (
        (pickle.BINFLOAT, ">f8"),
        (pickle.BININT1, "u1"),
        (pickle.BININT2, "<u2"),
        (pickle.BININT, "<i4"),
    )
}
_ARGUMENT_BYTES = {
    **dict.fromkeys((pickle.PROTO, pickle.LONG1, pickle.BINPUT, pickle.BINGET), 1),
    **dict.fromkeys((pickle.BINUNICODE, pickle.LONG_BINPUT, pickle.LONG_BINGET), 4),
}
_CONSTANTS = {pickle.NONE: None, pickle.NEWTRUE: True, pickle.NEWFALSE: False}
_SHORT_TUPLES = {pickle.EMPTY_TUPLE: 0, pickle.TUPLE1: 1, pickle.TUPLE2: 2, pickle.TUPLE3: 3}


def tensor_bytes(content: Any) -> bytes:
    """Returns what torch.save writes for a tensor, or a dictionary of tensors, numbers, strings, lists and
    dictionaries.
    """
    buffer = io.BytesIO()  # torch would report a full disk with a RuntimeError of many lines
    torch.save(content, buffer)
    return buffer.getvalue()


def save_tensors(content: Any, path: Path, overwrite: bool = True) -> None:
    """Writes the `tensor_bytes` of `content` to a file, and waits for the disk."""
    write_atomically(path, tensor_bytes(content), overwrite)


def load_tensors(path: str | Path) -> Any:
    """Returns the content of a file written by torch.save, on the CPU: dense tensors of real numbers, floats, integers
    from -2**63 to 2**63 - 1, strings, booleans, None, types of tensors, lists, tuples and (ordered) dictionaries whose
    keys are strings or integers.

    Nothing in the file is executed, and the memory used is at most about 20 times the size of the file. Raises OSError,
    and ValueError if the file holds anything else.
    """
    collects = gc.isenabled()
    with open_regular(path) as file:
        try:
            gc.disable()  # it would look through all values again and again
            begin = file.read(len(_LEGACY))
            return _read_legacy(file) if begin == _LEGACY else _read_zip(file)
        except (OSError, MemoryError):
            raise
        except Exception:
            raise ValueError(_NOT_PLAIN) from None
        finally:
            if collects:
                gc.enable()


def load_dictionary(path: str | Path) -> dict:
    """Returns the dictionary in a file. Raises as `load_tensors` does, and ValueError for any other content."""
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; give a file that holds a dictionary")
    return content


def is_float_tensor(value: Any) -> bool:
    """Returns whether `value` is a tensor of real floating-point numbers."""
    return isinstance(value, Tensor) and value.is_floating_point()


def has_norm(tensor: Tensor) -> bool:
    """Returns whether float64 can hold the square of a tensor's Frobenius norm, and without loss of precision."""
    square = tensor.double().square().sum()
    return bool(square.isfinite() and (square >= torch.finfo(torch.float64).tiny or not tensor.any()))


def _require(holds: bool) -> None:
    if not holds:
        raise ValueError


def _read_zip(file: BinaryIO) -> Any:
    """Returns the content of a zip archive: a pickle, and the numbers of each storage, in uncompressed members."""
    with zipfile.ZipFile(file) as archive:
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        folder = pickled.removesuffix("data.pkl")

        # Members may overlap.
        _require(sum(member.file_size for member in archive.infolist()) <= os.fstat(file.fileno()).st_size)

        def read(name: str, num_bytes: int | None = None) -> bytes:
            member = archive.getinfo(folder + name)
            _require(member.compress_type == zipfile.ZIP_STORED and num_bytes in (None, member.file_size))
            return archive.read(member)

        def read_storage(key: str, dtype: torch.dtype, num: int) -> Tensor:
            return _from_bytes(read(f"data/{key}", num * dtype.itemsize), dtype)

        _require(f"{folder}byteorder" not in archive.NameToInfo or read("byteorder") == b"little")
        return _read_pickle(read("data.pkl"), 0, read_storage)[0]


def _read_legacy(file: BinaryIO) -> Any:
    """Returns the content of a file in the legacy format: pickles of the byte order, the content and the keys of the
    storages, then the length and the numbers of each storage.
    """
    data = file.read(_MOST_LEGACY_BYTES + 1)
    _require(len(data) <= _MOST_LEGACY_BYTES)
    storages: dict[str, Tensor] = {}
    num_bytes = 0

    def new_storage(key: str, dtype: torch.dtype, num: int) -> Tensor:
        nonlocal num_bytes
        num_bytes += num * dtype.itemsize
        _require(num >= 0 and num_bytes <= len(data))
        storages[key] = torch.empty(num, dtype=dtype)
        return storages[key]

    system, position = _read_pickle(data, 0, new_storage)
    content, position = _read_pickle(data, position, new_storage)
    keys, position = _read_pickle(data, position, new_storage)
    _require(system["little_endian"] is True and sorted(keys) == sorted(storages))
    for key in keys:
        begin, storage = position + 8, storages[key]
        position = begin + storage.nbytes
        storage.copy_(_from_bytes(data[begin:position], storage.dtype))
    return content


def _from_bytes(data: bytes, dtype: torch.dtype) -> Tensor:
    """Returns a tensor (n,) of the numbers in `data`."""
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _tensor(
    storage: Any, offset: int, shape: tuple, stride: tuple, grad: Any = None, hooks: Any = None, bits: Any = None
) -> Tensor:
    """Returns a tensor of numbers of a storage (n,). With `bits`, they would be negated or conjugated."""
    _require(isinstance(storage, Tensor) and len(shape) <= _MOST_DIMENSIONS and not bits)
    tensor = storage.as_strided(shape, stride, offset)
    _require(tensor.numel() <= storage.numel())  # those of an expanded tensor are more
    return tensor


# The names in pickles of tensors and ordered dictionaries, and what they stand for.
_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_NAMES: dict[bytes, Any] = {
    b"collections\nOrderedDict\n": lambda: OrderedDict(),  # without arguments
    b"torch\nSize\n": lambda size: size,
    b"torch._utils\n_rebuild_tensor\n": _tensor,
    b"torch._utils\n_rebuild_tensor_v2\n": _tensor,
    b"torch._utils\n_rebuild_parameter\n": lambda tensor, *_: tensor,
    **{f"torch\n{name}Storage\n".encode(): dtype for name, dtype in _DTYPES.items()},
    **{f"{dtype}\n".replace(".", "\n").encode(): dtype for dtype in _DTYPES.values()},
}
_NAME = re.compile(rb"[^\n]*\n[^\n]*\n")


def _read_pickle(
    data: bytes, position: int, read_storage: Callable[[str, torch.dtype, int], Tensor]
) -> tuple[Any, int]:
    """Returns the value of the pickle at `position` in `data`, and the position of its end. Understands what torch.save
    writes for plain data, in protocol 2, and raises an exception at anything else.

    `read_storage` returns the tensor (n,) with a key, a dtype and n numbers.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    storages: dict[str, Tensor] = {}
    num_calls = 0

    def pop(begin: int) -> list[Any]:
        values = stack[begin:]
        del stack[begin:]
        return values

    for _ in range(_MOST_OPCODES):
        opcode = data[position : position + 1]
        if opcode in _NUMBER_TYPES:
            numbers = _NUMBERS.match(data, position)
            stack += np.frombuffer(numbers[0], _NUMBER_TYPES[opcode])["number"].tolist()
            position = numbers.end()
            continue
        begin = position + 1
        position = begin + _ARGUMENT_BYTES.get(opcode, 0)
        argument = int.from_bytes(data[begin:position], "little")
        match opcode:
            case pickle.PROTO:
                _require(argument == 2)
            case pickle.STOP:
                return stack.pop(), position
            case pickle.NONE | pickle.NEWTRUE | pickle.NEWFALSE:
                stack.append(_CONSTANTS[opcode])
            case pickle.LONG1:
                _require(argument <= 8)  # so that few keys of a dictionary have the same hash
                stack.append(int.from_bytes(data[position : position + argument], "little", signed=True))
                position += argument
            case pickle.BINUNICODE:
                stack.append(data[position : position + argument].decode("utf-8", "surrogatepass"))
                position += argument
            case pickle.BINPUT | pickle.LONG_BINPUT:
                memo[argument] = stack[-1]
            case pickle.BINGET | pickle.LONG_BINGET:
                stack.append(memo[argument])
            case pickle.MARK:
                marks.append(len(stack))
            case pickle.TUPLE:
                stack.append(tuple(pop(marks.pop())))
            case pickle.EMPTY_TUPLE | pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                stack.append(tuple(pop(len(stack) - _SHORT_TUPLES[opcode])))
            case pickle.EMPTY_LIST:
                stack.append([])
            case pickle.APPEND | pickle.APPENDS:
                values = pop(marks.pop() if opcode == pickle.APPENDS else len(stack) - 1)
                _require(type(stack[-1]) is list)
                stack[-1].extend(values)
            case pickle.EMPTY_DICT:
                stack.append({})
            case pickle.SETITEM | pickle.SETITEMS:
                values = pop(marks.pop() if opcode == pickle.SETITEMS else len(stack) - 2)
                _require(isinstance(stack[-1], dict) and {str, int}.issuperset(map(type, values[::2])))
                stack[-1].update(zip(values[::2], values[1::2], strict=True))
            case pickle.GLOBAL:
                name = _NAME.match(data, position)
                stack.append(_NAMES[name[0]])
                position = name.end()
            case pickle.REDUCE:
                function, arguments = pop(len(stack) - 2)
                num_calls += 1
                _require(num_calls <= _MOST_CALLS and type(arguments) is tuple)
                stack.append(function(*arguments))
            case pickle.BUILD:
                stack.pop()  # the attributes of an ordered dictionary, which nothing uses
            case pickle.BINPERSID:
                _, dtype, key, _, num, *view = stack.pop()
                _require(isinstance(dtype, torch.dtype) and type(key) is str and view in ([], [None]))
                if key not in storages:
                    storages[key] = read_storage(key, dtype, num)
                _require(storages[key].dtype == dtype and len(storages[key]) == num)
                stack.append(storages[key])
            case _:
                raise ValueError(f"has the opcode {opcode!r}")
    raise ValueError(f"has more than {_MOST_OPCODES} opcodes")
