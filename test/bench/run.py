#!/usr/bin/env python3
"""Fermata held against the local disk: ./dev bench [OPTION...]

Every scenario runs in turn on a directory of the local disk and on Fermata's variants, again and
again, in an order that shifts with each repetition. README.md beside this file tells the method.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

sys.dont_write_bytecode = True

import interrupts
import report
from targets import BenchError, FermataTarget, LocalTarget, mounts_below, remove_tree
from workloads import SCENARIOS, Turn

EXIT_FAILED, EXIT_USAGE, EXIT_SKIPPED, EXIT_STOPPED = 1, 2, 77, 130

# What Fermata is mounted with; the first is the one that the bars are about.
FERMATA_VARIANTS = {
    "fermata": [],
    "nopassthrough": ["nopassthrough"],
    "io_uring": ["io_uring=on"],
}
DEFAULT_VARIANT = next(iter(FERMATA_VARIANTS))


def say(text="", end="\n"):
    print(text, end=end, file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        prog="./dev bench", description="Fermata held against the local disk, on this machine.")
    parser.add_argument("--bin", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true",
                        help="one repetition at a quarter of the sizes: a first look")
    parser.add_argument("--repeat", type=int, metavar="N",
                        help="repetitions of each pair (default 5; --quick 1)")
    parser.add_argument("--scale", type=float, metavar="F",
                        help="factor on sizes and counts (default 1; --quick 0.25)")
    parser.add_argument("--only", metavar="PATTERN", action="append", default=[],
                        help="only measures or scenarios that match, such as 'tree_*'; may be repeated")
    parser.add_argument("--variants", metavar="NAME,...",
                        help="of " + ", ".join(FERMATA_VARIANTS) + "; default: all")
    parser.add_argument("--list", action="store_true", help="list scenarios and measures, and end")
    parser.add_argument("--out", metavar="DIR", help="where BENCHMARKS.md, benchmarks.json and "
                        "benchmarks.svg go (default: docs after a whole run, else build/bench)")
    parser.add_argument("--dir", metavar="DIR", default="/var/tmp",
                        help="where the work directory is made; its disk is measured (default /var/tmp)")
    parser.add_argument("--limit", type=int, metavar="S", default=600,
                        help="a scenario's turn is given up after so many seconds (default 600)")
    parser.add_argument("--seed", type=int, help="of offsets, names and content (default: drawn)")
    given = parser.parse_args()
    given.repeat = given.repeat or (1 if given.quick else 5)
    given.scale = given.scale or (0.25 if given.quick else 1.0)
    given.variants = given.variants.split(",") if given.variants else list(FERMATA_VARIANTS)
    for name in given.variants:
        if name not in FERMATA_VARIANTS:
            parser.error(f"no variant '{name}': there are {', '.join(FERMATA_VARIANTS)}")
    given.is_whole = (not given.quick and not given.only and given.scale >= 1
                      and given.variants == list(FERMATA_VARIANTS))
    given.out = os.path.abspath(given.out or ("docs" if given.is_whole else "build/bench"))
    given.seed = random.randrange(1 << 32) if given.seed is None else given.seed
    return given


def chosen(patterns):
    """(scenario, the measures of it to report) for what --only names; everything without."""
    found = []
    for scenario in SCENARIOS:
        measures = [m for m in scenario.measures
                    if not patterns or any(fnmatch.fnmatch(m.name, p)
                                           or fnmatch.fnmatch(scenario.name, p) for p in patterns)]
        if measures:
            found.append((scenario, measures))
    return found


def list_all():
    for scenario in SCENARIOS:
        print(scenario.name)
        for measure in scenario.measures:
            bars = ", ".join(report.bars_of(measure))
            print(f"  {measure.name:22} {measure.unit:6} {measure.text}" + (f"  [{bars}]" if bars else ""))


# ---------------------------------------------------------------- the machine


def first_line(path, start, default):
    with contextlib.suppress(OSError):
        with open(path, encoding="utf-8") as file:
            for line in file:
                if line.startswith(start):
                    return line.split(":", 1)[1].strip()
    return default


def filesystem_of(directory):
    best = ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            _, point, kind = line.split()[:3]
            inside = directory == point or directory.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def machine(directory):
    memory_kib = first_line("/proc/meminfo", "MemTotal", "0 kB").split()[0]
    return {"cpu": first_line("/proc/cpuinfo", "model name", platform.machine()),
            "cpus": os.cpu_count(), "memory_gib": round(int(memory_kib) / (1 << 20)),
            "kernel": platform.release(), "filesystem": filesystem_of(directory),
            "load_before": load(), "load_after": load()}


def load():
    return round(os.getloadavg()[0], 1)


def commit():
    here = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(["git", "-c", "safe.directory=*", "-C", here, "rev-parse", "--short", "HEAD"],
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


# ---------------------------------------------------------------- the run


class Bench:
    def __init__(self, given, work):
        self.given = given
        self.work = work
        self.samples = {}  # measure -> variant -> {repetition: Sample}
        self.errors = {}   # (scenario, variant) -> sentence
        self.notes = []
        self.variants = [report.LOCAL, *given.variants]

    def target(self, variant, directory):
        if variant == report.LOCAL:
            return LocalTarget(directory)
        return FermataTarget(directory, self.given.bin, FERMATA_VARIANTS[variant])

    def turn(self, scenario, measures, variant, repetition):
        """One scenario on one target, in a directory of its own that is gone afterwards."""
        directory = tempfile.mkdtemp(prefix="turn.", dir=self.work)
        target = self.target(variant, directory)
        turn = Turn(target, self.given.scale, f"{self.given.seed}/{scenario.name}/{repetition}")
        error = None
        try:
            signal.alarm(self.given.limit)
            target.start()
            if variant == DEFAULT_VARIANT and not target.is_passthrough():
                self.note("passthrough is off on this machine (it wants Linux 6.9 and root)")
            scenario.run(turn)
        except interrupts.TimeLimit:
            error = f"not done after {self.given.limit} s"
        except BenchError as problem:
            error = str(problem)
        except Exception as problem:  # whatever a workload meets ends this turn and not the run
            error = f"{type(problem).__name__}: {problem}"
        finally:
            with interrupts.hold():
                signal.alarm(0)
                if error:
                    self.keep_logs(target, f"{scenario.name}-{variant}-{repetition}".replace(" ", "-"))
                target.stop()
                if left := mounts_below(directory):
                    error = (error or "") + f"; {left[0]} could not be unmounted"
                else:
                    remove_tree(directory)
        if error:
            error = error.replace(directory, "")
        for measure in measures:
            if measure.name in turn.samples:
                runs = self.samples.setdefault(measure.name, {}).setdefault(variant, {})
                runs[repetition] = turn.samples[measure.name]
        return turn.samples, error

    def note(self, text):
        if text not in self.notes:
            self.notes.append(text)
            say(f"note: {text}")

    def keep_logs(self, target, name):
        kept = os.path.join(self.given.out, "logs", name)
        for path in target.logs():
            os.makedirs(kept, exist_ok=True)
            shutil.copy(path, kept)

    def run(self, plan):
        total = len(plan) * self.given.repeat * len(self.variants)
        number, begin = 0, time.monotonic()
        for repetition in range(self.given.repeat):
            for scenario, measures in plan:
                shift = repetition % len(self.variants)
                for variant in self.variants[shift:] + self.variants[:shift]:
                    number += 1
                    if (scenario.name, variant) in self.errors:
                        continue
                    say(f"[{number:3}/{total}] {time.monotonic() - begin:6.0f} s  "
                        f"{scenario.name}, {variant}, repetition {repetition + 1}")
                    samples, error = self.turn(scenario, measures, variant, repetition)
                    for measure in measures:
                        if measure.name in samples:
                            sample = samples[measure.name]
                            say(f"    {measure.name:22} "
                                f"{report.human(sample.value(measure.unit), measure.unit):>16}"
                                + self.messages(variant, sample))
                    if error:
                        say(f"    FAILED: {error}")
                        self.errors[scenario.name, variant] = error

    @staticmethod
    def messages(variant, sample):
        if variant == report.LOCAL:
            return ""
        rpcs = " ".join(f"{name}:{count}" for name, count in sample.rpcs.items()) or "none"
        return f"   RPCs {rpcs}   log entries {sample.log_entries}"

    def rows(self, plan):
        found = []
        for scenario, measures in plan:
            for measure in measures:
                samples = self.samples.get(measure.name, {})
                errors = {variant: self.errors[scenario.name, variant] for variant in self.variants
                          if (scenario.name, variant) in self.errors and variant not in samples}
                found.append(report.summarize(measure, samples, errors, DEFAULT_VARIANT))
        return found


def write(path, text):
    with open(path + ".part", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".part", path)


def publish(given, document):
    os.makedirs(given.out, exist_ok=True)
    write(os.path.join(given.out, "benchmarks.json"), json.dumps(document, indent=1) + "\n")
    write(os.path.join(given.out, "BENCHMARKS.md"), report.markdown(document))
    write(os.path.join(given.out, "benchmarks.svg"), report.svg(document))


def why_not():
    """Why nothing can be measured here, or None."""
    if os.geteuid() != 0:
        return "it mounts and drops the kernel's caches: run it as root"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened: load the fuse module, or allow the device in the container"
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        return "/proc/sys/vm/drop_caches cannot be written: cold runs would not be cold"
    return None


def main():
    given = arguments()
    if given.list:
        list_all()
        return 0
    plan = chosen(given.only)
    if not plan:
        say(f"bench: nothing matches {' '.join(given.only)} (see --list)")
        return EXIT_USAGE
    given.bin = os.path.abspath(given.bin)
    if why := why_not():
        say(f"bench: {why}")
        return EXIT_SKIPPED
    interrupts.install()
    work = os.path.realpath(tempfile.mkdtemp(prefix="fermata-bench.", dir=given.dir))
    bench = Bench(given, work)
    document = {"version": 1, "started": time.strftime("%Y-%m-%d", time.gmtime()), "commit": commit(),
                "scale": given.scale, "repetitions": given.repeat, "seed": given.seed,
                "machine": machine(work),
                "variants": {report.LOCAL: f"{filesystem_of(work)}, the same disk"}}
    for name in given.variants:
        document["variants"][name] = ("`-o " + ",".join(FERMATA_VARIANTS[name]) + "`"
                                      if FERMATA_VARIANTS[name] else "no options")
    stopped = False
    try:
        bench.run(plan)
    except KeyboardInterrupt:
        stopped = True
        say("\nstopped; the table has what was measured so far")
    finally:
        interrupts.ignore()
        if mounts_below(work):
            say(f"bench: something is still mounted below {work}, which is left as it is")
        else:
            remove_tree(work)
    document["machine"]["load_after"] = load()
    document["rows"] = bench.rows(plan)
    document["errors"] = bench.notes + [f"{scenario}, {variant}: {error}"
                                        for (scenario, variant), error in bench.errors.items()]
    if not bench.samples:
        return EXIT_STOPPED if stopped else EXIT_FAILED
    publish(given, document)
    print_table(document)
    say(f"\nwritten to {given.out}: BENCHMARKS.md, benchmarks.json, benchmarks.svg")
    if stopped:
        return EXIT_STOPPED
    return EXIT_FAILED if bench.errors else 0


def print_table(document):
    """The table in a terminal's columns."""
    names = list(document["variants"])
    table = [["workload", *names, "RPCs", "bar", ""]]
    for row in document["rows"]:
        cell = row["variants"].get(DEFAULT_VARIANT) or row["variants"].get(names[-1], {})
        rpcs = str(cell.get("rpc_total", ""))
        table.append([row["name"]]
                     + [report.cell_words(row["variants"].get(name, {}), row["unit"]) for name in names]
                     + [rpcs, ", ".join(row["bars"]), report.verdict(row)])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
