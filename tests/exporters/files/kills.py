"""Kills a writer of an output folder before each of its system calls that change anything, and looks at what is left.

Run as a command by test_folder.py, in a process without torch's threads, so that it can fork. The child is traced with
ptrace (Linux): it dies where the test says, not where Python says. With ALL_CALLS=1 it dies before every system call.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from exporters.files import Owned, claimed, staged_folder, swap
from passes.errors import OutputError

TRACEME, SYSCALL, SETOPTIONS, SYSCALL_INFO = 0, 24, 0x4200, 0x420E
TRACE_SYSGOOD, EXIT_KILL = 1, 1 << 20
CHANGING = {  # write pwrite64 flock ftruncate, then those on names, modes and times
    "x86_64": {1, 18, 73, 77, 82, 83, 84, 85, 86, 87, 88, 90, 91, 92, 93, 94, 188, 258, 260, 263, 264, 265, 266, 268}
    | {280, 316},
    "aarch64": {64, 68, 32, 46, 34, 35, 36, 37, 38, 52, 53, 54, 55, 5, 88, 276},
}
OPENAT = {"x86_64": 257, "aarch64": 56}

libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long

EVENTS = {"os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.chmod", "os.truncate"}
"""What Python tells its audit hooks before it changes something; they may refuse it."""

Tree = dict[str, str]
OWNED = Owned(
    names=frozenset({"hf", "onnx", "plan.json", "recovery", "lpc.json"}),
    is_made=lambda folder: (folder / "lpc.json").is_file(),
)
OLD: Tree = {"hf/w": "old", "plan.json": "old", "recovery/stale": "old", "lpc.json": "old"}
NEW: Tree = {"hf/w": "new", "hf/x/y": "new", "plan.json": "new", "lpc.json": "new!"}
THIRD: Tree = {"onnx/m": "third", "plan.json": "third", "lpc.json": "third"}
THEIRS: Tree = {"notes.txt": "mine", "data/a/b": "mine", "data/c": "mine"}


class Info(ctypes.Structure):
    """struct ptrace_syscall_info, as far as a system call's entry needs it."""

    _fields_ = (
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
        ("more", ctypes.c_uint64),
    )


def write(folder: Path, tree: Tree) -> None:
    for name, text in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def read(folder: Path) -> Tree | None:
    """The files of a folder and what they say; None if it is not there."""
    if not folder.is_dir():
        return None
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def put(out: Path, tree: Tree, *, force: bool) -> None:
    with staged_folder(out, force=force, owned=OWNED) as stage:
        write(stage, tree)


def killed(action: Callable[[], None], at: int) -> bool:
    """Run the action in a child that dies before its call number ``at``; False if it ends before."""
    child = os.fork()
    if not child:
        libc.ptrace(TRACEME, 0, None, None)
        os.kill(os.getpid(), signal.SIGSTOP)
        action()
        os._exit(0)
    os.waitpid(child, 0)
    libc.ptrace(SETOPTIONS, child, None, TRACE_SYSGOOD | EXIT_KILL)
    count = 0
    while True:
        libc.ptrace(SYSCALL, child, None, None)
        _, status = os.waitpid(child, 0)
        if not os.WIFSTOPPED(status):
            assert os.waitstatus_to_exitcode(status) == 0
            return False
        if os.WSTOPSIG(status) == signal.SIGTRAP | 0x80 and _changes(child):
            if count == at:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return True
            count += 1


def _changes(child: int) -> bool:
    """Whether the child stands at the entry of a call that changes files or locks."""
    info = Info()
    if libc.ptrace(SYSCALL_INFO, child, ctypes.sizeof(info), ctypes.addressof(info)) <= 0:
        raise OSError(ctypes.get_errno(), "no PTRACE_GET_SYSCALL_INFO")
    if info.op != 1:
        return False
    machine = platform.machine()
    if os.environ.get("ALL_CALLS") or machine not in CHANGING:
        return True
    creates = info.nr == OPENAT[machine] and bool(info.args[2] & os.O_CREAT)
    return creates or info.nr in CHANGING[machine]


