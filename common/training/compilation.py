"""Compiles kernels at first use with the system's C compiler, and keeps them for the next time."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_SOURCES = Path(__file__).with_name("kernels")
# Without -ffast-math: NaN and infinity are seen as such, and sums keep their order.
_OPTIONS = ["-std=gnu11", "-O3", "-fPIC", "-shared"]


class NativeUnavailable(Exception):
    """Kernels cannot be compiled or loaded here; the message says why."""


def compiled_kernel(source: str, constants: Mapping[str, int | float | str]) -> ctypes.CDLL:
    """The library compiled from kernels/simd.h and kernels/`source`, with the macros `constants`.

    Kept in the user's cache by content and processor. Of processes that compile the same at once, each puts a whole
    file in place.

    Raises NativeUnavailable.
    """
    definitions = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    code = definitions + "".join((_SOURCES / name).read_text(encoding="utf-8") for name in ("simd.h", source))
    return _library(Path(source).stem, code)


@cache
def _library(name: str, code: str) -> ctypes.CDLL:
    compiler = _compiler()
    identity = [code, *_OPTIONS, compiler, str(os.stat(compiler).st_mtime_ns), _processor()]
    key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
    try:
        directory = _cache_directory()
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid() or not os.access(directory, os.W_OK):
            raise PermissionError
    except OSError:
        # Nowhere to keep it: compiled for this process alone.
        with tempfile.TemporaryDirectory() as directory:
            return _load(_compile(compiler, code, Path(directory), name))
    for path in directory.glob(f"{name}_{key}_*.so"):
        if path.stem.endswith(_digest(path)):
            return _load(path)
        path.unlink(missing_ok=True)  # damaged
    return _load(_compile(compiler, code, directory, f"{name}_{key}"))


def _load(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeUnavailable(f"was compiled but cannot be loaded ({error})") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: str, code: str, target: Path, name: str) -> Path:
    """Compiles for this processor, or where the compiler has no such option, for any of its kind. The library in the
    folder `target`, its name completed by a digest of its content: loading a damaged one would crash.
    """
    with tempfile.TemporaryDirectory(dir=target) as directory:
        source, library = Path(directory) / "kernel.c", Path(directory) / "kernel.so"
        source.write_text(code, encoding="utf-8")
        for processor in (["-march=native"], []):
            command = [compiler, *_OPTIONS, *processor, str(source), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
            except (OSError, subprocess.TimeoutExpired) as error:
                raise NativeUnavailable(f"was not compiled: {compiler} did not run ({error})") from None
            if done.returncode == 0 and library.exists():
                path = target / f"{name}_{_digest(library)}.so"
                os.replace(library, path)
                return path
    reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit status {done.returncode}")
    raise NativeUnavailable(f"was not compiled: {compiler} failed ({reason.strip()})")


def _compiler() -> str:
    if os.name != "posix":
        raise NativeUnavailable(f"is not supported on {platform.system()}")
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        path = shutil.which(name) if name else None
        if path:
            return os.path.realpath(path)
    raise NativeUnavailable("needs a C compiler (cc, gcc or clang), which was not found")


def _cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "implicit_regularization"


@cache
def _processor() -> str:
    """What the machine code depends on: a home directory may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return " ".join((platform.machine(), platform.processor(), platform.system()))
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join((platform.machine(), *sorted(described)))
