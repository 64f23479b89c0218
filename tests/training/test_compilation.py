import multiprocessing
import os
import stat

import pytest

from common.training.native_engine import NativeUnavailable, compiled_kernel

SOURCE = "deep_matrix_factorization.c"
CONSTANTS = {"REAL": "float", "INTEGER": "int32_t", "ROWS": 2, "COLS": 2, "DEPTH": 3}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and nothing loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    compiled_kernel.cache_clear()
    yield tmp_path / "cache" / "implicit_regularization"
    compiled_kernel.cache_clear()


def compiler(path, script):
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_kernel_is_compiled_once_for_all_processes(cache, monkeypatch, tmp_path):
    counting = compiler(tmp_path / "counting_cc", f'echo x >> {tmp_path / "calls"}\nexec cc "$@"\n')
    monkeypatch.setenv("CC", counting)
    for _ in range(2):
        compiled_kernel.cache_clear()
        assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert (tmp_path / "calls").read_text() == "x\n"
    compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": 4})
    assert (tmp_path / "calls").read_text() == "x\nx\n"
    assert len(list(cache.iterdir())) == 2
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_a_damaged_library_is_compiled_again(cache):
    compiled_kernel(SOURCE, **CONSTANTS)
    (library,) = cache.iterdir()
    whole = library.read_bytes()
    library.unlink()
    library.write_bytes(whole[: len(whole) // 2])
    compiled_kernel.cache_clear()
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert library.read_bytes() == whole


def test_without_a_place_to_keep_it_a_kernel_is_compiled_anyway(tmp_path, monkeypatch):
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
def test_a_compiler_that_fails_is_reported(cache, tmp_path, monkeypatch, script, reason):
    monkeypatch.setenv("CC", compiler(tmp_path / "bad_cc", script))
    with pytest.raises(NativeUnavailable, match=reason):
        compiled_kernel(SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []


def test_a_compiler_that_is_interrupted_leaves_nothing_that_later_runs_would_take(cache, monkeypatch, tmp_path):
    """Another library than the fastest would be slower, and have other bits, for good."""
    calls, interrupted = tmp_path / "calls", tmp_path / "interrupted"
    once = (
        f'echo "$@" >> {calls}\nif [ ! -e {interrupted} ]; then touch {interrupted}; kill -INT $$; fi\nexec cc "$@"\n'
    )
    monkeypatch.setenv("CC", compiler(tmp_path / "interrupted_cc", once))
    with pytest.raises(NativeUnavailable, match="was not compiled"):
        compiled_kernel(SOURCE, **CONSTANTS)
    assert list(cache.iterdir()) == []
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert [("-march=native" in line) for line in calls.read_text().splitlines()] == [True, True]


def test_only_where_the_compiler_rejects_the_processor_it_is_not_asked_for(cache, monkeypatch, tmp_path):
    reject = 'case "$*" in *-march=native*) echo "error: bad value for -march" >&2; exit 1;; esac\nexec cc "$@"\n'
    monkeypatch.setenv("CC", compiler(tmp_path / "old_cc", reject))
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    (general,) = cache.iterdir()
    # The compiler learns it: what was compiled before is not taken for it.
    monkeypatch.setenv("CC", compiler(tmp_path / "old_cc", 'exec cc "$@"\n'))
    compiled_kernel.cache_clear()
    assert compiled_kernel(SOURCE, **CONSTANTS).experiments_at_once() > 0
    assert len(set(cache.iterdir()) - {general}) == 1


def test_without_a_compiler(cache, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(NativeUnavailable, match="needs a C compiler"):
        compiled_kernel(SOURCE, **CONSTANTS)


def _compile(_):
    return compiled_kernel(SOURCE, **{**CONSTANTS, "DEPTH": 5}).experiments_at_once()


def test_processes_that_compile_at_once_do_not_disturb_each_other(cache):
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        answers = pool.map(_compile, range(8), chunksize=1)
    assert len(set(answers)) == 1
    (library,) = cache.iterdir()
    assert os.path.getsize(library) > 1000
