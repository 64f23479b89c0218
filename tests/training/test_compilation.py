import multiprocessing
import os
import stat

import pytest

from common.training.compilation import NativeUnavailable, compiled_kernel

SOURCE = "deep_matrix_factorization.c"
CONSTANTS = {"REAL": "float", "INTEGER": "int32_t", "ROWS": 2, "COLS": 2, "HIDDEN": 2, "DEPTH": 3}
CONSTANTS |= {"ADAPTIVE": 0, "MOMENTUM": 0, "WEIGHT_DECAY": 0}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Returns the path of an empty cache folder; no kernel is loaded."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled_kernel.cache_clear()
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


def test_damaged_library_is_recompiled(cache):
    compiled_kernel(SOURCE, **CONSTANTS)
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2])
    compiled_kernel.cache_clear()
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert library.read_bytes() == whole


def test_kernel_is_compiled_without_cache_folder(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file, not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled_kernel.cache_clear()
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0


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
