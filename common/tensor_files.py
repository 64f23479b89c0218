"""Files of tensors and dictionaries: written with torch.save, read without executing anything."""

import io
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from common.files import children, open_regular, write_atomically

_NOT_PLAIN = (
    "is not a torch.save file, is damaged, or holds more than plain data (tensors, numbers, strings, lists, "
    "dictionaries); give one written by this project"
)
# The names in a pickle of tensors and ordered dictionaries. The last group has types such as torch.float32, too.
_PLAIN_NAMES = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor|tensor_v2|parameter)|torch (\w*Storage|Size|[a-z]+\d+)"
)
_MOST_KEYS = 10**5
# Opcodes that push a float, or an integer of 1, 2 or 4 bytes. A checkpoint of the original code has millions of them.
_NUMBER = rb"G.{8}|K.|M..|J.{4}"
_ONE_NUMBER, _NUMBERS = re.compile(_NUMBER, re.DOTALL), re.compile(rb"(?:%s)+" % _NUMBER, re.DOTALL)


def tensor_bytes(content: Any) -> bytes:
    """Returns what torch.save writes for a tensor, or a dictionary of tensors, numbers, strings, lists and
    dictionaries.
    """
    buffer = io.BytesIO()  # torch would report a full disk with a RuntimeError of many lines
    torch.save(content, buffer)
    return buffer.getvalue()


def save_tensors(content: Any, path: Path, overwrite: bool = True) -> None:
    """Writes the `tensor_bytes` of `content` to a file, which is on the disk then."""
    write_atomically(path, lambda temporary: temporary.write_bytes(tensor_bytes(content)), overwrite)


def load_tensors(path: str | Path) -> Any:
    """Returns the content of a file written by torch.save, on the CPU: dense tensors, numbers, strings, booleans, None,
    lists, tuples and (ordered) dictionaries whose keys are strings or integers.

    Nothing in the file is executed, and the memory used is a few times the size of the file. Raises OSError, and
    ValueError if the file holds anything else.
    """
    with open_regular(path) as file:
        try:
            content = torch.load(_checked(file), map_location="cpu", weights_only=True)
            waiting, seen = [content], set()
            while waiting:
                value = waiting.pop()
                if isinstance(value, torch.Tensor):
                    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
                        raise ValueError("a tensor has more entries than numbers")
                elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
                    seen.add(id(value))
                    waiting += children(value)
        except (OSError, MemoryError):
            raise
        except Exception:
            # The message of torch is long, and tells how to execute the file.
            raise ValueError(_NOT_PLAIN) from None
    return content


def load_dictionary(path: str | Path) -> dict:
    """Returns the dictionary in a file. Raises as `load_tensors` does, and ValueError for any other content."""
    content = load_tensors(path)
    if not isinstance(content, dict):
        raise ValueError(f"holds a {type(content).__name__}; give a file that holds a dictionary")
    return content


def is_float_tensor(value: Any) -> bool:
    """Returns whether `value` is a tensor of real floating-point numbers (16 to 64 bits)."""
    floats = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    return isinstance(value, torch.Tensor) and value.dtype in floats


def _checked(file: BinaryIO) -> BinaryIO:
    """Returns a copy of the checked content of a file. Raises an exception if loading it might execute something, hang,
    or use much more memory than the file has bytes.
    """
    content = file.read()
    stream = io.BytesIO(content)
    if content[:4] != b"PK\x03\x04":
        # The format of PyTorch before 1.6: five pickles, then the tensors' numbers.
        for _ in range(5):
            _check_pickle(content, stream)
        return io.BytesIO(content)
    copy = io.BytesIO()
    with zipfile.ZipFile(stream) as archive, zipfile.ZipFile(copy, "w") as checked:
        members = archive.infolist()
        stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
        if not stored or sum(member.file_size for member in members) > len(content):
            raise ValueError("is compressed or damaged")
        for member in members:
            content = archive.read(member)
            # torch ignores the case of the name.
            if member.filename.lower().endswith(".pkl"):
                _check_pickle(content, io.BytesIO(content))
            checked.writestr(member.filename, content)
    copy.seek(0)
    return copy


def _check_pickle(content: bytes, stream: io.BytesIO) -> None:
    """Simulates the next pickle in `stream`, made from `content`. Raises an exception if it names anything but
    tensors and ordered dictionaries, or if dictionaries have too many keys, or keys that may take long to compare.
    """
    stack: list[str] = []  # kinds of values: "str", "int", …
    memo: dict[int, str] = {}
    marks: list[int] = []
    num_keys = 0
    for opcode, argument, _ in pickletools.genops(stream):
        name, before = opcode.name, opcode.stack_before
        if name == "GLOBAL" and not _PLAIN_NAMES.fullmatch(argument):
            raise ValueError(f"names {argument}")
        if name == "MARK":
            marks.append(len(stack))
            if numbers := _NUMBERS.match(content, stream.tell()):
                stack += ["int"] * len(_ONE_NUMBER.findall(content, *numbers.span()))
                stream.seek(numbers.end())
            continue
        # An opcode takes values from the stack, or all values above the last mark and some below it.
        above_mark = pickletools.markobject in before
        begin = marks.pop() if above_mark else len(stack) - len(before)
        values = stack[begin:]
        del stack[begin - (before.index(pickletools.markobject) if above_mark else 0) :]
        if name in ("SETITEM", "SETITEMS", "DICT"):
            keys = values[1:2] if name == "SETITEM" else values[::2]
            num_keys += len(keys)
            if not {"str", "int", "bytes_or_str", "unicode"}.issuperset(keys) or num_keys > _MOST_KEYS:
                raise ValueError("has unusual keys, or too many")
        if "PUT" in name:
            memo[argument] = stack[-1]
        if "GET" in name:
            stack.append(memo[argument])
        elif isinstance(argument, int) and abs(argument) >= 2**63:
            stack.append("long")  # many of these have the same hash
        else:
            stack += [each.name for each in opcode.stack_after]
