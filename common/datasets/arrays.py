"""Numbers and entries as people have them: in any layout and precision, with NaN where an entry is unknown."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.tensor_files import load_tensors

_REAL = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_REAL |= {torch.float16, torch.bfloat16, torch.float32, torch.float64}


def load_array(path: str) -> Any:
    """Returns the array in a .npy file, a .npz file of one array or a .csv file, whose first line may be a header
    of words and whose empty cells are NaN; or what a .pt file holds.

    Raises OSError, and ValueError if the file is something else.
    """
    ending = Path(path).suffix.lower()
    if ending == ".pt":
        return load_tensors(path)
    if ending == ".csv":
        return torch.tensor(_load_csv(path), dtype=torch.float64)
    if ending not in (".npy", ".npz"):
        raise ValueError("must end in .npy, .npz, .csv or .pt")
    try:
        array = np.load(path, allow_pickle=False)
        names = getattr(array, "files", [])  # of .npz
        array = array[names[0]] if len(names) == 1 else array
    except (OSError, MemoryError):
        raise
    except Exception:
        raise ValueError("is not a NumPy file, is damaged, or holds Python objects") from None
    if names[1:]:
        raise ValueError(f"holds {len(names)} arrays, {', '.join(names)}; give a file with one")
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ValueError(f"holds {getattr(array, 'dtype', 'no array')}, expected real numbers")
    # PyTorch has neither other byte orders nor negative strides.
    dtype = array.dtype if array.dtype in (np.bool_, np.float32) else np.float64
    return torch.from_numpy(np.ascontiguousarray(array, dtype))


def _load_csv(path: str) -> list[list[float]]:
    lines = [line.split(",") for line in Path(path).read_text(encoding="utf-8-sig").rstrip().splitlines()]
    rows = [[_number(cell.strip(' "')) for cell in line] for line in lines] or [[]]
    is_header = None in rows[0] and all(number is None or math.isnan(number) for number in rows[0])
    for line, row in list(zip(lines, rows, strict=False))[is_header:]:
        if None in row:
            raise ValueError(
                f"holds {line[row.index(None)]!r:.40}, expected a number, or nothing if unknown; leave row names out"
            )
        if len(row) != len(rows[-1]):
            raise ValueError(f"has rows of {len(row)} and {len(rows[-1])} cells; give each the same number")
    return rows[is_header:]


def _number(cell: str) -> float | None:
    """Returns the number in a cell, NaN if it is empty, None if it holds anything else."""
    try:
        return float(cell or "nan")
    except ValueError:
        return None


def as_numbers(value: Any, name: str) -> Tensor:
    """Returns a tensor as a contiguous one of float32, or of float64 if it has another dtype. Raises ValueError if it
    is no dense tensor of real numbers.
    """
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is {'missing' if value is None else f'a {type(value).__name__}'}, expected a tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or value.dtype not in _REAL:
        raise ValueError(f"{name} is of {value.dtype}, {value.layout}, expected a dense tensor of real numbers")
    return value.detach().to(torch.float32 if value.dtype == torch.float32 else torch.float64).contiguous()


def as_entries(value: Any, shape: tuple[int, ...], name: str) -> Tensor:
    """Returns the flat (row-major) entries (n,) of a tensor of this shape that a list or a tensor of distinct integers,
    or a mask, names. A mask is boolean, or of this shape and 0 or 1 everywhere. Raises ValueError for anything else.
    """
    size = math.prod(shape)
    if isinstance(value, list) and set(map(type, value)) in ({int}, {bool}) and max(map(abs, value)) < 2**63:
        value = torch.tensor(value)
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} is no list or tensor of integers")
    numbers = as_numbers(value, name)
    if value.dtype == torch.bool or (value.shape == shape and ((numbers == 0) | (numbers == 1)).all()):
        if tuple(value.shape) not in (shape, (size,)):
            raise ValueError(f"{name} is a mask of shape {tuple(value.shape)}, expected {shape}")
        return numbers.flatten().nonzero().flatten()
    if value.numel() != max(value.shape, default=0):
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected (n,) or a mask of shape {shape}")
    if not (numbers == numbers.floor()).all():
        raise ValueError(f"{name} holds {value.dtype} numbers that are not integers")
    outside = numbers[(numbers < 0) | (numbers >= size)]
    if len(outside):
        raise ValueError(f"{name} holds {outside[0]:.0f}, expected entries from 0 to {size - 1}")
    entries = numbers.flatten().long()
    found, counts = entries.unique(return_counts=True)
    if len(found) < len(entries):
        raise ValueError(f"{name} holds entry {found[counts.argmax()]} {counts.max()} times")
    return entries


def target_and_known(content: Mapping[str, Any], name: str) -> tuple[Tensor, Tensor | None]:
    """Returns the target in a dataset, zero where it is unknown, and the mask of its known entries: "known_entries" or,
    if that is missing, those that are not NaN, and None if all of them are. Raises ValueError.
    """
    target = as_numbers(content.get(name), repr(name))
    listed = content.get("known_entries", ~target.isnan())
    known = torch.zeros(target.shape, dtype=torch.bool)
    known.view(-1)[as_entries(listed, tuple(target.shape), "'known_entries'")] = True
    known = None if "known_entries" not in content and known.all() else known
    target = target if known is None else target.where(known, 0)
    if not target.isfinite().all():
        raise ValueError(f"{name!r} holds infinity, or NaN where it is known")
    if target.any() and not 1e-150 < target.double().norm() < 1e150:
        raise ValueError(f"the norm of {name!r} is outside 1e-150 to 1e150; scale it")
    return target, known
