"""Writing an artefact: the old state or the new one, whatever fails, dies or races."""

import errno
import os
import signal
import subprocess
import threading
import time

import pytest
import torch

import glmc.artifact_write as writing
from glmc.artifact import Artifact
from glmc.artifact_write import ArtifactWriter, rename_new
from glmc.errors import OutputBusy, OutputExists, StorageError

LAYOUT = [("a", "BF16", (8, 8)), ("odd", "F32", (5,)), ("b", "F32", (32,))]
CALLS = ("open", "mkdir", "posix_fallocate", "pwrite", "fsync", "rename", "ftruncate")


def write(out, deadline=10.0, torch_too=True):
    with ArtifactWriter(out, deadline) as writer:
        writer.reserve(1000)
        writer.add_json("program.json", {"steps": [1]})
        writer.add_bytes("regions/layer.py", b"x" * 20)
        writer.add_file("tokenizer.json", __file__)
        if torch_too:
            sink = writer.weights(LAYOUT, shard_bytes=200)
            for name, dtype, shape in LAYOUT:
                sink.write(name, torch.ones(shape, dtype={"BF16": torch.bfloat16, "F32": torch.float32}[dtype]))
        writer.seal({"glmc": "0.1.0"})


def state(out):
    """"absent", or "complete" after every digest was compared."""
    if not os.path.lexists(out):
        return "absent"
    Artifact.open(out).verify(1)
    return "complete"


def beside(folder):
    return sorted(p.name for p in folder.iterdir())


class Fault:
    """Lets the n-th of the file system's calls fail or kill, and counts them."""

    def __init__(self, monkeypatch, at, act):
        self.count, self.at, self.act = 0, at, act
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(getattr(os, name)))
        monkeypatch.setattr(writing, "rename_new", self.wrap(rename_new))

    def wrap(self, real):
        def call(*args, **kwargs):
            self.count += 1
            if self.count == self.at:
                self.act()
            return real(*args, **kwargs)
        return call


def steps(tmp_path, torch_too=True):
    with pytest.MonkeyPatch.context() as patch:
        counter = Fault(patch, -1, None)
        write(tmp_path / "count.glmc", torch_too=torch_too)
    return counter.count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, errno.EACCES, errno.EROFS],
                         ids=errno.errorcode.get)
def test_an_error_at_every_call_leaves_nothing(tmp_path, number):
    total = steps(tmp_path)
    assert total > 20

    def act():
        raise OSError(number, os.strerror(number))

    for at in range(1, total + 1):
        place = tmp_path / str(at)
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, at, act)
            with pytest.raises(StorageError) as caught:
                write(place / "x.glmc")
        assert os.strerror(number) in str(caught.value)
        assert set(beside(place)) <= {".x.glmc.lock"}, at
        write(place / "x.glmc")
        assert state(place / "x.glmc") == "complete"


@pytest.mark.parametrize("kind", [KeyboardInterrupt, MemoryError, SystemExit])
def test_an_interrupt_at_every_call_leaves_nothing(tmp_path, kind):
    def act():
        raise kind

    for at in range(1, steps(tmp_path) + 1):
        place = tmp_path / str(at)
        place.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            Fault(patch, at, act)
            with pytest.raises(kind):
                write(place / "x.glmc")
        assert set(beside(place)) <= {".x.glmc.lock"}, at


