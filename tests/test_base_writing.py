"""Files and folders whole or absent, files of any kind that a user names, locks, progress."""

import argparse
import ast
import contextlib
import errno
import io
import multiprocessing
import os
import pty
import stat
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest

from data.base import locking, progress, writing
from data.base.errors import UserError
from data.base.parser import Parser, out_folder, out_place, target
from data.images import originals, prepared, specs
from data.run.options import evaluate_options, train_options

ROOT = Path(__file__).parents[1]
PACKAGES = ("data", "trunk_jax", "trunk_torch_ref", "parity", "benchmarks")
LARGE = bytes(range(256)) * 1024  # more than a pipe holds


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


# --- files that a user named


def test_a_link_stays_and_its_target_is_replaced(tmp_path):
    file, link, second = tmp_path / "there" / "file", tmp_path / "link", tmp_path / "second"
    file.parent.mkdir()
    file.write_text("old")
    link.symlink_to(file)
    second.symlink_to("link")
    writing.save_bytes(second, b"new")
    assert file.read_bytes() == b"new"
    assert (os.readlink(link), os.readlink(second)) == (str(file), "link")
    assert os.listdir(file.parent) == ["file"]
    # one that leads to where nothing is yet
    link.unlink()
    link.symlink_to(tmp_path / "there" / "other")
    writing.check_target(second)
    writing.save_bytes(second, b"made")
    assert (tmp_path / "there" / "other").read_bytes() == b"made"
    assert link.is_symlink()


def test_a_regular_file_is_replaced_at_once_and_keeps_its_mode(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o640)
    before = file.stat().st_ino
    writing.save_json(file, {"a": 1})
    assert file.read_text() == '{\n "a": 1\n}\n'
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.stat().st_ino != before
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "fsync", failing(full))
    with pytest.raises(UserError, match=r"cannot write .*file: No space left on device; make room"):
        writing.save_bytes(file, b"new")
    assert file.read_text() == '{\n "a": 1\n}\n'
    assert os.listdir(tmp_path) == ["file"]


def test_a_file_whose_folder_may_not_be_written_is_written_in_place(tmp_path, monkeypatch):
    """As a file that is mounted into a container: it cannot be renamed over."""
    file = tmp_path / "file"
    file.write_text("old and longer")
    before = file.stat().st_ino
    monkeypatch.setattr(os, "replace", failing(OSError(errno.EBUSY, os.strerror(errno.EBUSY))))
    writing.save_bytes(file, b"new")
    assert (file.read_bytes(), file.stat().st_ino) == (b"new", before)
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(UserError, match="cannot write"):
        writing.save_bytes(tmp_path / "not there", b"new")


