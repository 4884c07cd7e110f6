"""The workloads: what ordinary programs do to a tree, and how each is timed.

A scenario sets its files up (untimed) and takes one or more measures on them. All of its
randomness comes from the turn's seed, so both sides of a pair do the same calls with the same
bytes. Every MiB written is unique: content that the cluster has already would not be sent again.

Loops are Python's: about 0.3 us a call that is billed to both sides alike. fio's job files, run by
the scenario of that name, do without.
"""

import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tarfile
import time

from targets import BenchError

KIB = 1 << 10
MIB = 1 << 20
PAGE = 4 * KIB
RECORD = b"2024-01-01T00:00:00Z what a program writes to its log".ljust(99, b".") + b"\n"


@dataclasses.dataclass(frozen=True)
class Measure:
    """One row of the table. A bar is what the row of the default mount must reach."""

    name: str
    unit: str                       # "op/s" and "MiB/s": more is better; "s": less is better
    text: str
    ratio_min: float | None = None  # speed, as a part of the local disk's
    seconds_max: float | None = None
    rate_min: float | None = None
    rpcs_max: int | None = None


@dataclasses.dataclass(frozen=True)
class Scenario:
    name: str
    run: object                     # called with a Turn
    measures: tuple


@dataclasses.dataclass
class Sample:
    """What one measure of one turn gave."""

    count: float = 1                # operations, or MiB
    seconds: float = 0
    rpcs: dict = dataclasses.field(default_factory=dict)
    log_entries: int = 0
    latencies_us: list = dataclasses.field(default_factory=list)

    def value(self, unit):
        return self.seconds if unit == "s" else self.count / self.seconds


