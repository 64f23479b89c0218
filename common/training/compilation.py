"""Compiles the kernels (common/training/kernels/) with the system's C compiler at first use, and stores the libraries
for later runs.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

_SOURCES = Path(__file__).with_name("kernels")
# Not -ffast-math: NaN and infinity must be recognized, and sums must keep their order.
_OPTIONS = ["-std=gnu11", "-O3", "-fPIC", "-shared"]


class NativeUnavailable(Exception):
    """A kernel cannot be compiled or loaded here; the message says why."""


@cache
def compiled_kernel(*sources: str, **macros: int | float | str) -> ctypes.CDLL:
    """Returns the library compiled with these macros from kernels/simd.h and `sources` in kernels/, in this order.

    It is stored in the user's cache by source, options, compiler and processor. Several processes may compile the same
    kernel at the same time. Raises NativeUnavailable.
    """
    code = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    code += "".join((_SOURCES / name).read_text(encoding="utf-8") for name in ("simd.h", *sources))
    name = Path(sources[-1]).stem
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "implicit_regularization"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if directory.stat().st_uid != os.getuid() or not os.access(directory, os.W_OK):
            raise PermissionError
    except OSError:
        # No cache of this user's is writable.
        with tempfile.TemporaryDirectory() as temporary:
            return _find_or_compile(name, code, Path(temporary))
    return _find_or_compile(name, code, directory)


def _find_or_compile(name: str, code: str, directory: Path) -> ctypes.CDLL:
    """Loads the library from `directory`, where it is compiled if missing: for this processor, or if the compiler
    rejects -march=native, for any of its architecture.
    """
    compiler = _compiler()
    for options in ([*_OPTIONS, "-march=native"], _OPTIONS):
        identity = [code, *options, compiler, str(os.stat(compiler).st_mtime_ns), _processor()]
        key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        found = directory.glob(f"{name}_{key}_*.so")
        library = next((path for path in found if path.stem.endswith(_digest(path))), None)  # others are damaged
        library = library or _compile(compiler, options, code, directory, f"{name}_{key}")
        if library:
            break
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        library.unlink(missing_ok=True)
        raise NativeUnavailable(f"was compiled but cannot be loaded ({error})") from None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: str, options: list[str], code: str, target: Path, name: str) -> Path | None:
    """Compiles a library into the folder `target`. Returns its path, or None if the compiler rejects -march=native.

    Its name ends in a digest of its content, because loading a damaged library would crash.
    """
    with tempfile.TemporaryDirectory(dir=target) as directory:
        source, library = Path(directory) / "kernel.c", Path(directory) / "kernel.so"
        source.write_text(code, encoding="utf-8")
        command = [compiler, *options, str(source), "-o", str(library), "-lm"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NativeUnavailable(f"was not compiled: {compiler} did not run ({error})") from None
        if done.returncode == 0 and library.exists():
            return library.replace(target / f"{name}_{_digest(library)}.so")
    if done.returncode > 0 and "-march=native" in options and "march" in done.stderr:
        return None
    reason = next((line for line in done.stderr.splitlines() if "error" in line), f"exit status {done.returncode}")
    raise NativeUnavailable(f"was not compiled: {compiler} failed ({reason.strip()})")


def _compiler() -> str:
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        if path := shutil.which(name or ""):
            return os.path.realpath(path)
    raise NativeUnavailable("needs a C compiler (cc, gcc or clang), which was not found")


@cache
def _processor() -> str:
    """Returns the processor's name and features: machines with different ones may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = [f"model name {platform.processor()} {platform.system()}"]
    described = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join((platform.machine(), *sorted(described)))
