import os
import stat
import tempfile

import pytest

from common.cli import warn_once
from common.training.compilation import NativeUnavailable, compiled_kernel

SOURCE = "deep_matrix_factorization.c"
CONSTANTS = {"REAL": "float", "INTEGER": "int32_t", "ROWS": 2, "COLS": 2, "HIDDEN": 2, "DEPTH": 3}
CONSTANTS |= {"ADAPTIVE": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0}


def answer(depth=3):
    """Returns what a function of the kernel returns. No kernel is loaded yet, as in a new process."""
    compiled_kernel.cache_clear()
    return compiled_kernel("advance", SOURCE, **{**CONSTANTS, "DEPTH": depth}).experiments_at_once()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns the path of an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    warn_once.cache_clear()
    yield tmp_path / "cache" / "implicit_regularization"
    compiled_kernel.cache_clear()


@pytest.fixture
def set_compiler(tmp_path, monkeypatch):
    """Returns a function that makes a shell script the compiler."""

    def set_compiler(script):
        path = tmp_path / "some_cc"
        path.write_text("#!/bin/sh\n" + script)
        path.chmod(0o700)
        os.utime(path, (1, 1))  # the same compiler to the cache
        monkeypatch.setenv("CC", str(path))

    return set_compiler


def test_kernel_is_compiled_once(cache, set_compiler, tmp_path):
    set_compiler(f'echo x >> {tmp_path / "calls"}\nexec cc "$@"\n')
    assert answer() == answer() > 0
    assert (tmp_path / "calls").read_text() == "x\n"
    assert answer(depth=4) > 0
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    assert len(list(cache.iterdir())) == 2
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_damaged_library_is_compiled_again(cache):
    assert answer() > 0
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    library.unlink()  # it is loaded: to overwrite it would crash this process at its end
    library.write_bytes(b"not a library" * 1000)
    assert answer() > 0
    assert library.read_bytes() == whole


@pytest.mark.parametrize("change", ["mode", "owner"])
def test_nothing_is_loaded_from_folder_of_others(cache, change, capsys):
    if change == "owner" and os.geteuid():
        pytest.skip("only root can give files to another user")
    cache.mkdir(parents=True, mode=0o700)
    cache.chmod(0o777) if change == "mode" else os.chown(cache, 12345, 12345)
    assert answer() > 0
    assert list(cache.iterdir()) == []
    assert capsys.readouterr().err == f"compiled kernels are not stored in the cache (others can write to {cache})\n"


def test_kernels_are_compiled_without_cache(cache, monkeypatch, capsys):
    """One line says so, however many kernels there are. They need a temporary folder at least."""
    cache.parent.write_text("a file, not a folder")
    assert min(answer(depth=3), answer(depth=4)) > 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("compiled kernels are not stored in the cache (Not a directory")
    monkeypatch.setattr(tempfile, "tempdir", str(cache / "missing"))
    with pytest.raises(NativeUnavailable, match=r"^was not compiled \(Not a directory\)$"):
        answer()


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo 'kernel.c:1: error: no' >&2; exit 1", "error: no"),
        ('while [ "$1" != -o ]; do shift; done; echo no > "$2"', "cannot be loaded"),
        ("kill -INT $$", "exit status -2"),
    ],
)
def test_compiler_failure_is_reported(cache, set_compiler, script, reason):
    """Nothing is stored, so that the next process compiles again."""
    set_compiler(script)
    with pytest.raises(NativeUnavailable, match=f"^was .*{reason}.*$"):
        answer()
    assert list(cache.iterdir()) == []


def test_march_native_is_dropped_only_if_rejected(cache, set_compiler):
    set_compiler('case "$*" in *-march=native*) echo "error: bad value for -march" >&2; exit 1;; esac\nexec cc "$@"\n')
    assert answer() > 0
    (general,) = cache.iterdir()
    # Once the compiler accepts the option, the library compiled without it is not reused: it rounds differently.
    set_compiler('exec cc "$@"\n')
    assert answer() > 0
    assert len(set(cache.iterdir()) - {general}) == 1
