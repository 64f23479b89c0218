"""Compiles the kernels (common/training/kernels/) with the system's C compiler at first use, and stores the libraries
for later runs.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from common.cli import warn_once

_SOURCES = Path(__file__).with_name("kernels")
# Not -ffast-math: NaN and infinity must be recognized, and sums must keep their order.
_OPTIONS = ["-x", "c", "-std=gnu11", "-O3", "-fPIC", "-shared"]


class NativeUnavailable(Exception):
    """A kernel cannot be compiled or loaded here; the message says why."""


@cache
def compiled_kernel(function: str, *sources: str, **macros: int | float | str) -> ctypes.CDLL:
    """Returns the library with this `function`, compiled with these macros from kernels/simd.h and `sources` in
    kernels/, in this order.

    It is stored in the user's cache by source, options, compiler and processor. If that fails, it is not stored, and a
    line says so. Several processes may compile the same kernel at the same time. Raises NativeUnavailable.
    """
    code = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    code += "".join((_SOURCES / name).read_text(encoding="utf-8") for name in ("simd.h", *sources))
    name = Path(sources[-1]).stem
    try:
        return _find_or_compile(function, name, code, _cache_folder())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        warn_once(f"compiled kernels are not stored in the cache ({reason})")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            return _find_or_compile(function, name, code, Path(temporary))
    except OSError as error:
        raise NativeUnavailable(f"was not compiled ({error.strerror})") from None


def _cache_folder() -> Path:
    """Returns the folder of the stored libraries, made if missing. Raises OSError, also if others can write to it,
    because loading a library executes it, and RuntimeError if the user has no home folder.
    """
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "implicit_regularization"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EACCES, f"others can write to {directory}")
    return directory


def _find_or_compile(function: str, name: str, code: str, directory: Path) -> ctypes.CDLL:
    """Loads the library from `directory`, where it is compiled if missing: for this processor, or if the compiler
    rejects -march=native, for any of its architecture. Raises OSError if `directory` cannot be written to.
    """
    compiler = next(filter(None, (shutil.which(each) for each in (os.environ.get("CC", ""), "cc", "gcc", "clang"))), "")
    if not compiler:
        raise NativeUnavailable("needs a C compiler (cc, gcc or clang), which was not found")
    compiler = os.path.realpath(compiler)
    for options in ([*_OPTIONS, "-march=native"], _OPTIONS):
        identity = [code, *options, compiler, str(os.stat(compiler).st_mtime_ns), _processor()]
        key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        library = directory / f"{name}_{key}.so"
        if library.exists() or _compile([compiler, *options], code, library):
            break
    try:
        loaded = ctypes.CDLL(str(library))
        getattr(loaded, function)
    except (OSError, AttributeError) as error:
        library.unlink(missing_ok=True)
        raise NativeUnavailable(f"was compiled but cannot be loaded ({error})") from None
    return loaded


def _compile(command: list[str], code: str, library: Path) -> bool:
    """Compiles a library. Returns False if the compiler rejects -march=native. Raises OSError if its folder cannot be
    written to.
    """
    with tempfile.TemporaryDirectory(dir=library.parent, ignore_cleanup_errors=True) as directory:
        temporary, environment = Path(directory) / "kernel.so", {**os.environ, "TMPDIR": directory, "LC_ALL": "C"}
        try:
            command = [*command, "-", "-o", str(temporary), "-lm"]
            done = subprocess.run(
                command, input=code, capture_output=True, env=environment, text=True, errors="replace"
            )
        except OSError as error:
            raise NativeUnavailable(f"was not compiled: {command[0]} did not run ({error})") from None
        if done.returncode == 0 and temporary.exists():
            os.replace(temporary, library)
            return True
    if "-march=native" in command and "march" in done.stderr:
        return False
    lines = done.stderr.splitlines()
    reason = next((line for line in lines if "error" in line), f"exit status {done.returncode}")
    raise NativeUnavailable(f"was not compiled: {command[0]} failed ({reason.strip()})")


@cache
def _processor() -> str:
    """Returns the processor's name and features: machines with different ones may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [f"model name {platform.processor()} {platform.system()}"]
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join((platform.machine(), *sorted(described)))