def failing(action: Callable[[], None], at: int) -> bool:
    """Run the action in a child whose change number ``at`` is refused by the disk; False if it ends before.

    It must end well or with an OutputError.
    """
    child = os.fork()
    if not child:
        count, done = 0, False

        def refuse(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count, done
            opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            if opens or event in EVENTS:
                count += 1
                if count == at + 1:
                    done = True
                    raise OSError(errno.ENOSPC, "No space left on device")

        sys.addaudithook(refuse)
        try:
            action()
        except OutputError:
            pass
        except BaseException as error:  # noqa: BLE001 - said, and turned into a code
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            os._exit(1)
        os._exit(0 if done else 7)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in {0, 7}, f"at change {at}: {status}"
    return os.WEXITSTATUS(status) == 0


def each_moment(kind: str, stop: Callable[[Callable[[], None], int], bool]) -> int:
    """Stop a writer at every moment; the output must be whole after each, and after the next run."""
    moment = 0
    while True:
        root = Path(tempfile.mkdtemp(prefix="kills-"))
        out, real, before = scene(root, kind)
        after = {**NEW, **(THEIRS if kind not in {"fresh", "empty"} else {})}
        force = kind not in {"fresh", "empty"}
        stopped = stop(lambda out=out, force=force: put(out, NEW, force=force), moment)
        whole = [tree for tree in (before, after) if tree is not None] + ([None] if before in (None, {}) else [])
        found = read(real)
        moved = (
            kind == "no links" and NEW.items() <= (found or {}).items() <= after.items()
        )  # the user's files come last
        assert found in whole or moved or (kind == "two renames" and found is None), (kind, moment, found)
        assert stopped or found == after, (kind, moment, found)
        with claimed(out, force=True, owned=OWNED):
            found = read(real)
        assert found in whole, (kind, moment, "after the next run", found)
        put(out, THIRD, force=True)
        assert read(real) == {**THIRD, **(THEIRS if force else {})}, (kind, moment, "after the last", read(real))
        assert sorted(os.listdir(root)) == sorted({out.name, real.name}), (kind, moment, os.listdir(root))
        shutil.rmtree(root)
        if not stopped:
            return moment
        moment += 1


def scene(root: Path, kind: str) -> tuple[Path, Path, Tree | None]:
    """The output as it is named, where it really is, and what it holds."""
    out = real = root / "out"
    if kind == "symlink":
        real = root / "real"
        out.symlink_to(real)
    if kind == "fresh":
        return out, real, None
    real.mkdir()
    if kind == "empty":
        return out, real, {}
    write(real, {**OLD, **THEIRS})
    return out, real, {**OLD, **THEIRS}


def random_runs(seed: int, rounds: int) -> int:
    """Runs one after another, killed at random, while the user changes files of his own; returns how many died."""
    choose, died = random.Random(seed), 0
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    out, mine, model = root / "out", Tree(), Tree()
    for number in range(rounds):
        names = [name for name in ("hf/a", "hf/b", "onnx/c", "plan.json", "recovery/d") if choose.random() < 0.5]
        tree = dict.fromkeys((*names, "lpc.json"), f"{number}")
        at = choose.randrange(60)
        dead = killed(lambda tree=tree: put(out, tree, force=True), at)
        died += dead
        found = read(out) or {}
        allowed = [{**model, **mine}, {**tree, **mine}] if dead else [{**tree, **mine}]
        assert found in allowed, (seed, number, at, found, allowed)
        if choose.random() < 0.5:
            with claimed(out, force=True, owned=OWNED):
                found = read(out) or {}
        assert found in allowed, (seed, number, at, found, allowed)
        if found == allowed[0] and dead and (root / ".out.lpc" / swap.READY).exists():
            with claimed(out, force=True, owned=OWNED):  # settled before the user changes anything
                found = read(out) or {}
        model = {name: text for name, text in found.items() if name not in mine}
        for name in ("notes", "data/x", "data/deep/y"):
            if found and choose.random() < 0.3:
                mine[name] = f"mine {number}"
                write(out, {name: mine[name]})
    shutil.rmtree(root)
    return died


def unlinkable(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def main(mode: str, kind: str) -> None:
    os.fsync = lambda descriptor: None  # type: ignore[assignment]  # a kill loses nothing that the kernel has
    if kind == "two renames":
        swap.exchange = lambda first, second: False
    if kind == "no links":
        os.link = unlinkable  # type: ignore[assignment]
    if mode == "random":
        sys.stdout.write(f"{random_runs(int(kind), 40)}\n")
    else:
        sys.stdout.write(f"{each_moment(kind, killed if mode == 'kill' else failing)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
