import ctypes
import multiprocessing
import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest

from common.cli import warn_once
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
        assert compiled_kernel("advance", SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert (tmp_path / "calls").read_text() == "x\n"
    compiled_kernel("advance", SOURCE, **{**CONSTANTS, "DEPTH": 4})
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    assert len(list(cache.iterdir())) == 2
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.fixture
def library(cache):
    """Returns the path of a library in the cache, which is not loaded."""
    compiled_kernel("advance", SOURCE, **CONSTANTS)
    compiled_kernel.cache_clear()
    (path,) = cache.iterdir()
    return path


def let_others_write(path):
    path.chmod(0o777)


def give_to_another_user(path):
    if os.geteuid():
        pytest.skip("only root can give files to another user")
    os.chown(path, 12345, 12345)


@pytest.mark.parametrize("change", [let_others_write, give_to_another_user])
def test_nothing_is_loaded_from_folder_of_others(library, change, monkeypatch, capsys):
    change(library.parent)
    loaded, load = [], ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: loaded.append(Path(path)) or load(path))
    assert compiled_kernel("advance", SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert [path.is_relative_to(library.parent) for path in loaded] == [False]
    expected = f"compiled kernels are not stored in the cache (others can write to {library.parent})\n"
    assert capsys.readouterr().err == expected


def unknown_user(_):
    raise KeyError


@pytest.mark.parametrize(
    "problem, reason",
    [
        ("file", "Not a directory"),
        ("no home", "Could not determine home directory."),
        ("home is a file", "Not a directory"),
    ],
)
def test_kernels_are_compiled_without_cache(cache, monkeypatch, capsys, problem, reason):
    """One line says so, however many kernels there are."""
    if problem == "file":
        cache.parent.write_text("a file, not a folder")
    else:
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setattr(pwd, "getpwuid", unknown_user)
        if problem == "no home":
            monkeypatch.delenv("HOME", raising=False)
        else:
            monkeypatch.setenv("HOME", "/dev/null")
    for depth in (3, 4):
        assert compiled_kernel("advance", SOURCE, **{**CONSTANTS, "DEPTH": depth}).experiments_at_once() > 0
    assert capsys.readouterr().err == f"compiled kernels are not stored in the cache ({reason})\n"


def test_kernel_is_unavailable_if_nothing_can_be_written(cache, monkeypatch):
    cache.parent.write_text("a file, not a folder")
    monkeypatch.setattr(tempfile, "tempdir", str(cache / "missing"))
    with pytest.raises(NativeUnavailable, match=r"^was not compiled \(Not a directory\)$"):
        compiled_kernel("advance", SOURCE, **CONSTANTS)


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
        compiled_kernel("advance", SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []


def test_compiler_of_another_language_compiles_c(cache, monkeypatch):
    monkeypatch.setenv("CC", "g++")
    assert compiled_kernel("advance", SOURCE, **CONSTANTS).experiments_at_once() > 0


def test_library_that_lacks_its_function_is_no_kernel(cache):
    with pytest.raises(NativeUnavailable, match=r"was compiled but cannot be loaded .*undefined symbol: other"):
        compiled_kernel("other", SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []


def test_march_native_is_dropped_only_if_rejected(cache, monkeypatch, tmp_path):
    reject = 'case "$*" in *-march=native*) echo "error: bad value for -march" >&2; exit 1;; esac\nexec cc "$@"\n'
    monkeypatch.setenv("CC", write_compiler(tmp_path / "old_cc", reject))
    assert compiled_kernel("advance", SOURCE, **CONSTANTS).experiments_at_once() > 0
    (general,) = cache.iterdir()
    # Once the compiler accepts the option, the library compiled without it is not reused.
    monkeypatch.setenv("CC", write_compiler(tmp_path / "old_cc", 'exec cc "$@"\n'))
    compiled_kernel.cache_clear()
    assert compiled_kernel("advance", SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert len(set(cache.iterdir()) - {general}) == 1


def test_missing_compiler_raises(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeUnavailable, match="needs a C compiler"):
        compiled_kernel("advance", SOURCE, **CONSTANTS)


def compile_in_process(_):
    return compiled_kernel("advance", SOURCE, **{**CONSTANTS, "DEPTH": 5}).experiments_at_once()


def test_concurrent_compilation(cache):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.map(compile_in_process, range(8), chunksize=1)
    assert len(set(answers)) == 1
    (library,) = cache.iterdir()
    assert os.path.getsize(library) > 1000