class Turn:
    """One scenario on one target."""

    def __init__(self, target, scale, seed):
        self.target = target
        self.scale = scale
        self.random = random.Random(seed)
        self.samples = {}
        self.loop_seconds = max(0.02, min(1.0, scale))
        self._block = bytearray(self.random.randbytes(MIB))
        self._serial = 0

    def path(self, *parts):
        return os.path.join(self.target.root, *parts)

    def number(self, full, least=8):
        """A count or a size in MiB at full scale, scaled."""
        return max(least, int(full * self.scale))

    # -- content

    def content(self, size=MIB):
        """`size` <= 1 MiB bytes that were not written before. Valid until the next call."""
        self._serial += 1
        self._block[:8] = self._serial.to_bytes(8, "little")
        return memoryview(self._block)[:size]

    def write(self, path, size, sync=False):
        """Creates or replaces a file: write, fsync if asked, close."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            while size > 0:
                size -= os.write(fd, self.content(min(size, MIB)))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, path):
        """Reads a file to its end: bytes seen."""
        fd = os.open(path, os.O_RDONLY)
        try:
            total = 0
            while piece := os.read(fd, MIB):
                total += len(piece)
            return total
        finally:
            os.close(fd)

    # -- timing

    @contextlib.contextmanager
    def measure(self, name):
        rpcs, entries = self.target.counters()
        sample = Sample()
        start = time.perf_counter()
        yield sample
        sample.seconds = sample.seconds or time.perf_counter() - start
        rpcs_after, entries_after = self.target.counters()
        for method, count in rpcs_after.items():
            if count != rpcs.get(method, 0):
                sample.rpcs[method] = count - rpcs.get(method, 0)
        sample.log_entries = entries_after - entries
        self.samples[name] = sample

    def each(self, name, items, operation):
        """Once for every item, each timed: for operations that take far more than a microsecond."""
        clock = time.perf_counter_ns
        nanoseconds = []
        with self.measure(name) as sample:
            for item in items:
                start = clock()
                operation(item)
                nanoseconds.append(clock() - start)
            sample.count = len(nanoseconds)
        sample.latencies_us = [ns / 1000 for ns in nanoseconds]

    def repeat(self, name, step):
        """`step`, which returns how much it did, again and again for about `loop_seconds`."""
        with self.measure(name) as sample:
            until = time.perf_counter() + self.loop_seconds
            done = step()
            while time.perf_counter() < until:
                done += step()
            sample.count = done

    def program(self, name, *command, **options):
        with self.measure(name):
            self.shell(*command, **options)

    def shell(self, *command, ok=(0,), **options):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE, text=True, check=False, **options)
        if done.returncode not in ok:
            raise BenchError(f"{command[0]} exited {done.returncode}: {done.stderr.strip()[-200:]}")

    def in_parallel(self, operation, items):
        """`operation` of each item in a process of its own; returns when all have ended well."""
        children = []
        try:
            for number, item in enumerate(items, 1):
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        self._serial += number << 32  # content of its own
                        operation(item)
                        code = 0
                    finally:
                        os._exit(code)
                children.append(pid)
            failed = 0
            while children:
                failed += os.waitpid(children[-1], 0)[1] != 0
                children.pop()
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        if failed:
            raise BenchError(f"{failed} of {len(items)} parallel processes failed")

    def quiet(self):
        """What was set up reaches the disk now, so that it is not billed to what comes next."""
        os.sync()

    def cold(self):
        self.target.go_cold()


# ---------------------------------------------------------------- an open file


def open_file(turn):
    size = turn.number(256) * MIB
    path = turn.path("data")
    turn.write(path, size)
    fd = os.open(path, os.O_RDWR)
    try:
        turn.quiet()
        offsets = [turn.random.randrange(size // PAGE) * PAGE for _ in range(4096)]
        pages = bytes(turn.content(PAGE))
        pread, pwrite = os.pread, os.pwrite

        def read_pages():
            for offset in offsets:
                pread(fd, PAGE, offset)
            return len(offsets)

        def write_pages():
            for offset in offsets:
                pwrite(fd, pages, offset)
            return len(offsets)

        def read_all():
            for offset in range(0, size, MIB):
                pread(fd, MIB, offset)
            return size // MIB

        def write_all():
            for offset in range(0, size, MIB):
                pwrite(fd, turn.content(), offset)
            return size // MIB

        read_all()
        turn.repeat("rand_read_4k", read_pages)
        turn.repeat("seq_read_1m", read_all)
        write_pages()
        turn.repeat("rand_write_4k", write_pages)
        turn.repeat("seq_write_1m", write_all)
    finally:
        os.close(fd)
    turn.quiet()
    append(turn)


def append(turn):
    write = os.write

    def records(fd, count):
        for _ in range(count):
            write(fd, RECORD)
        return count

    fd = os.open(turn.path("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        records(fd, 1)
        turn.repeat("append_100b", lambda: records(fd, 1000))
    finally:
        os.close(fd)
    turn.quiet()
    with turn.measure("append_100b_close") as sample:
        fd = os.open(turn.path("log2"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        sample.count = records(fd, turn.number(20000))
        os.close(fd)


def fsync_file(turn):
    size = turn.number(256) * MIB
    path = turn.path("data")
    turn.write(path, size)
    # Who has synced a file often is known when it is opened the next time.
    for name in ("fsync_4k", "fsync_4k_again"):
        fd = os.open(path, os.O_RDWR)
        try:
            turn.quiet()

            def write_and_sync(offset):
                os.pwrite(fd, turn.content(PAGE), offset)
                os.fsync(fd)

            offsets = [turn.random.randrange(size // PAGE) * PAGE for _ in range(turn.number(400))]
            turn.each(name, offsets, write_and_sync)
        finally:
            os.close(fd)
        turn.quiet()


# ---------------------------------------------------------------- small files


def small_paths(turn, top, count, directories=50):
    for number in range(min(directories, count)):
        os.makedirs(turn.path(top, f"d{number:02}"))
    return [turn.path(top, f"d{number % directories:02}", f"f{number:05}")
            for number in range(count)]


def small_files(turn):
    paths = small_paths(turn, "small", turn.number(1500))
    synced = small_paths(turn, "synced", turn.number(500))
    turn.quiet()
    turn.each("small_create", paths, lambda path: turn.write(path, PAGE))
    turn.each("small_create_fsync", synced, lambda path: turn.write(path, PAGE, sync=True))
    turn.quiet()

    hot = paths[:200]
    for path in hot:
        turn.read(path)

    def open_read_close():
        for path in hot:
            fd = os.open(path, os.O_RDONLY)
            os.read(fd, PAGE)
            os.close(fd)
        return len(hot)

    def stat_all():
        stat = os.stat
        for path in paths:
            stat(path)
        return len(paths)

    turn.repeat("small_open_warm", open_read_close)
    stat_all()
    turn.repeat("small_stat_warm", stat_all)
    turn.cold()
    turn.each("small_stat_cold", paths, os.stat)
    turn.cold()
    turn.each("small_read_cold", paths, turn.read)
    turn.quiet()
    turn.each("small_rename", paths, lambda path: os.rename(path, path + ".r"))
    turn.quiet()
    turn.each("small_unlink", [path + ".r" for path in paths], os.unlink)


def four_writers(turn):
    share = turn.number(1500) // 4 + 1
    plans = [small_paths(turn, f"p{number}", share, 12) for number in range(4)]
    turn.quiet()

    def write_all(paths):
        for path in paths:
            turn.write(path, PAGE)

    with turn.measure("small_create_x4") as sample:
        turn.in_parallel(write_all, plans)
        sample.count = share * len(plans)


def churn(turn):
    def once(number):
        path = turn.path(f"tmp{number}")
        turn.write(path, 2 * PAGE)
        os.unlink(path)

    turn.each("temp_churn", range(turn.number(500)), once)


# ---------------------------------------------------------------- a tree, with the usual tools


def make_tree_tar(path, files, seed):
    """A tar of `files` text files as a C library's headers are: many small ones, a few large."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("etaoinshrdlucmfwypvbg", k=rng.randint(2, 11)))
             for _ in range(4000)]
    lines = [" ".join(rng.choices(words, k=rng.randint(3, 12))) + ";\n" for _ in range(4000)]
    directories = ["tree"]
    for number in range(max(1, files // 20)):
        directories.append(f"{rng.choice(directories)}/{words[number % len(words)]}{number}")
    scratch = path + ".file"
    with tarfile.open(path, "w") as tar:
        for directory in directories:
            info = tarfile.TarInfo(directory)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_700_000_000
            tar.addfile(info)
        for number in range(files):
            size = min(512 * KIB, int(rng.lognormvariate(8.5, 1.3)))  # median 5 KB, mean 11 KB
            text = "".join(rng.choices(lines, k=size // 40 + 1)).encode()[:size]
            with open(scratch, "wb") as file:
                file.write(text)
            info = tar.gettarinfo(scratch, f"{rng.choice(directories)}/f{number}.h")
            info.mtime, info.mode = 1_700_000_000, 0o644
            with open(scratch, "rb") as file:
                tar.addfile(info, file)
    os.unlink(scratch)


def tree(turn):
    scratch = turn.target.directory + "/tree.tar"
    make_tree_tar(scratch, turn.number(1200, 20), turn.random.random())
    top = turn.path("tree")
    walk = ("find", top, "-printf", "%s %T@\n")
    grep = ("grep", "-r", "no such text is in there", top)
    turn.quiet()
    turn.program("tree_untar", "tar", "--no-same-owner", "-xf", scratch, "-C", turn.target.root)
    turn.quiet()
    turn.shell(*walk)
    turn.program("tree_walk_warm", *walk)
    paths = [os.path.join(where, name) for where, _, names in os.walk(top) for name in names]

    def stat_all():
        stat = os.stat
        for path in paths:
            stat(path)
        return len(paths)

    stat_all()
    turn.repeat("tree_stat_warm", stat_all)
    turn.cold()
    turn.program("tree_walk_cold", *walk)
    turn.cold()
    turn.program("tree_grep_cold", *grep, ok=(1,))
    turn.program("tree_grep_warm", *grep, ok=(1,))
    turn.quiet()
    git(turn, top)
    os.rename(os.path.join(top, ".git"), turn.path("git"))
    turn.quiet()
    turn.program("tree_copy", "cp", "-r", top, turn.path("copy"))
    turn.quiet()
    turn.program("tree_remove", "rm", "-rf", turn.path("copy"))


def git(turn, top):
    env = dict(os.environ, GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_SYSTEM="/dev/null")
    for who in ("AUTHOR", "COMMITTER"):
        env.update({f"GIT_{who}_NAME": "bench", f"GIT_{who}_EMAIL": "bench@example.org"})
    command = ("git", "-c", "gc.auto=0", "-c", "safe.directory=*", "-C", top)
    with turn.measure("git_init_add_commit"):
        for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "all of it")):
            turn.shell(*command, *words, env=env)
    turn.quiet()
    turn.shell(*command, "status", env=env)
    turn.program("git_status", *command, "status", env=env)
    # Without this git makes .git/index.lock and removes it again, each time.
    turn.program("git_status_readonly", *command, "--no-optional-locks", "status", env=env)


# ---------------------------------------------------------------- big files


def big_file(turn):
    size_mib = turn.number(1024)
    size = size_mib * MIB
    path = turn.path("big")
    turn.quiet()
    with turn.measure("big_write_close") as sample:
        turn.write(path, size)
        sample.count = size_mib
    os.unlink(path)
    turn.quiet()
    with turn.measure("big_write_durable") as sample:
        if turn.target.is_local:
            # What a close on Fermata promises, done here: three copies, each synced, side by side.
            turn.in_parallel(lambda copy: turn.write(copy, size, sync=True),
                             [path, path + ".2", path + ".3"])
        else:
            turn.write(path, size)
        sample.count = size_mib
    turn.quiet()
    turn.cold()
    with turn.measure("big_head_cold"):
        fd = os.open(path, os.O_RDONLY)
        os.pread(fd, PAGE, 0)
        os.close(fd)
    turn.cold()
    with turn.measure("big_read_cold") as sample:
        if turn.read(path) != size:
            raise BenchError("the big file came back with another size")
        sample.count = size_mib
    turn.quiet()
    with turn.measure("big_edit"):
        fd = os.open(path, os.O_RDWR)
        os.pwrite(fd, turn.content(PAGE), size // 2)
        os.close(fd)


# ---------------------------------------------------------------- databases, fio


def database(turn):
    connection = sqlite3.connect(turn.path("db"), isolation_level=None)
    try:
        connection.execute("create table t(a integer primary key, b text)")
        turn.each("sqlite_insert", range(turn.number(150)),
                  lambda _: connection.execute("insert into t(b) values(?)", ("x" * 100,)))
    finally:
        connection.close()


def fio(turn):
    if shutil.which("fio") is None:
        raise BenchError("fio is not installed")
    jobs = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jobs")
    for name in ("randread", "randwrite"):
        for processes in (1, 4):
            directory = turn.path(f"{name}{processes}")
            os.mkdir(directory)
            env = dict(os.environ, SIZE=f"{max(4, turn.number(256) // processes)}m",
                       PROCESSES=str(processes), SECONDS=f"{max(1, int(2 * turn.scale))}")
            command = ["fio", f"--directory={directory}", "--output-format=json",
                       os.path.join(jobs, name + ".fio")]
            turn.shell(*command, "--create_only=1", env=env)
            turn.quiet()
            with turn.measure(f"fio_{name}_x{processes}") as sample:
                out = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
                # fio may print notes before the document.
                job = json.loads(out.stdout[out.stdout.index("{"):])["jobs"][0]
                done = job["read" if name == "randread" else "write"]
                sample.count, sample.seconds = done["total_ios"], done["runtime"] / 1000


# ---------------------------------------------------------------- the catalogue

SCENARIOS = (
    Scenario("open file", open_file, (
        Measure("rand_read_4k", "op/s", "4 KiB reads at random, open cached file", 0.95, rpcs_max=0),
        Measure("seq_read_1m", "MiB/s", "1 MiB reads in order, open cached file", 0.95, rpcs_max=0),
        Measure("rand_write_4k", "op/s", "4 KiB writes at random, open file", 0.95, rpcs_max=0),
        Measure("seq_write_1m", "MiB/s", "1 MiB writes in order, open file", 0.95, rpcs_max=0),
        Measure("append_100b", "op/s", "records of 100 bytes appended, open file", 0.95, rpcs_max=0),
        Measure("append_100b_close", "op/s", "the same with open and close, 20,000 records"),
    )),
    Scenario("fsync", fsync_file, (
        Measure("fsync_4k", "op/s", "4 KiB written and fsynced, in a file of 256 MiB", 0.35),
        Measure("fsync_4k_again", "op/s", "the same after closing and opening it again", 0.35),
    )),
    Scenario("small files", small_files, (
        Measure("small_create", "op/s", "create, write 4 KiB, close", 0.08, rate_min=1000),
        Measure("small_create_fsync", "op/s", "create, write 4 KiB, fsync, close"),
        Measure("small_open_warm", "op/s", "open, read 4 KiB, close of 200 cached files", rpcs_max=0),
        Measure("small_stat_warm", "op/s", "stat, cached", 0.9, rpcs_max=0),
        Measure("small_stat_cold", "op/s", "stat, empty caches"),
        Measure("small_read_cold", "op/s", "open, read, close, empty caches"),
        Measure("small_rename", "op/s", "rename in one directory"),
        Measure("small_unlink", "op/s", "unlink"),
    )),
    Scenario("four writers", four_writers, (
        Measure("small_create_x4", "op/s", "create, write 4 KiB, close; four processes"),
    )),
    Scenario("temporary files", churn, (
        Measure("temp_churn", "op/s", "create, write 8 KiB, close, unlink"),
    )),
    Scenario("tree", tree, (
        Measure("tree_untar", "s", "tar -x of a tree of 1,200 files", 0.15),
        Measure("tree_walk_warm", "s", "find with size and time, cached", 0.6, rpcs_max=0),
        Measure("tree_stat_warm", "op/s", "stat of every file, cached", 0.9, rpcs_max=0),
        Measure("tree_walk_cold", "s", "find with size and time, empty caches", 0.5),
        Measure("tree_grep_cold", "s", "grep -r, empty caches", 0.3),
        Measure("tree_grep_warm", "s", "grep -r, cached", 0.6, rpcs_max=0),
        Measure("git_init_add_commit", "s", "git init, add, commit of the tree", 0.2),
        Measure("git_status", "s", "git status, cached", 0.6, rpcs_max=0),
        Measure("git_status_readonly", "s", "git --no-optional-locks status, cached", 0.6, rpcs_max=0),
        Measure("tree_copy", "s", "cp -r", 0.15),
        Measure("tree_remove", "s", "rm -rf", 0.15),
    )),
    Scenario("big file", big_file, (
        Measure("big_write_close", "MiB/s", "1 GiB written and closed"),
        Measure("big_write_durable", "MiB/s", "the same; locally three synced copies, side by side", 0.9),
        Measure("big_head_cold", "s", "first 4 KiB of 1 GiB, empty caches"),
        Measure("big_read_cold", "MiB/s", "1 GiB read, empty caches", 0.6),
        Measure("big_edit", "s", "4 KiB changed in 1 GiB cached: open, write, close", seconds_max=0.3),
    )),
    Scenario("database", database, (
        Measure("sqlite_insert", "op/s", "SQLite, one insert a transaction", 0.4),
    )),
    Scenario("fio", fio, (
        Measure("fio_randread_x1", "op/s", "fio randread 4 KiB, 1 process"),
        Measure("fio_randread_x4", "op/s", "fio randread 4 KiB, 4 processes"),
        Measure("fio_randwrite_x1", "op/s", "fio randwrite 4 KiB, 1 process"),
        Measure("fio_randwrite_x4", "op/s", "fio randwrite 4 KiB, 4 processes"),
    )),
)
