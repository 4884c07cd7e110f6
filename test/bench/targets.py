"""Where a workload runs: a directory of the local disk, or a Fermata mount of a cluster of its own.

Both offer the same few things: a directory, a way to make the next access cold, and counters. A
Fermata target is a fresh cluster of three nodes on this machine and one mount of it, so that a
turn neither finds chunks that an earlier one has stored nor pays for its garbage.
"""

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import subprocess
import time

import interrupts

# Session upkeep: time decides about it, not the workload.
UPKEEP_RPCS = {"renew_session", "bind_callbacks", "open_session", "close_session"}
COMMAND_LIMIT_S = 120


class BenchError(Exception):
    """What went wrong, as a sentence for the table."""


def drop_kernel_caches():
    """Page, dentry and inode caches of the whole machine; needs root."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as file:
        file.write("3")


def run(*command, limit_s=COMMAND_LIMIT_S, ok=(0,)):
    """Runs a program to its end, Ctrl-C or not (it has a session of its own); returns its stdout."""
    with interrupts.hold():
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=limit_s, start_new_session=True, check=False)
    if done.returncode not in ok:
        words = " ".join([os.path.basename(command[0]), *command[1:3]])
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["no message"]
        raise BenchError(f"{words} exited {done.returncode}: {said[0]}")
    return done.stdout


class Clerk:
    """Runs commands from a process that was made before the workload opened any file.

    A child that this process forks closes the files it inherits when it executes its program, and
    the kernel reports each such close to Fermata as a FLUSH: looking at counters would commit an
    open file. The clerk holds none of them.
    """

    LOOP = 'while IFS= read -r line; do eval "$line"; printf "\\n\\001%d\\n" $?; done'

    def __init__(self):
        self._shell = subprocess.Popen(["sh", "-c", self.LOOP], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, text=True, start_new_session=True)

    def run(self, *command, ok=(0,)):
        """The command's stdout; its stderr goes to ours."""
        print(" ".join(shlex.quote(word) for word in command), file=self._shell.stdin, flush=True)
        out = []
        for line in self._shell.stdout:
            if line.startswith("\001"):
                code = int(line[1:])
                if code not in ok:
                    raise BenchError(f"{os.path.basename(command[0])} {command[1]} exited {code}")
                return "".join(out)
            out.append(line)
        raise BenchError("the shell that reads counters has ended")

    def close(self):
        self._shell.kill()
        self._shell.wait()
        self._shell.stdin.close()
        self._shell.stdout.close()


def mounts_below(directory):
    """Mount points at or below a directory, deepest first."""
    found = []
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            point = line.split()[1].replace("\\040", " ")
            if point == directory or point.startswith(directory + "/"):
                found.append(point)
    return sorted(found, key=len, reverse=True)


def remove_tree(directory):
    """Removes a directory; never one with a mount below it."""
    left = mounts_below(directory)
    if left:
        raise BenchError(f"{left[0]} is still mounted: nothing under {directory} was removed")
    shutil.rmtree(directory, ignore_errors=True)


class LocalTarget:
    """A directory of the filesystem that the work directory lies on: what Fermata is held against."""

    is_local = True

    def __init__(self, directory):
        self.directory = directory
        self.root = os.path.join(directory, "files")

    def start(self):
        os.makedirs(self.root)

    def go_cold(self):
        drop_kernel_caches()

    def counters(self):
        return {}, 0

    def stop(self):
        pass

    def logs(self):
        return []