def in_a_child(work):
    """Run `work` in a forked process; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def test_a_kill_at_every_call_leaves_old_or_new(tmp_path):
    """No torch in the children: its threads do not survive a fork."""
    seen = set()
    for at in range(1, steps(tmp_path, torch_too=False) + 1):
        out = tmp_path / str(at) / "x.glmc"
        out.parent.mkdir()

        def work(out=out, at=at):
            Fault(pytest.MonkeyPatch(), at, lambda: os.kill(os.getpid(), signal.SIGKILL))
            write(out, torch_too=False)

        assert os.WTERMSIG(in_a_child(work)) == signal.SIGKILL
        seen.add(state(out))
        if state(out) == "absent":
            write(out, deadline=1.0)  # no manual help
        assert state(out) == "complete"
        assert beside(out.parent) == [".x.glmc.lock", "x.glmc"]
    assert seen == {"absent", "complete"}


def test_a_full_disk(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    try:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False,
                                 capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no mount program")
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.strip()}")
    try:
        for size in (2 << 20, (1 << 20) - 100):
            with pytest.raises(StorageError, match="not enough space"), ArtifactWriter(place / "x.glmc") as writer:
                [writer.add_bytes(name, b"x" * count) for name, count in (("a", size), ("b", 1000))]
            assert beside(place) == [".x.glmc.lock"]
        with pytest.raises(StorageError, match="bytes free") as caught, ArtifactWriter(place / "x.glmc") as writer:
            writer.weights([("w", "F32", (1 << 20,))])
        assert "4194" in str(caught.value.expected)
        write(place / "x.glmc")
        assert state(place / "x.glmc") == "complete"
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize("make", [lambda p: p.mkdir(), lambda p: p.write_text(""), lambda p: p.symlink_to("nowhere")],
                         ids=["folder", "file", "dangling link"])
def test_an_existing_target_is_never_touched(tmp_path, make):
    make(tmp_path / "x.glmc")
    with pytest.raises(OutputExists):
        write(tmp_path / "x.glmc")
    assert beside(tmp_path) == ["x.glmc"]


@pytest.mark.parametrize("kernel", [True, False], ids=["renameat2", "fallback"])
def test_a_target_that_appears_meanwhile_wins(tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.setattr(writing.ctypes, "CDLL", lambda *args, **kwargs: object())
    out = tmp_path / "x.glmc"
    with pytest.raises(OutputExists), ArtifactWriter(out) as writer:
        writer.seal({}, check=out.mkdir)
    assert beside(tmp_path) == [".x.glmc.lock", "x.glmc"]
    assert beside(out) == []
    write(tmp_path / "y.glmc")
    assert state(tmp_path / "y.glmc") == "complete"


def test_writers_at_once_make_one_artefact(tmp_path):
    for number in range(5):
        out = tmp_path / str(number) / "x.glmc"
        out.parent.mkdir()
        ends = []

        def work(out=out, ends=ends):
            try:
                write(out)
                ends.append("made")
            except OutputExists:
                ends.append("exists")

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(ends) == ["exists"] * 3 + ["made"]
        assert state(out) == "complete"
        assert beside(out.parent) == [".x.glmc.lock", "x.glmc"]


def test_a_held_lock_names_its_holder_and_ends_with_it(tmp_path):
    out = tmp_path / "x.glmc"
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        ArtifactWriter(out).__enter__()
        os.write(told, b"x")
        time.sleep(60)
        os._exit(1)
    os.read(ready, 1)
    with pytest.raises(OutputBusy, match=f"process {child}"):
        write(out, deadline=0.1)
    assert f".x.glmc.{child}.tmp" in beside(tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    write(out, deadline=1.0)
    assert beside(tmp_path) == [".x.glmc.lock", "x.glmc"]
    os.close(ready)
    os.close(told)


def test_only_dead_writers_folders_of_this_target_are_swept(tmp_path):
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    kept = [f".x.glmc.{os.getppid()}.tmp", f".y.glmc.{dead}.tmp", ".x.glmc.abc.tmp", f"x.glmc.{dead}.tmp"]
    for name in [*kept, f".x.glmc.{dead}.tmp", f".x.glmc.{os.getpid()}.tmp"]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights-00001.safetensors").write_text("half")
    (tmp_path / ".x.glmc.1.tmp").symlink_to(tmp_path / kept[1])
    write(tmp_path / "x.glmc")
    assert beside(tmp_path) == sorted([*kept, ".x.glmc.1.tmp", ".x.glmc.lock", "x.glmc"])


def test_a_parent_that_is_not_there(tmp_path):
    with pytest.raises(StorageError):
        write(tmp_path / "none" / "x.glmc")
    assert beside(tmp_path) == []


def test_contents_are_durable_before_the_name(tmp_path, monkeypatch):
    log = []
    paths = {}
    real_open, real_sync, real_close = os.open, os.fsync, os.close

    def note_open(path, flags, *rest, **more):
        descriptor = real_open(path, flags, *rest, **more)
        paths[descriptor] = (str(path), bool(flags & os.O_WRONLY))
        if flags & os.O_WRONLY:
            log.append(("create", str(path)))
        return descriptor

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda fd: (log.append(("sync", paths[fd][0])), real_sync(fd))[1])
    monkeypatch.setattr(os, "close", real_close)
    monkeypatch.setattr(writing, "rename_new",
                        lambda source, target: (log.append(("rename", str(source))), rename_new(source, target))[1])
    write(tmp_path / "x.glmc")
    renamed = next(i for i, (what, _) in enumerate(log) if what == "rename")
    temporary = log[renamed][1]
    synced = [path for what, path in log[:renamed] if what == "sync"]
    created = [path for what, path in log if what == "create"]
    assert len(created) == len(set(created)) >= 6
    assert set(created) <= set(synced)
    assert synced[-2:] == [f"{temporary}/regions", temporary]
    assert log[renamed + 1:] == [("sync", str(tmp_path))]


def test_the_same_input_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "x.glmc")
    assert subprocess.run(["diff", "-r", tmp_path / "one" / "x.glmc", tmp_path / "two" / "x.glmc"],
                          check=False).returncode == 0
