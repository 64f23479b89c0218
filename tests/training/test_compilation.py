import ctypes
import errno
import multiprocessing
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from common.cli import warn_once
from common.training import compilation
from common.training.compilation import NativeUnavailable, compiled_kernel

SOURCE = "deep_matrix_factorization.c"
CONSTANTS = {"REAL": "float", "INTEGER": "int32_t", "ROWS": 2, "COLS": 2, "HIDDEN": 2, "DEPTH": 3}
CONSTANTS |= {"ADAPTIVE": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns the path of an empty cache folder; no kernel is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled_kernel.cache_clear()
    warn_once.cache_clear()
    yield tmp_path / "cache" / "implicit_regularization"
    compiled_kernel.cache_clear()


def write_compiler(path, script):
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_kernel_is_compiled_once(cache, monkeypatch, tmp_path):
    counting = write_compiler(tmp_path / "counting_cc", f'echo x >> {tmp_path / "calls"}\nexec cc "$@"\n')
    monkeypatch.setenv("CC", counting)
    for _ in range(2):
        compiled_kernel.cache_clear()
        assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert (tmp_path / "calls").read_text() == "x\n"
    compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": 4})
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    assert len(list(cache.iterdir())) == 2
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.fixture
def library(cache):
    """Returns the path of a library in the cache, which is not loaded."""
    compiled_kernel(SOURCE, **CONSTANTS)
    compiled_kernel.cache_clear()
    (path,) = cache.iterdir()
    return path


def damage(library):
    content = library.read_bytes()
    library.unlink()  # it may still be loaded
    library.write_bytes(content[: len(content) // 2])
    library.chmod(0o700)


def replace_by_link(library):
    library.symlink_to(library.rename(library.parent.parent / "outside"))


def replace_by_pipe(library):
    library.unlink()
    os.mkfifo(library, 0o700)


def let_others_write(path):
    path.chmod(0o777)


def give_to_another_user(path):
    if os.geteuid():
        pytest.skip("only root can give files to another user")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("change", [damage, replace_by_link, replace_by_pipe, let_others_write, give_to_another_user])
def test_damaged_or_foreign_library_is_recompiled(library, change, capsys):
    whole = library.read_bytes()
    change(library)
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert (library.read_bytes(), stat.S_IMODE(library.lstat().st_mode)) == (whole, 0o700)
    assert library.lstat().st_uid == os.geteuid()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("change", [let_others_write, give_to_another_user])
def test_nothing_is_loaded_from_folder_of_others(library, change, monkeypatch, capsys):
    change(library.parent)
    loaded, load = [], ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(Path(path)) or load(path))
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert [path.is_relative_to(library.parent) for path in loaded] == [False]
    expected = f"compiled kernels are not stored in the cache (others can write to {library.parent})\n"
    assert capsys.readouterr().err == expected


def fail_to_write(monkeypatch, where):
    """Makes writing to paths that contain `where` fail as if the disk was full."""
    write = Path.write_bytes

    def failing(path, content):
        if where in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", failing)


def unknown_user(_):
    raise KeyError


@pytest.mark.parametrize(
    "problem, reason",
    [
        ("file", "Not a directory"),
        ("full disk", "No space left on device"),
        ("no home", "Could not determine home directory."),
        ("home is a file", "Not a directory"),
        ("folder in place of the library", "Is a directory"),
    ],
)
def test_kernels_are_compiled_without_cache(request, cache, monkeypatch, capsys, problem, reason):
    """One line says so, however many kernels there are."""
    if problem == "file":
        cache.parent.write_text("a file, not a folder")
    elif problem == "full disk":
        fail_to_write(monkeypatch, str(cache))
    elif problem == "folder in place of the library":
        library = request.getfixturevalue("library")
        library.unlink()
        library.mkdir()
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(pwd, "getpwuid", unknown_user)
        if problem == "no home":
            monkeypatch.delenv("HOME", raising=False)
        else:
            monkeypatch.setenv("HOME", "/dev/null")
    for depth in (3, 4):
        assert compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": depth}).experiments_at_once() > 0
    assert capsys.readouterr().err == f"compiled kernels are not stored in the cache ({reason})\n"


def test_kernel_is_unavailable_if_nothing_can_be_written(cache, monkeypatch):
    fail_to_write(monkeypatch, "")
    with pytest.raises(NativeUnavailable, match=r"^was not compiled \(No space left on device\)$"):
        compiled_kernel(SOURCE, **CONSTANTS)
    monkeypatch.setattr(tempfile, "tempdir", str(cache / "missing"))
    with pytest.raises(NativeUnavailable, match=r"^was not compiled \(No such file or directory\)$"):
        compiled_kernel(SOURCE, **CONSTANTS)


def hanging_compiler(tmp_path):
    """Returns a compiler that starts a process that does not end, and the file to which it writes their ids."""
    calls = tmp_path / "calls"
    return write_compiler(tmp_path / "hanging_cc", f"sleep 1000 &\necho $$ $! >> {calls}\nwait\n"), calls


def is_running(pid):
    """Returns whether a process exists that has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_compiler_may_leave_a_server(cache, monkeypatch, tmp_path):
    """It holds the compiler's standard error open."""
    compiler = write_compiler(tmp_path / "server_cc", 'sleep 12 &\nexec cc "$@"\n')
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(compilation, "_MOST_SECONDS", 10)
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0


def test_hanging_compiler_is_run_once(cache, monkeypatch, tmp_path):
    compiler, calls = hanging_compiler(tmp_path)
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setattr(compilation, "_MOST_SECONDS", 0.3)
    monkeypatch.setattr(compilation, "_hanging", set())
    for depth in (2, 3):
        with pytest.raises(NativeUnavailable, match=r"^was not compiled: \S+ did not end in 0.3 s$"):
            compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": depth})
    (processes,) = calls.read_text().splitlines()
    assert not any(map(is_running, processes.split()))
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo 'kernel.c:1: error: no' >&2; exit 1", "error: no"),
        ("exit 0", "exit status 0"),
        ('while [ "$1" != -o ]; do shift; done; echo no > "$2"', "cannot be loaded"),
    ],
)
def test_compiler_failure_is_reported(cache, tmp_path, monkeypatch, script, reason):
    monkeypatch.setenv("CC", write_compiler(tmp_path / "bad_cc", script))
    with pytest.raises(NativeUnavailable, match=reason):
        compiled_kernel(SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []


def test_interrupted_compilation_is_not_cached(cache, monkeypatch, tmp_path):
    """The fallback without -march=native must not be cached either: it is slower and rounds differently."""
    calls, interrupted = tmp_path / "calls", tmp_path / "interrupted"
    once = (
        f'echo "$@" >> {calls}\nif [ ! -e {interrupted} ]; then touch {interrupted}; kill -INT $$; fi\nexec cc "$@"\n'
    )
    monkeypatch.setenv("CC", write_compiler(tmp_path / "interrupted_cc", once))
    with pytest.raises(NativeUnavailable, match="was not compiled"):
        compiled_kernel(SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert [("-march=native" in line) for line in calls.read_text().splitlines()] == [True, True]


def test_march_native_is_dropped_only_if_rejected(cache, monkeypatch, tmp_path):
    reject = 'case "$*" in *-march=native*) echo "error: bad value for -march" >&2; exit 1;; esac\nexec cc "$@"\n'
    monkeypatch.setenv("CC", write_compiler(tmp_path / "old_cc", reject))
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    (general,) = cache.iterdir()
    # Once the compiler accepts the option, the library compiled without it is not reused.
    monkeypatch.setenv("CC", write_compiler(tmp_path / "old_cc", 'exec cc "$@"\n'))
    compiled_kernel.cache_clear()
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert len(set(cache.iterdir()) - {general}) == 1


def test_missing_compiler_raises(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeUnavailable, match="needs a C compiler"):
        compiled_kernel(SOURCE, **CONSTANTS)


def compile_in_process(_):
    return compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": 5}).experiments_at_once()


def test_concurrent_compilation(cache):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.map(compile_in_process, range(8), chunksize=1)
    assert len(set(answers)) == 1
    (library,) = cache.iterdir()
    assert os.path.getsize(library) > 1000
