"""Files that are whole or absent, locks that hold, keys that are stable."""

import errno
import hashlib
import os
import stat
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clair import files
from clair.files import atomic_bytes, cache_root, digest, file_digest, locked, versions


def test_writes_and_replaces(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    atomic_bytes(path, b"one")
    assert path.read_bytes() == b"one"
    atomic_bytes(path, b"two, longer")
    assert path.read_bytes() == b"two, longer"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("call", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("kind", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, call, kind):
    path = tmp_path / "a.bin"
    atomic_bytes(path, b"old")

    def fail(*args, **kwargs):
        raise kind

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(type(kind)):
        atomic_bytes(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_the_whole_file_is_on_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    calls = []
    plain_fsync, plain_replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda handle: calls.append("fsync") or plain_fsync(handle))

    def replace(source, target):
        with open(source, "rb") as file:
            calls.append(file.read())
        plain_replace(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    atomic_bytes(tmp_path / "a.bin", b"whole")
    assert calls == ["fsync", b"whole"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077, 0o002])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        atomic_bytes(tmp_path / "a.bin", b"x")
        assert os.umask(mask) == mask  # and the umask is what it was
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.bin").stat().st_mode) == 0o666 & ~mask


HOLDER = """
import importlib.util, pathlib, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])  # without torch: it starts at once
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
target = pathlib.Path(sys.argv[2])
print("waiting", flush=True)
with files.locked(target):
    print("inside", target.read_text() if target.exists() else "nothing", flush=True)
"""


def test_a_second_process_waits_and_then_finds_the_file(tmp_path):
    target = tmp_path / "deep" / "made.txt"
    command = [sys.executable, "-c", HOLDER, files.__file__, str(target)]
    with locked(target):
        other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout.readline() == "waiting\n"
            time.sleep(0.4)
            target.write_text("made")
            assert other.poll() is None  # still waiting
        except BaseException:
            other.kill()
            raise
    out, _ = other.communicate(timeout=30)
    assert out == "inside made\n"
    assert other.returncode == 0


def test_the_lock_is_released_on_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "a"):
        raise RuntimeError
    out = subprocess.run(
        [sys.executable, "-c", HOLDER, files.__file__, str(tmp_path / "a")], capture_output=True, text=True, timeout=30
    )
    assert out.stdout.endswith("inside nothing\n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


def turned_round(value):
    """The same value with the entries of every dict in the opposite order."""
    if isinstance(value, dict):
        return {key: turned_round(value[key]) for key in reversed(value)}
    return [turned_round(item) for item in value] if isinstance(value, list) else value


@given(value=JSON)
def test_digest_does_not_see_the_order_of_a_dict(value):
    assert digest(value) == digest(turned_round(value))
    assert len(digest(value)) == 16


def test_digest_is_stable_and_sees_every_part():
    assert digest() == hashlib.sha256().hexdigest()[:16]
    one = hashlib.sha256((3).to_bytes(8, "little") + b"[1]" + (2).to_bytes(8, "little") + b"ab").hexdigest()[:16]
    assert digest([1], b"ab") == one
    different = [
        digest("ab", "c"), digest("a", "bc"), digest("abc"), digest(["ab", "c"]), digest("c", "ab"), digest(b"abc"),
        digest({"a": 1, "b": 2}), digest({"a": 2, "b": 1}), digest(1), digest("1"), digest(True), digest(None),
    ]  # fmt: skip
    assert len(set(different)) == len(different)


def test_file_digest_is_sha256(tmp_path):
    data = os.urandom(1 << 20) + b"x"
    (tmp_path / "a").write_bytes(data)
    assert file_digest(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_cache_root_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAIR_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.delenv("CLAIR_CACHE")
    assert cache_root().name == "clair"
    monkeypatch.setenv("CLAIR_CACHE", "")
    assert cache_root().name == "clair"


def test_versions_are_those_installed():
    import numpy

    assert versions(("numpy",)) == {"numpy": numpy.__version__}
    with pytest.raises(PackageNotFoundError):
        versions(("no-such-package-at-all",))


@pytest.mark.parametrize(("asked", "variable", "answer"), [(True, "", None), (True, "1", True), (False, "", True)])
def test_bars_are_silent_when_asked_or_in_batch_runs(asked, variable, answer, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", variable)
    assert files.silent(asked) is answer
