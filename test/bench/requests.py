#!/usr/bin/env python3
"""What one request costs on each way to the daemon: ./dev bench requests [OPTION...]

Loops of system calls on small files (file_loops.cc), on a bare libfuse filesystem that does nothing
else (fuse_floor.cc), and on Fermata over /dev/fuse and over io_uring. The targets take turns; the
table has medians. README.md beside this file tells the method.
"""

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

import interrupts
from targets import BenchError, FermataTarget, mounts_below, remove_tree, run

FLOORS = {"floor": [], "floor, threads": ["--threads"]}
FERMATA = {"/dev/fuse": ["io_uring=off"], "io_uring": ["io_uring=on"]}
# Of the faster floor's time: what a warm open, read and close may take at most.
BARS = {"/dev/fuse": 1.15, "io_uring": 0.45}


class FloorTarget:
    """fuse_floor on a directory."""

    def __init__(self, directory, bin_dir, arguments):
        self.root = os.path.join(directory, "mnt")
        self.command = [os.path.join(bin_dir, "fuse_floor"), *arguments, self.root]
        self.process = None

    def start(self):
        os.makedirs(self.root)
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL,
                                        start_new_session=True)
        deadline = time.monotonic() + 10
        while not os.path.ismount(self.root):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise BenchError("fuse_floor does not mount")
            time.sleep(0.01)

    def stop(self):
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for point in mounts_below(self.root):
            with contextlib.suppress(BenchError):
                run("umount", "-l", point)


def arguments():
    parser = argparse.ArgumentParser(prog="./dev bench requests",
                                     description="What a request costs on each way to the daemon.")
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--repeat", type=int, default=5, metavar="N", help="turns (default 5)")
    parser.add_argument("--count", type=int, default=1000, metavar="N", help="files (default 1000)")
    parser.add_argument("--cpu", metavar="LIST",
                        help="keep the loops on these CPUs, as taskset(1) takes them (default: any)")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args()


def measure(given, target):
    command = [os.path.join(given.bin, "file_loops"), target.root, str(given.count)]
    if given.cpu:
        command = ["taskset", "-c", given.cpu, *command]
    return json.loads(run(*command, limit_s=600))


def print_table(results):
    names = list(results)
    measures = list(next(iter(results.values())))
    print(f"{'us, median':22}" + "".join(f"{name:>18}" for name in names))
    for name in measures:
        print(f"{name:22}" + "".join(f"{statistics.median(results[t][name]):18.2f}" for t in names))
    floor = min(statistics.median(results[name]["open_read_close"]) for name in FLOORS)
    for name, bar in BARS.items():
        if name in results:
            ratio = statistics.median(results[name]["open_read_close"]) / floor
            print(f"open_read_close, {name}: {ratio:.2f} of the floor, "
                  f"{'met' if ratio <= bar else 'NOT met'} (at most {bar})")


def main():
    given = arguments()
    given.bin = os.path.abspath(given.bin)
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        print("requests: it mounts: it wants root and /dev/fuse", file=sys.stderr)
        return 77
    interrupts.install()
    work = os.path.realpath(tempfile.mkdtemp(prefix="fermata-bench.", dir="/var/tmp"))
    results = {}
    targets = {}
    try:
        for number, (name, options) in enumerate({**FLOORS, **FERMATA}.items()):
            directory = os.path.join(work, str(number))
            os.makedirs(directory)
            kind = FloorTarget if name in FLOORS else FermataTarget
            target = kind(directory, given.bin, options)
            try:
                target.start()
                targets[name] = target
            except BenchError as problem:
                print(f"requests: {name}: {problem}", file=sys.stderr)
                target.stop()
        for turn in range(given.repeat):
            order = list(targets)
            first = turn % len(order)
            for name in order[first:] + order[:first]:
                for key, value in measure(given, targets[name]).items():
                    results.setdefault(name, {}).setdefault(key, []).append(value)
    finally:
        with interrupts.hold():
            for target in targets.values():
                target.stop()
            remove_tree(work)
    ordered = {name: results[name] for name in targets}
    if given.json:
        print(json.dumps(ordered))
    else:
        print_table(ordered)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
