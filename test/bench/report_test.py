#!/usr/bin/env python3
"""What the table says about made-up samples."""

import sys
import unittest
import xml.dom.minidom

sys.dont_write_bytecode = True

import interrupts
import report
from workloads import SCENARIOS, Measure, Sample


def runs(*seconds, count=1, rpcs=()):
    return {number: Sample(count=count, seconds=s, rpcs=dict(rpcs)) for number, s in enumerate(seconds)}


def document(rows):
    return {"machine": {"cpus": 2, "cpu": "c", "memory_gib": 1, "kernel": "k", "filesystem": "f",
                        "load_before": 0, "load_after": 0},
            "variants": {"local": "f", "fermata": "no options"}, "repetitions": 2, "scale": 1.0,
            "seed": 1, "started": "today", "commit": "abc", "rows": rows, "errors": []}


class Ratios(unittest.TestCase):
    def test_more_seconds_are_slower(self):
        row = report.summarize(Measure("m", "s", ""), {"local": runs(1.0), "fermata": runs(4.0)}, {},
                               "fermata")
        self.assertEqual(row["variants"]["fermata"]["ratio"], 0.25)

    def test_more_operations_a_second_are_faster(self):
        samples = {"local": runs(1.0, count=100), "fermata": runs(1.0, count=200)}
        row = report.summarize(Measure("m", "op/s", ""), samples, {}, "fermata")
        self.assertEqual(row["variants"]["fermata"]["median"], 200)
        self.assertEqual(row["variants"]["fermata"]["ratio"], 2)

    def test_pairs_count_and_not_the_medians(self):
        # The machine became ten times slower after the first pair; each pair says one half.
        samples = {"local": runs(1.0, 10.0, 10.0), "fermata": runs(2.0, 20.0, 20.0)}
        row = report.summarize(Measure("m", "s", ""), samples, {}, "fermata")
        self.assertEqual(row["variants"]["fermata"]["ratio_runs"], [0.5, 0.5, 0.5])

    def test_a_repetition_without_its_pair_has_no_ratio(self):
        samples = {"local": {0: Sample(seconds=1.0)}, "fermata": runs(2.0, 100.0)}
        row = report.summarize(Measure("m", "s", ""), samples, {}, "fermata")
        self.assertEqual(row["variants"]["fermata"]["ratio_runs"], [0.5])
        self.assertEqual(len(row["variants"]["fermata"]["runs"]), 2)


class Verdicts(unittest.TestCase):
    def row(self, measure, **fermata):
        return report.summarize(measure, {"local": runs(1.0), "fermata": runs(2.0, **fermata)}, {},
                                "fermata")

    def test_met(self):
        self.assertEqual(report.verdict(self.row(Measure("m", "s", "", 0.5, rpcs_max=0))), "met")

    def test_each_bar_that_is_missed_is_named(self):
        row = self.row(Measure("m", "s", "", 0.6, seconds_max=1.5, rpcs_max=0), rpcs={"mutate": 3})
        self.assertEqual(report.verdict(row), "missed: ≥ 0.6, ≤ 1.5 s, ≤ 0 RPCs")

    def test_a_rate(self):
        self.assertEqual(report.verdict(self.row(Measure("m", "op/s", "", rate_min=1000), count=2000)),
                         "met")
        self.assertNotEqual(report.verdict(self.row(Measure("m", "op/s", "", rate_min=1000), count=1999)),
                            "met")

    def test_what_failed_misses_its_bars(self):
        row = report.summarize(Measure("m", "s", "", 0.5), {"local": runs(1.0)}, {"fermata": "EIO"},
                               "fermata")
        self.assertEqual(report.verdict(row), "missed: ≥ 0.5")
        self.assertEqual(report.cell_words(row["variants"]["fermata"], "s"), "failed")

    def test_no_bar_no_verdict(self):
        self.assertEqual(report.verdict(self.row(Measure("m", "s", ""))), "")


class Pages(unittest.TestCase):
    def rows(self):
        measures = [measure for scenario in SCENARIOS for measure in scenario.measures]
        found = []
        for number, measure in enumerate(measures):
            samples = {"local": runs(1.0, 1.1), "fermata": runs(2.0, 2.2, rpcs={"mutate": number})}
            samples["fermata"][0].latencies_us = [1.0, 2.0, 3.0]
            errors = {}
            if number == 0:
                del samples["fermata"]
                errors["fermata"] = "EIO"
            found.append(report.summarize(measure, samples, errors, "fermata"))
        return found

    def test_every_row_of_every_table_has_all_its_cells(self):
        width = None
        for line in report.markdown(document(self.rows())).splitlines():
            if not line.startswith("|"):
                width = None
                continue
            width = width or line.count(" |")
            self.assertEqual(line.count(" |"), width, line)

    def test_the_chart_is_well_formed_and_shows_every_ratio(self):
        rows = self.rows()
        chart = xml.dom.minidom.parseString(report.svg(document(rows)))
        texts = [node.firstChild.data for node in chart.getElementsByTagName("text")]
        self.assertEqual(texts.count("0.50"), len(rows) - 1)

    def test_names_are_unique(self):
        names = [measure.name for scenario in SCENARIOS for measure in scenario.measures]
        self.assertEqual(len(names), len(set(names)))


class Interrupts(unittest.TestCase):
    def test_one_that_arrives_during_a_hold_is_raised_after_it(self):
        steps = []
        with self.assertRaises(KeyboardInterrupt):
            with interrupts.hold():
                with interrupts.hold():
                    interrupts._arrived(2, None)
                    steps.append("inner")
                steps.append("outer")
            steps.append("after")
        self.assertEqual(steps, ["inner", "outer"])


if __name__ == "__main__":
    unittest.main()
