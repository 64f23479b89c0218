"""Files of tensors and dictionaries, written with torch.save and read back without executing anything."""

import io
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.cli import flag_error
from common.files import write_atomically

# What torch.load(weights_only=True) may be told to call, beside what tensors and ordered dictionaries take. Some of it
# allocates as much memory as the file says; nothing of it is in files that are written here or by the original code.
_MORE_THAN_DATA = re.compile(
    rb"c(?:__builtin__|builtins|_codecs|torch\.storage|torch\.nn\.parameter|torch\._tensor|torch\.serialization)\n"
    rb"|ctorch(?:\.\w+)*\n\w*Tensor\n"
    rb"|ctorch\._utils\n(?!_rebuild_tensor(?:_v2)?\n|_rebuild_parameter\n)"
)


_OF_TENSOR = re.compile(r"[^/]+/data/\d+")


class NotPlainData(Exception):
    """A file is damaged or holds more than plain data; the message says what is wrong with it."""


def save_tensors(content: dict | torch.Tensor, path: Path, overwrite: bool = True) -> None:
    """Writes a tensor, or a dictionary of tensors, numbers, strings, lists and dictionaries, with torch.save."""
    # Where torch writes by itself, a full disk is a RuntimeError of many lines.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, lambda temporary: temporary.write_bytes(buffer.getbuffer()), overwrite)


def load_plain(path: str | Path) -> Any:
    """What torch.save wrote, on the CPU: tensors with all of their numbers, numbers, strings, booleans, None, lists,
    tuples and (ordered) dictionaries. Nothing in the file is executed, and no more memory taken than it has bytes for.

    Raises NotPlainData where it holds anything else, and OSError.
    """
    with open(path, "rb") as file:
        _check_before_reading(file)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception:
            # What torch says of such a file is long, and includes how to execute it.
            raise NotPlainData(
                "is no torch.save file, or holds more than plain data (tensors, numbers, strings, lists, dictionaries)"
            ) from None
    _check_plain(content)
    return content


def load_dictionary(path: str | Path, flag: str) -> dict:
    """A dictionary of plain data (see `load_plain`). Raises UserError, naming `flag`, where the file is something else
    or cannot be read.
    """
    try:
        content = load_plain(path)
    except OSError as error:
        raise flag_error(flag, str(path), f"cannot be read: {error.strerror}; give a readable file") from None
    except ValueError as error:
        raise flag_error(flag, repr(path)[:200], f"cannot be read: {error}; give a readable file") from None
    except NotPlainData as error:
        raise flag_error(flag, str(path), f"{error}; give one written by this project") from None
    if not isinstance(content, dict):
        raise flag_error(flag, str(path), f"holds a {type(content).__name__}; give a file that holds a dictionary")
    return content


def is_plain_tensor(value: Any) -> bool:
    """Whether it is a tensor of real floating-point numbers that can be computed with."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return isinstance(value, torch.Tensor) and value.dtype in floats


def _check_before_reading(file: BinaryIO) -> None:
    """Raises NotPlainData where reading might take more memory than the file has bytes for."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    try:
        # As torch tells them apart. The others are of the original code with an old PyTorch, perhaps.
        if file.read(4) != b"PK\x03\x04":
            file.seek(0)
            _check_pickle(file.read())
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
            if not stored or sum(member.file_size for member in members) > size:
                raise NotPlainData("is compressed or damaged")
            for member in members:
                # Whatever torch may take for the pickle, in whatever case its name is written.
                if not _OF_TENSOR.fullmatch(member.filename):
                    _check_pickle(archive.read(member))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError, OverflowError):
        raise NotPlainData("is damaged") from None


def _check_pickle(content: bytes) -> None:
    if _MORE_THAN_DATA.search(content):
        raise NotPlainData("holds more than plain data (tensors, numbers, strings, lists, dictionaries)")


def _check_plain(content: Any) -> None:
    """Raises NotPlainData. Looks at everything once, however often it is referred to."""
    seen, waiting = set(), [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (str, int, float, type(None))) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
                raise NotPlainData("holds a tensor that is not dense")
            if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise NotPlainData("holds a tensor without all of its numbers")
        elif isinstance(value, dict):
            waiting += value.keys()
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        else:
            raise NotPlainData(f"holds a {type(value).__name__}")
