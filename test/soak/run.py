#!/usr/bin/env python3
"""Random work on a cluster of this machine for as long as you like, while its nodes are killed.

A round: random programs beside ext4 (one mount, then two), random operations on files' data read
back through the other mount, stress-ng's filesystem stressors, dbench, SQLite from both mounts, and
new seeds of the simulator. All along a node is killed and started again every few seconds. After
each round everything must answer, every node must have the same digest, and nothing may be left
uncommitted. The first thing that differs ends the run: its output, the seed and the logs stay.
"""
import argparse
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time

STRESSORS = ("access chdir chmod chown copy-file dentry dir dirdeep dirmany dup fallocate fcntl filename flock fpunch "
             "link locka lockf lockofd mknod open rename revio seek symlink sync-file touch utime xattr")


class Failed(Exception):
    pass


class Soak:
    def __init__(self, args):
        self.args = args
        self.bin = os.path.abspath(args.bin)
        self.random = random.Random(args.seed)
        self.root = tempfile.mkdtemp(prefix="fermata-soak.")
        self.dir = self.root + "/c"
        self.ends = time.monotonic() + args.minutes * 60
        self.counts = {}
        self.stop = threading.Event()
        self.killer_error = None

    def say(self, text):
        print(time.strftime("%H:%M:%S ") + text, flush=True)

    def count(self, what, by=1):
        self.counts[what] = self.counts.get(what, 0) + by

    def run(self, what, command, timeout=1200):
        """Runs a shell command; an exit code or a hang is a failure."""
        log = f"{self.root}/last.log"
        with open(log, "w") as out:
            try:
                code = subprocess.run(["bash", "-ec", command], stdout=out, stderr=subprocess.STDOUT, timeout=timeout).returncode
            except subprocess.TimeoutExpired:
                raise Failed(f"{what} did not end in {timeout} s: {command} (output: {log})")
        with open(log, errors="replace") as output:
            text = output.read()
        if code != 0:
            raise Failed(f"{what} failed with {code}: {command}\n{text[-4000:]}")
        self.count(what)
        return text

    def fermata(self, arguments, timeout=120):
        return self.run("fermata", f"{self.bin}/fermata {arguments}", timeout)

    # ------------------------------------------------------------ the cluster

    def start(self):
        self.mounts = [f"{self.root}/a", f"{self.root}/b"]
        self.fermata(f"mini start --dir {self.dir}")
        for mount, options in zip(self.mounts, ("dev,suid", "dev,suid,nopassthrough")):
            self.fermata(f"mount {self.dir}/servers {mount} --cache-dir {mount}.cache -o {options},cache-size=3G")
        os.mkdir(f"{self.root}/ext4")
        self.run("mkfs", f"truncate -s 2G {self.root}/ext4.img; mkfs.ext4 -q {self.root}/ext4.img; "
                 f"mount -o loop {self.root}/ext4.img {self.root}/ext4")

    def end(self):
        for mount in self.mounts:
            with contextlib.suppress(Failed):
                self.fermata(f"umount --force {mount}")
        subprocess.run(["umount", "-l", f"{self.root}/ext4"], stderr=subprocess.DEVNULL)
        with contextlib.suppress(Failed):
            self.fermata(f"mini stop --force --dir {self.dir}")

    def kill_nodes(self):
        """Until self.stop: kills a node, and starts it again, with never more than one away."""
        chance = random.Random(self.args.seed + 1)
        while not self.stop.wait(chance.uniform(3, 15)):
            node = chance.choice(["1", "2", "3", "primary"])
            done = subprocess.run([f"{self.bin}/fermata", "mini", "kill", "--dir", self.dir, "--node", node],
                                  capture_output=True, text=True)
            if done.returncode != 0:
                continue  # no primary just now
            number = done.stdout.split()[1]
            time.sleep(chance.uniform(0, 3))
            again = subprocess.run([f"{self.bin}/fermata", "mini", "restart", "--dir", self.dir, "--node", number],
                                   capture_output=True, text=True)
            if again.returncode != 0:
                self.killer_error = f"node {number} did not start again: {again.stdout}{again.stderr}"
                return
            self.count("nodes killed")

    # ------------------------------------------------------------ the work

    def model(self, mounts, processes):
        seeds, start = 20, self.random.randrange(1, 1 << 40)
        places = " ".join(f"--mount {mount}" for mount in mounts)
        self.run("model", f"{self.bin}/model_mount {places} --local {self.root}/ext4 --seeds {seeds} --from {start} "
                 f"--ops 400 --processes {processes} --jobs 4", 3600)
        self.count("model operations", seeds * 400)

    def data(self):
        seed = self.random.randrange(1, 1 << 30)
        name = f"data{seed}"
        self.run("data", f"mkdir {self.mounts[0]}/{name}; {self.bin}/data_check --dir {self.mounts[0]}/{name} "
                 f"--other {self.mounts[1]}/{name} --ops 3000 --seed {seed}; rm -rf {self.mounts[0]}/{name}", 3600)
        self.count("data operations", 3000)

    def stress(self):
        mount = self.random.choice(self.mounts)
        self.run("stress-ng", f"mkdir -p {mount}/stress; for s in {STRESSORS}; do stress-ng --$s 1 --timeout 2 "
                 f"--verify --temp-path {mount}/stress; done; rm -rf {mount}/stress", 3600)

    def dbench(self):
        mount = self.random.choice(self.mounts)
        self.run("dbench", f"mkdir -p {mount}/dbench; dbench -t 10 -D {mount}/dbench 2; rm -rf {mount}/dbench", 3600)

    def sqlite(self):
        a, b = (f"{mount}/db" for mount in self.mounts)
        rows = 100
        one = "for i in $(seq {rows}); do sqlite3 -cmd '.timeout 600000' {db} 'insert into t values(1)'; done"
        self.run("sqlite", f"rm -f {a}; sqlite3 {a} 'create table t(a)'; ({one.format(rows=rows, db=a)}) & first=$!; "
                 f"{one.format(rows=rows, db=b)}; wait $first; test $(sqlite3 {b} 'select sum(a) from t') = {2 * rows}; "
                 f"sqlite3 {a} 'pragma integrity_check' | grep -qx ok", 3600)
        self.count("sqlite transactions", 2 * rows)

    def simulate(self):
        start = self.random.randrange(1, 1 << 40)
        self.run("sim", f"{self.bin}/fermata-sim --seeds 100 --from {start}", 3600)
        self.count("simulated seeds", 100)

    def check(self):
        """With all nodes there."""
        for mount in self.mounts:
            self.fermata(f"cache flush {mount}", 600)
        deadline = time.monotonic() + 120
        while True:
            done = subprocess.run([f"{self.bin}/fermata", "status", "--json", f"{self.dir}/servers"], capture_output=True, text=True)
            if done.returncode == 0:
                break
            if time.monotonic() > deadline:
                raise Failed(f"the cluster is not well: {done.stdout}")
            time.sleep(0.2)
        digests = {node["digest"] for node in json.loads(done.stdout)["nodes"]}
        if len(digests) != 1:
            raise Failed(f"the nodes differ: {done.stdout}")
        for mount in self.mounts:
            numbers = json.loads(self.fermata(f"cache stat --json {mount}"))
            if numbers["dirty_files"] or numbers["conflict_files"] or numbers["pending"]:
                raise Failed(f"left on {mount}: {numbers}")

    def round(self):
        work = [lambda: self.model(self.mounts[:1], 2), lambda: self.model(self.mounts[1:], 3),
                lambda: self.model(self.mounts, 4), self.data, self.stress, self.dbench, self.sqlite, self.simulate]
        self.random.shuffle(work)
        self.stop.clear()
        killer = threading.Thread(target=self.kill_nodes)
        killer.start()
        try:
            for each in work:
                if time.monotonic() > self.ends and self.counts.get("rounds", 0) > 0:
                    break
                each()
        finally:
            self.stop.set()
            killer.join()
        if self.killer_error:
            raise Failed(self.killer_error)
        self.check()
        self.count("rounds")

    def summary(self):
        return ", ".join(f"{count:,} {what}" for what, count in sorted(self.counts.items()) if what != "fermata")


def main():
    parser = argparse.ArgumentParser(prog="./dev soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--minutes", type=float, default=30, help="how long (30); at least one round is done")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of everything random")
    args = parser.parse_args()
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        sys.exit("soak: mounts need root and /dev/fuse")
    soak = Soak(args)
    soak.say(f"seed {args.seed}, in {soak.root}")
    code = 1
    try:
        soak.start()
        while time.monotonic() < soak.ends or soak.counts.get("rounds", 0) == 0:
            soak.round()
            soak.say(soak.summary())
        code = 0
    except Failed as failed:
        soak.say(f"FAILED after {soak.summary()}\n{failed}")
    except KeyboardInterrupt:
        soak.say(f"interrupted after {soak.summary()}")
    finally:
        soak.end()
    if code == 0:
        soak.say("passed")
        shutil.rmtree(soak.root, ignore_errors=False)
    else:
        soak.say(f"what is left: {soak.root} (seed {args.seed})")
    sys.exit(code)


if __name__ == "__main__":
    main()
