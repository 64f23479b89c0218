"""Compiles the kernels (common/training/kernels/) with the system's C compiler at first use, and stores the libraries
for later runs.
"""

import ctypes
import errno
import hashlib
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from common.cli import warn_once

_SOURCES = Path(__file__).with_name("kernels")
# Not -ffast-math: NaN and infinity must be recognized, and sums must keep their order.
_OPTIONS = ["-std=gnu11", "-O3", "-fPIC", "-shared"]
# A kernel takes the compiler a second, and less than a megabyte for all files.
_MOST_SECONDS, _MOST_BYTES = 120, 2**21
# Compilers that did not end in that time.
_hanging: set[str] = set()


class NativeUnavailable(Exception):
    """A kernel cannot be compiled or loaded here; the message says why."""


@cache
def compiled_kernel(*sources: str, **macros: int | float | str) -> ctypes.CDLL:
    """Returns the library compiled with these macros from kernels/simd.h and `sources` in kernels/, in this order.

    It is stored in the user's cache by source, options, compiler and processor. If that fails, it is not stored, and a
    line says so. Several processes may compile the same kernel at the same time. Raises NativeUnavailable.
    """
    code = "".join(f"#define {name} {value}\n" for name, value in macros.items())
    code += "".join((_SOURCES / name).read_text(encoding="utf-8") for name in ("simd.h", *sources))
    name = Path(sources[-1]).stem
    try:
        return _find_or_compile(name, code, _cache_folder())
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        warn_once(f"compiled kernels are not stored in the cache ({reason})")
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            return _find_or_compile(name, code, Path(temporary))
    except OSError as error:
        raise NativeUnavailable(f"was not compiled ({error.strerror})") from None


def _cache_folder() -> Path:
    """Returns the folder of the stored libraries, made if missing. Raises OSError, and RuntimeError if the user has no
    home folder.
    """
    directory = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "implicit_regularization"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(directory.stat()):
        raise PermissionError(errno.EACCES, f"others can write to {directory}")
    return directory


def _is_private(status: os.stat_result) -> bool:
    """Returns whether only this user can write to a file or folder: loading a library executes it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _find_or_compile(name: str, code: str, directory: Path) -> ctypes.CDLL:
    """Loads the library from `directory`, where it is compiled if missing: for this processor, or if the compiler
    rejects -march=native, for any of its architecture. Raises OSError if `directory` cannot be written to.
    """
    compiler = _compiler()
    for options in ([*_OPTIONS, "-march=native"], _OPTIONS):
        identity = [code, *options, compiler, str(os.stat(compiler).st_mtime_ns), _processor()]
        key = hashlib.sha256("\0".join(identity).encode()).hexdigest()[:32]
        library = next(filter(_can_be_loaded, directory.glob(f"{name}_{key}_*.so")), None)
        library = library or _compile(compiler, options, code, directory, f"{name}_{key}")
        if library:
            break
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:
        library.unlink(missing_ok=True)
        raise NativeUnavailable(f"was compiled but cannot be loaded ({error})") from None


def _can_be_loaded(library: Path) -> bool:
    """Returns whether a library is whole, and only this user can write to it."""
    try:
        status = library.lstat()
        return stat.S_ISREG(status.st_mode) and _is_private(status) and library.stem.endswith(_digest(library))
    except OSError:
        return False


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _compile(compiler: str, options: list[str], code: str, target: Path, name: str) -> Path | None:
    """Compiles a library into the folder `target`. Returns its path, or None if the compiler rejects -march=native.
    Raises OSError if `target` cannot be written to.

    Its name ends in a digest of its content, because loading a damaged library would crash.
    """
    with tempfile.TemporaryDirectory(dir=target, ignore_cleanup_errors=True) as directory:
        source, library = Path(directory) / "kernel.c", Path(directory) / "kernel.so"
        # A full disk raises OSError here, while the compiler's message about it would depend on the language.
        library.write_bytes(bytes(_MOST_BYTES))
        library.unlink()
        source.write_text(code, encoding="utf-8")
        status, message = _run([compiler, *options, str(source), "-o", str(library), "-lm"], directory)
        if status == 0 and library.exists():
            library.chmod(0o700)
            return library.replace(target / f"{name}_{_digest(library)}.so")
    if status > 0 and "-march=native" in options and "march" in message:
        return None
    reason = next((line for line in message.splitlines() if "error" in line), f"exit status {status}")
    raise NativeUnavailable(f"was not compiled: {compiler} failed ({reason.strip()})")


def _run(command: list[str], directory: str) -> tuple[int, str]:
    """Runs a compiler, which writes its temporary files to `directory`. Returns its exit status and messages.

    It gets no signals from the terminal, and is ended with all processes that it started if an exception is raised. A
    compiler that once did not end is not run again.
    """
    compiler, environment = command[0], {**os.environ, "TMPDIR": directory}
    if compiler not in _hanging:
        # A pipe would stay open as long as a server that a compiler has started.
        with open(Path(directory) / "messages", "w+", errors="replace") as messages:
            files = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": messages}
            try:
                process = subprocess.Popen(command, **files, env=environment, start_new_session=True)
            except OSError as error:
                raise NativeUnavailable(f"was not compiled: {compiler} did not run ({error})") from None
            try:
                status = process.wait(_MOST_SECONDS)
                messages.seek(0)
                return status, messages.read()
            except BaseException as error:
                with suppress(OSError):  # it has just ended
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if not isinstance(error, subprocess.TimeoutExpired):
                    raise
                _hanging.add(compiler)
    raise NativeUnavailable(f"was not compiled: {compiler} did not end in {_MOST_SECONDS} s")


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