def test_a_named_pipe_is_written_to(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()), daemon=True)
    reader.start()
    writing.check_target(pipe)  # does not wait for the reader, and sends nothing
    writing.save_bytes(pipe, LARGE)
    reader.join(20)
    assert got == [LARGE]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to():
    ours, theirs = pty.openpty()
    try:
        device = Path(os.ttyname(theirs))
        writing.save_bytes(device, b"text")
        assert os.read(ours, 100) == b"text"
        assert stat.S_ISCHR(device.stat().st_mode)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.parametrize("name", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_an_open_file_goes_on_where_it_is(tmp_path, name):
    """As /dev/stdout of a command whose output goes to a file: nothing is lost or replaced."""
    file = tmp_path / "out"
    with open(file, "wb", buffering=0) as out:
        out.write(b"before\n")
        link = tmp_path / "link"
        link.symlink_to(name.format(out.fileno()))
        writing.check_target(link)
        writing.save_bytes(link, b"text\n")
        out.write(b"after\n")
    assert file.read_bytes() == b"before\ntext\nafter\n"
    with pytest.raises(UserError, match="cannot write /dev/fd/999: Bad file descriptor"):
        writing.check_target(Path("/dev/fd/999"))


def test_what_a_shell_gives_for_a_process(tmp_path):
    """`>(...)` is the number of a pipe."""
    out, into = os.pipe()
    try:
        path = Path(f"/dev/fd/{into}")
        assert not writing.is_regular(path)
        writing.save_bytes(path, b"text")
        assert os.read(out, 100) == b"text"
        os.close(out)
        with pytest.raises(UserError, match="its reader went away; name another file"):
            writing.save_bytes(path, b"text")
    finally:
        os.close(into)


def test_standard_output_by_either_name(capfd):
    print("before")
    writing.save_bytes(Path("-"), b"text\n")
    writing.save_bytes(Path("/dev/stdout"), b"more\n")
    print("after")
    assert capfd.readouterr().out.split() == ["before", "text", "more", "after"]
    assert stat.S_ISLNK(Path("/dev/stdout").lstat().st_mode)
    assert [writing.is_stdout(Path(n)) for n in ("-", "/dev/stdout", "/dev/null", "/dev/fd/2")] == [
        *(True, True, False, False)
    ]
    for stream in (io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()):  # a notebook's own
        with contextlib.redirect_stdout(stream):
            print("before")
            writing.save_bytes(Path("-"), b"text\n")
        stream.seek(0)
        assert stream.read() == "before\ntext\n"
    assert capfd.readouterr().out == ""


def test_what_cannot_be_written_is_refused_beforehand_and_nothing_is_made(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "gone" / "file")
    before = sorted(tmp_path.rglob("*"))
    problems = {
        "gone/file": f"{tmp_path / 'gone'} does not exist; make it, or choose another place",
        "link": f"{tmp_path / 'gone'} does not exist; make it, or choose another place",
        "file/below": "Not a directory; choose another place",
        "folder": "it is a folder; name a file",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError) as caught:
            writing.check_target(tmp_path / name)
        assert str(caught.value) == f"cannot write {tmp_path / name}: {problem}"
        with pytest.raises(UserError, match="cannot write"):
            writing.save_bytes(tmp_path / name, b"text")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    for name in ("file", "new"):
        with pytest.raises(UserError, match="may"):
            writing.check_target(tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_cannot_be_made_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    problems = {
        "": "it is empty; name a place to write",
        "-": "cannot write -: it would be standard output; name a folder",
        "file": "file is a file; name a folder",
        "link": "link is a file; name a folder",
        "file/a/b": f"cannot write file/a/b: {tmp_path}/file is no folder; choose another place",
    }
    for name, problem in problems.items():
        with pytest.raises(UserError) as caught:
            train_options("jax", ["--out", name])
        assert str(caught.value) == f"argument --out: {problem} (see --help)"
    assert [out_folder(name) for name in ("new/run", str(tmp_path))] == ["new/run", str(tmp_path)]
    assert [out_place(name) for name in ("new/run", "file")] == ["new/run", "file"]
    for name in ("", "file/a"):
        with pytest.raises(argparse.ArgumentTypeError):
            out_place(name)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for kind in (out_folder, out_place):
        with pytest.raises(argparse.ArgumentTypeError, match=f"may be written in {tmp_path}; cho"):
            kind("new/run")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link"]


def test_only_what_can_be_removed_is_to_be_removed(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("gone")
    for name in ("", "link"):
        with pytest.raises(UserError, match=r" exists; remove it, or choose another --out$"):
            writing.need_new(tmp_path / name)
    for device in (tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError, match=f"^{device} exists; choose another --out$"):
            writing.need_new(device)
    writing.need_new(tmp_path / "new")


def test_what_is_made_aside_has_the_form_of_leftovers(tmp_path, monkeypatch):
    """Whatever makes it, so that what a killed process leaves can be told from a user's files."""
    seen = []

    def look(*_):
        seen.append(writing.leftovers(tmp_path))

    with monkeypatch.context() as patch:
        for module, name in ((os, "fsync"), (writing, "_allocate")):
            patch.setattr(module, name, look)
        writing.write_bytes(tmp_path / "file", b"text")
        writing.reserve(tmp_path, 10)
    (tmp_path / "folder").mkdir()
    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda *both: (rename(*both), look())[0])
    with writing.new_folder(tmp_path / "folder", replace=True):
        look()
    assert [len(found) for found in seen] == [1, 1, 1, 2, 1]
    assert writing.leftovers(tmp_path) == []


def test_a_name_as_long_as_the_system_takes(tmp_path):
    file = tmp_path / ("n" * 255)
    writing.save_bytes(file, b"text")
    assert file.read_bytes() == b"text"


# --- the flags of all commands


def flags():
    """(file, flag, keywords) of every flag that is declared anywhere."""
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text())):
                if not (isinstance(node, ast.Call) and node.args):
                    continue
                first = node.args[0]
                if isinstance(first, ast.Constant) and str(first.value).startswith("--"):
                    words = {k.arg: ast.unparse(k.value) for k in node.keywords}
                    yield file.relative_to(ROOT), first.value, words