class IoUringSwitch:
    """The kernel's switch of FUSE over io_uring: one for all mounts, and off unless somebody asked.

    Whoever wants it on holds the lock, the tests too (test/support/io_uring_switch.cc); the last one
    puts it back if one of them has switched it on, which the file then says.
    """

    PATH = "/sys/module/fuse/parameters/enable_uring"
    LOCK = "/tmp/fermata-test.io_uring"
    SWITCHED_ON = b"1"

    def __init__(self):
        self._lock = None

    def on(self):
        try:
            self._lock = open(os.open(self.LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b",
                              buffering=0)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            with open(self.PATH, encoding="ascii") as file:
                before = file.read(1)
            if before != "Y":
                os.pwrite(self._lock.fileno(), self.SWITCHED_ON, 0)
                self._write("Y")
        except OSError as problem:
            self.put_back()
            raise BenchError("this kernel has no FUSE over io_uring, or it cannot be switched on") from problem

    def put_back(self):
        if self._lock is None:
            return
        with self._lock:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return  # somebody else wants it on
            finally:
                lock, self._lock = self._lock, None
            if os.pread(lock.fileno(), 1, 0) == self.SWITCHED_ON:
                self._write("N")
                os.ftruncate(lock.fileno(), 0)

    def _write(self, value):
        with open(self.PATH, "w", encoding="ascii") as file:
            file.write(value)


class FermataTarget:
    """Three nodes and a mount under one directory."""

    is_local = False

    def __init__(self, directory, bin_dir, mount_options):
        self.directory = directory
        self.cluster = os.path.join(directory, "cluster")
        self.root = os.path.join(directory, "mnt")
        self.cache = os.path.join(directory, "cache")
        self.options = mount_options
        self.fermata = os.path.join(bin_dir, "fermata")
        self.servers = os.path.join(self.cluster, "servers")
        self.clerk = None
        self.switch = IoUringSwitch()

    def start(self):
        if "io_uring=on" in self.options:
            self.switch.on()
        self.clerk = Clerk()
        run(self.fermata, "mini", "start", "--dir", self.cluster)
        self._mount()

    def go_cold(self):
        """As after a first mount on a new machine: an empty cache, and cold disks at the nodes."""
        run(self.fermata, "umount", self.root)
        if os.path.ismount(self.root):
            raise BenchError("the mount is still there after umount")
        remove_tree(self.cache)
        drop_kernel_caches()
        self._mount()

    def counters(self):
        """(RPCs of the mount by method, log entries committed), once nothing moves any more.

        What the kernel sends after the last call has returned (RELEASE, FORGET) belongs to the
        workload, so two looks in a row must agree.
        """
        deadline = time.monotonic() + 2
        before = self._look()
        while True:
            time.sleep(0.02)
            now = self._look()
            if now == before or time.monotonic() > deadline:
                return now
            before = now

    def is_passthrough(self):
        return bool(json.loads(self.clerk.run(self.fermata, "cache", "stat", "--json",
                                              self.root))["passthrough"])

    def stop(self):
        """Ends the daemons and takes the mount away, whatever state they are in."""
        self.switch.put_back()
        if self.clerk:
            self.clerk.close()
        with contextlib.suppress(BenchError, subprocess.TimeoutExpired):
            if os.path.ismount(self.root):
                run(self.fermata, "umount", "--force", self.root, limit_s=60)
        self._kill(os.path.join(self.directory, "mount.pid"))
        for point in mounts_below(self.directory):
            with contextlib.suppress(BenchError):
                run("umount", "-l", point)
        if os.path.exists(os.path.join(self.cluster, "mini.json")):
            with contextlib.suppress(BenchError, subprocess.TimeoutExpired):
                run(self.fermata, "mini", "stop", "--dir", self.cluster, limit_s=90)
            for name in os.listdir(self.cluster):
                if name.endswith(".pid"):
                    self._kill(os.path.join(self.cluster, name))

    def logs(self):
        found = [os.path.join(self.directory, "mount.log")]
        if os.path.isdir(self.cluster):
            found += [os.path.join(self.cluster, name) for name in sorted(os.listdir(self.cluster))
                      if name.endswith(".log")]
        return [path for path in found if os.path.exists(path)]

    def _mount(self):
        command = [self.fermata, "mount", self.servers, self.root, "--cache-dir", self.cache,
                   "--pidfile", os.path.join(self.directory, "mount.pid"),
                   "--log", os.path.join(self.directory, "mount.log")]
        if self.options:
            command += ["-o", ",".join(self.options)]
        run(*command)
        if not os.path.ismount(self.root):
            raise BenchError("fermata mount returned and nothing is mounted")

    def _look(self):
        stat = json.loads(self.clerk.run(self.fermata, "cache", "stat", "--json", self.root))
        # Exit code 1 of status is a warning, such as a disk that fills up: no reason to stop here.
        status = json.loads(self.clerk.run(self.fermata, "status", "--json", "--no-digest",
                                           self.servers, ok=(0, 1)))
        committed = max(node.get("commit", 0) for node in status["nodes"])
        rpcs = {name: count for name, count in stat["rpcs"].items() if name not in UPKEEP_RPCS}
        return rpcs, committed

    @staticmethod
    def _kill(pidfile):
        """SIGKILLs the daemon of a pid file, if one of ours still runs under that number."""
        try:
            with open(pidfile, encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/comm", encoding="utf-8") as file:
                if not file.read().startswith("fermata-"):
                    return
            os.kill(pid, signal.SIGKILL)
        except (OSError, ValueError):
            return
        deadline = time.monotonic() + 10
        while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
            time.sleep(0.01)
