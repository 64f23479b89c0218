"""Compiles the kernels (common/training/kernels/) with the system's C compiler at first use, and stores the libraries
for later runs.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from common.cli import warn_once

_SOURCES = Path(__file__).with_name("kernels")
# Not -ffast-math: NaN and infinity must be recognized, and sums must keep their order.
_OPTIONS = ["-x", "c", "-std=gnu11", "-O3", "-fPIC", "-shared"]
_MOST_SECONDS = 120  # a kernel takes the compiler a second


class NativeUnavailable(Exception):
    """A kernel cannot be compiled or loaded here; the message says why."""


@cache
def compiled_kernel(function: str, *sources: str, **macros: int | float | str) -> ctypes.CDLL:
    """Returns the library with `function` that is compiled with these macros from kernels/simd.h and `sources` in
    kernels/, in this order.

    It is stored in the user's cache by source, options, compiler and processor. If that fails, it is not stored, and a
    line says so. Several processes may compile the same kernel at the same time. Raises NativeUnavailable.
    """
    code = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    code += "".join((_SOURCES / name).read_text(encoding="utf-8") for name in ("simd.h", *sources))
    name = Path(sources[-1]).stem
    try:
        directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "implicit_regularization"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if (status := directory.stat()).st_uid != os.geteuid() or status.st_mode & 0o022:
            # Loading a library executes it.
            raise PermissionError(errno.EACCES, f"others can write to {directory}")
        return _load_or_compile(function, name, code, directory)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        warn_once(f"compiled kernels are not stored in the cache ({reason})")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            return _load_or_compile(function, name, code, Path(temporary))
    except OSError as error:
        raise NativeUnavailable(f"was not compiled ({error.strerror})") from None


def _load_or_compile(function: str, name: str, code: str, directory: Path) -> ctypes.CDLL:
    """Loads the library from `directory`, where it is compiled if missing or damaged: for this processor, or if the
    compiler rejects -march=native, for any of its architecture. Raises OSError if `directory` cannot be written to.
    """
    found = list(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))))
    if not found:
        raise NativeUnavailable("needs a C compiler (cc, gcc or clang), which was not found")
    compiler = os.path.realpath(found[0])
    for options in ([*_OPTIONS, "-march=native"], _OPTIONS):
        identity = [code, *options, compiler, str(os.stat(compiler).st_mtime_ns), _processor()]
        stored = directory / f"{name}_{hashlib.sha256(chr(0).join(identity).encode()).hexdigest()[:32]}.so"
        with suppress(NativeUnavailable):
            return _load(stored, function)
        with tempfile.TemporaryDirectory(dir=directory, ignore_cleanup_errors=True) as temporary:
            source, library = Path(temporary) / "kernel.c", Path(temporary) / "kernel.so"
            source.write_text(code, encoding="utf-8")
            command = [compiler, *options, str(source), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=_MOST_SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NativeUnavailable(f"was not compiled: {error}") from None
            status, message = done.returncode, (done.stderr + done.stdout).decode(errors="replace")
            if status == 0 and library.exists():
                loaded = _load(library, function)
                with open(library, "rb") as file:
                    os.fsync(file.fileno())  # loading an incomplete one, as after a power cut, would crash
                library.replace(stored)
                return loaded
        if not (status > 0 and "march" in message):
            break
    reason = next((line for line in message.splitlines() if "error" in line), f"exit status {status}")
    raise NativeUnavailable(f"was not compiled: {compiler} failed ({reason.strip()})")


def _load(library: Path, function: str) -> ctypes.CDLL:
    try:
        loaded = ctypes.CDLL(str(library))
        getattr(loaded, function)
        return loaded
    except (OSError, AttributeError) as error:
        raise NativeUnavailable(f"was compiled but cannot be loaded ({error})") from None


@cache
def _processor() -> str:
    """Returns the processor's name and features: machines with different ones may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [f"model name {platform.processor()} {platform.system()}"]
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join((platform.machine(), *sorted(described)))