# Files that are read, not written.
READ = ("--file", "--recipe", "--weights", "--from", "--names", "--published")


def test_every_flag_that_names_a_file_to_write_is_checked_beforehand():
    written = [
        (str(file), flag, words)
        for file, flag, words in flags()
        if flag == "--json" or (words.get("metavar") == "'FILE'" and flag not in READ)
    ]
    assert len(written) >= 15
    assert [(file, flag) for file, flag, words in written if words.get("type") != "target"] == []
    places = [
        (str(file), words)
        for file, flag, words in flags()
        if flag in ("--out", "--folder")
        and ("help" in words or "default" in words)  # a flag of a parser
    ]
    assert len(places) >= 16
    kinds = ("target", "out_folder", "out_place")
    assert [file for file, words in places if words.get("type") not in kinds] == []


ADDRESSES = ("gs://bucket/run", "s3://b/x.json", "hf://datasets/x")


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_no_place_to_write(address, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for flag in ("--out", "--json"):
        with pytest.raises(UserError, match=f"argument {flag}: cannot write {address}: it is an"):
            train_options("jax", [flag, address])
    with pytest.raises(UserError, match="it is an address"):
        writing.check_target(Path(address))
    assert list(tmp_path.iterdir()) == []
    assert out_folder("C:/run") == "C:/run"


def test_every_command_has_the_parser_that_expands_a_home_folder():
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file != ROOT / "data" / "base" / "parser.py":
                assert "ArgumentParser(" not in file.read_text(), file
    paths = [(str(file), flag) for file, flag, words in flags() if "Path" in words.get("type", "")]
    assert paths == []


def test_a_home_folder_is_expanded_in_every_flag(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    options = train_options("jax", ["--out=~/run", "--data-dir=~/data", "--json=~/a.json"])
    assert options.out == tmp_path / "run"
    assert options.data_dir == str(tmp_path / "data")
    assert options.json == tmp_path / "a.json"
    assert evaluate_options("torch", ["~/run"]).run == tmp_path / "run"
    parser = Parser()
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--one", nargs="+")
    assert parser.parse_args(["--one", "~/a", "b~", "~"]).one == [
        f"{tmp_path}/a",
        "b~",
        str(tmp_path),
    ]
    with pytest.raises(UserError, match=r"argument --one: ~nobody-here/x: no such home folder"):
        parser.parse_args(["--one=~nobody-here/x"])
    monkeypatch.chdir(tmp_path)
    Path("~backup.png").touch()
    assert parser.parse_args(["--one", "~backup.png"]).one == ["~backup.png"]


def test_a_missing_folder_is_one_line_before_any_work(tmp_path):
    gone = tmp_path / "gone" / "a.json"
    for options in (train_options, evaluate_options):
        for framework in ("jax", "torch"):
            with pytest.raises(UserError) as caught:
                options(framework, ["--json", str(gone)])
            assert str(caught.value) == (
                f"argument --json: cannot write {gone}: {gone.parent} does not exist; make it, or "
                "choose another place (see --help)"
            )
    assert list(tmp_path.iterdir()) == []
    assert target("-") == Path("-")


# --- folders


def fill(path, text):
    with writing.new_folder(path, replace=True) as aside:
        (aside / "a").write_text(text)


def test_a_folder_is_replaced_once_the_new_one_is_whole(tmp_path):
    out = tmp_path / "in" / "out"
    fill(out, "first")
    with writing.new_folder(out, replace=True) as aside:
        (aside / "b").write_text("second")
        assert (out / "a").read_text() == "first"
    assert [file.name for file in out.iterdir()] == ["b"]
    with pytest.raises(ZeroDivisionError), writing.new_folder(out, replace=True):
        raise ZeroDivisionError
    assert (out / "b").read_text() == "second"
    assert list(out.parent.iterdir()) == [out], "nothing is left beside it"


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "no room")])
def test_a_stop_while_a_folder_is_replaced_leaves_the_older_one(tmp_path, monkeypatch, stop):
    out = tmp_path / "out"
    fill(out, "first")
    rename = Path.rename

    def stopped(self, target):
        if self.name.endswith(f".{os.getpid()}.tmp"):
            assert not out.exists(), "the older one is out of the way"
            raise stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopped)
    with pytest.raises((KeyboardInterrupt, UserError)):
        fill(out, "second")
    assert (out / "a").read_text() == "first"
    assert list(tmp_path.iterdir()) == [out]


def test_of_two_that_replace_a_folder_at_once_the_last_stays(tmp_path, monkeypatch):
    out = tmp_path / "out"
    fill(out, "first")
    rename, others = Path.rename, iter(["quicker", "quicker still"])

    def late(self, target):
        if self.name.endswith(f".{os.getpid()}.tmp") and (text := next(others, "")):
            out.mkdir()
            (out / "a").write_text(text)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    fill(out, "mine")
    assert (out / "a").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_no_module_makes_a_folder_of_its_own_to_rename():
    """A folder that is made beside its place is `new_folder`'s; others go into the system's."""
    makers = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        if package != "benchmarks"  # which read from a disk that the user names
        for file in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith(("TemporaryDirectory", "mkdtemp"))
        and any(word.arg == "dir" for word in node.keywords)
    ]
    assert makers == []


def test_a_new_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "above" / "out"
    with pytest.raises(ZeroDivisionError), writing.new_folder(out) as aside:
        (aside / "file").write_text(str(1 / 0))
    assert list(out.parent.iterdir()) == []
    with writing.new_folder(out) as aside:
        (aside / "file").touch()
        assert not out.exists()
    assert [p.name for p in out.parent.rglob("*")] == ["out", "file"]
    for taken in (out, tmp_path / "link"):
        if taken != out:
            taken.symlink_to("nowhere")
        with pytest.raises(UserError, match="exists; remove it, or"), writing.new_folder(taken):
            pytest.fail("it is filled all the same")
    late = tmp_path / "late"
    with pytest.raises(UserError, match=r"late: Directory not empty"), writing.new_folder(late):
        (late / "file").mkdir(parents=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["above", "late", "link"]


def test_no_package_has_a_way_of_its_own_to_write_aside():
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            if file != ROOT / "data" / "base" / "writing.py":
                assert '.tmp"' not in file.read_text(), file


# --- locks


def test_a_lock_is_waited_for(tmp_path):
    file, order, said = tmp_path / ".lock", [], threading.Event()

    def second():
        with locking.alone(file, said.set):
            order.append("second")

    thread = threading.Thread(target=second)
    with locking.alone(file, lambda: pytest.fail("nobody else is there")):
        thread.start()
        assert said.wait(20)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_lock_whose_file_was_removed_meanwhile_is_not_taken(tmp_path, monkeypatch):
    """Between opening and locking, the process before us ended and removed the file."""
    file, flock = tmp_path / ".lock", locking.fcntl.flock

    def late(*arguments):
        file.unlink()
        monkeypatch.setattr(locking.fcntl, "flock", flock)
        return flock(*arguments)

    monkeypatch.setattr(locking.fcntl, "flock", late)
    with pytest.raises(locking.Busy):
        locking._acquire(file, lasting=False)
    locking._acquire(file, lasting=False)()


HOLDER = """
import sys, time
from pathlib import Path
from data.base import locking
if sys.argv[2] == "mark":
    locking.fcntl = None
with locking.alone(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", ["system", "mark"])
def test_the_lock_of_a_dead_process_is_no_lock(tmp_path, monkeypatch, how):
    file = tmp_path / ".lock"
    if how == "mark":
        monkeypatch.setattr(locking, "fcntl", None)
    command = [sys.executable, "-c", HOLDER, str(file), how]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(locking.Busy):
                locking._acquire(file)
        finally:
            holder.kill()
    left = list(tmp_path.iterdir())
    assert left  # it could not tidy up
    with locking.alone(file, lambda: pytest.fail("a dead process holds nothing")):
        pass


def test_a_mark_where_the_system_has_no_locks(tmp_path, monkeypatch):
    no_locks = types.SimpleNamespace(
        flock=failing(OSError(errno.ENOLCK, "none")), LOCK_EX=0, LOCK_NB=0
    )
    monkeypatch.setattr(locking, "fcntl", no_locks)
    file, mark = tmp_path / ".lock", tmp_path / ".lock.process"
    with locking.hold(tmp_path):
        assert mark.read_text().split()[0] == str(os.getpid())
        with pytest.raises(UserError, match="in use by another process"), locking.hold(tmp_path):
            pass
    assert not mark.exists()
    # of another machine: nothing is known of its process, but no work takes a day
    mark.write_text("1 elsewhere")
    with pytest.raises(locking.Busy):
        locking._acquire(file)
    os.utime(mark, (1, 1))
    locking._acquire(file)()
    assert not mark.exists()


def test_the_locks_of_windows(tmp_path, monkeypatch):
    held = set()

    def lock(number, how, size):
        place = os.fstat(number).st_ino
        if place in held:
            raise OSError(errno.EACCES, "Permission denied")
        held.add(place)

    monkeypatch.setattr(locking, "fcntl", None)
    monkeypatch.setattr(locking, "msvcrt", types.SimpleNamespace(locking=lock, LK_NBLCK=2))
    held.clear()
    locking._acquire(tmp_path / ".lock")
    with pytest.raises(UserError, match="in use by another process"), locking.hold(tmp_path):
        pass


# --- progress


def test_lines_say_how_far_how_quick_and_how_long(monkeypatch):
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr(progress, "_clock", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", said)
    with progress.counting("downloading x", 50_000_000, progress.BYTES, 10_000_000) as advance:
        for _ in range(20):  # a second each: the first line after 2 s, then every 10
            now[0] += 1
            advance(1_000_000)
    assert said.getvalue().splitlines() == [
        "downloading x: 12.0 of 50.0 MB, 1.0 MB/s, 0:38 left",
        "downloading x: 22.0 of 50.0 MB, 1.0 MB/s, 0:28 left",
    ]
    said.truncate(0)
    said.seek(0)
    for _ in progress.counted("decoding x", range(3000), None):
        now[0] += 0.001
    assert said.getvalue().splitlines() == ["decoding x: 2,000 images, 1,000 images/s"]
    said.truncate(0)
    said.seek(0)
    with progress.counting("decoding x", 3000) as advance:
        now[0] += 5  # workers start; what one image took tells nothing of the others
        advance(1)
        now[0] += 10
        advance(1000)
    assert said.getvalue().splitlines() == [
        "decoding x: 1 of 3,000 images",
        "decoding x: 1,001 of 3,000 images, 100 images/s, 0:20 left",
    ]


def test_decoding_and_writing_a_dataset_say_how_far_they_are(monkeypatch):
    seen = []

    @contextlib.contextmanager
    def counting(what, total, *_):
        seen.append((what, total))
        yield lambda more: None

    monkeypatch.setattr(progress, "counting", counting)
    monkeypatch.setattr(prepared, "opened", lambda *_: None)
    monkeypatch.setattr(prepared, "records", lambda *_: [b""] * 3)
    monkeypatch.setattr(prepared, "_example", lambda _, spec: (np.zeros(spec.image_shape), 0))
    prepared.decode(specs.spec("svhn"), Path())
    assert seen == [("decoding svhn, train", 3), ("decoding svhn, test", 3)]
    assert list(originals._shown([1], desc="Shuffling ...", total=1, unit=" examples")) == [1]
    assert seen[2:] == [("writing", 1)]


def test_work_that_takes_long_says_what_it_is(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "_STEP_S", 0.01)
    with progress.working("classifying 3 images"):
        for _ in range(1000):  # until its line is there
            if said.getvalue():
                break
            time.sleep(0.01)
    assert said.getvalue() == "classifying 3 images ...\n"
    monkeypatch.setattr(progress, "_STEP_S", 3600.0)
    with progress.working("classifying 4 images"):
        pass
    assert said.getvalue() == "classifying 3 images ...\n"  # and no thread is left to say more
    assert not [t for t in threading.enumerate() if isinstance(t, threading.Timer) and t.is_alive()]


class Terminal(io.StringIO):
    """What a terminal was sent."""

    def isatty(self):
        return True


def test_a_step_within_another_is_shown_in_its_place(monkeypatch):
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "xterm")
    with progress.working("exporting"):
        outer = progress._shown[-1]
        heard = []
        progress._shown.append(lambda words: (heard.append(words), outer(words)))
        with progress.working("classifying [images]"):
            pass
        with progress.counting("decoding", 10) as advance:
            advance(10)
        progress._shown.pop()
    assert heard[:2] == ["classifying [images]", ""]
    assert heard[2] == "decoding: 10 of 10 images"  # all at once: there is no rate
    assert heard[3:] == [""]
    assert progress._shown == []
    assert said.getvalue().count("\x1b[?25l") == 1  # one live display: the cursor is hidden once


def test_a_worker_process_leaves_the_words_to_its_parent(monkeypatch):
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(multiprocessing, "parent_process", object)
    with progress.working("compiling"):
        assert progress._shown == []
    assert said.getvalue() == ""


def test_what_waits_for_others_says_how_far_they_are(monkeypatch):
    said, done = io.StringIO(), [0]
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(progress, "_NEXT_S", 0.01)
    with progress.watching(lambda: f"{done[0]} of 5 tasks"):
        for count in (1, 3):
            done[0] = count
            for _ in range(1000):  # until its line is there
                if f"{count} of 5 tasks\n" in said.getvalue():
                    break
                time.sleep(0.01)
    lines = said.getvalue().splitlines()
    assert {"1 of 5 tasks", "3 of 5 tasks"} <= set(lines)
    monkeypatch.setattr(progress, "_NEXT_S", 3600.0)
    with progress.watching(lambda: "never"):
        pass
    assert said.getvalue().splitlines() == lines
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "_NEXT_S", 0.0)
    with progress.watching(lambda: "never"):
        pass
    assert terminal.getvalue() == ""


ROW = {"train_loss": 1.0, "train_accuracy": 0.5, "validation_accuracy": 0.25, "seconds": 40.0}


def test_a_long_epoch_says_how_far_it_is_every_ten_seconds(monkeypatch):
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr(progress, "_clock", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", said)
    with progress.Reporter() as report:
        for place in range(1, 9):  # 4 s each
            now[0] += 4
            report(stage="root/class", epoch=1, epochs=2, share=place / 8)
        report(stage="root/class", epoch=1, epochs=2, share=1.0, row=ROW)
    lines = said.getvalue().splitlines()
    assert lines[:2] == [
        "root/class     epoch   1/2   38% of it  0:52 left",
        "root/class     epoch   1/2   75% of it  0:40 left",
    ]
    assert lines[2].startswith("root/class     epoch   1/2  loss 1.0000  train  50.00 %")
    assert len(lines) == 3


def test_short_epochs_have_a_line_each_and_no_more(monkeypatch):
    now, said = [100.0], io.StringIO()
    monkeypatch.setattr(progress, "_clock", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", said)
    with progress.Reporter() as report:
        for epoch in range(1, 7):  # 8 s each
            for place in (0.5, 1.0):
                now[0] += 4
                report(stage="root/class", epoch=epoch, epochs=6, share=place)
            report(stage="root/class", epoch=epoch, epochs=6, share=1.0, row=ROW)
    assert len(said.getvalue().splitlines()) == 6


def test_a_training_on_a_terminal_shows_that_it_compiles(monkeypatch):
    said = Terminal()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    with progress.Reporter() as report:
        with progress.working("compiling the training steps"):
            pass
        report(stage="root/class", epoch=1, epochs=2, share=0.5)
        with progress.working("taking the average likelihoods"):
            pass
    assert progress._shown == []
    text = said.getvalue()
    for words in ("compiling the training steps", "taking the average likelihoods", "root/class"):
        assert words in text
    assert text.count("\x1b[?25l") == 1
