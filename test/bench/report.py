"""From samples to what people read: medians, ratios, verdicts, the table, the chart.

Nothing here touches a filesystem under test, so report_test.py checks it with made-up samples.
"""

import html
import math
import statistics

LOCAL = "local"  # the variant that all others are held against


def significant(value, digits=4):
    return float(f"{value:.{digits}g}")


def percentile(ordered, part):
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def speed_ratio(value, local, unit):
    """How fast, as a part of the local disk's speed: 1 is as fast, 0.1 takes ten times as long."""
    return local / value if unit == "s" else value / local


def summarize(measure, samples, errors, default):
    """One row. `samples`: variant -> {repetition: Sample}; `errors`: variant -> sentence.

    A ratio is the median of the ratios of the pairs (same repetition), which takes out what
    changed on the machine between repetitions; it need not equal the quotient of the medians.
    """
    row = {"name": measure.name, "unit": measure.unit, "text": measure.text, "variants": {}}
    local = samples.get(LOCAL, {})
    for variant, runs in samples.items():
        if not runs:
            continue
        values = [run.value(measure.unit) for run in runs.values()]
        cell = {"median": significant(statistics.median(values)),
                "runs": [significant(value) for value in values]}
        if variant != LOCAL:
            ratios = [speed_ratio(run.value(measure.unit), local[number].value(measure.unit),
                                  measure.unit)
                      for number, run in runs.items() if number in local]
            if ratios:
                cell["ratio"] = significant(statistics.median(ratios), 3)
                cell["ratio_runs"] = [significant(ratio, 3) for ratio in ratios]
            # The middle repetition by RPCs: counts differ a little where time decides (batches).
            middle = sorted(runs.values(), key=lambda run: sum(run.rpcs.values()))[len(runs) // 2]
            cell["rpcs"] = dict(sorted(middle.rpcs.items(), key=lambda item: -item[1]))
            cell["rpc_total"] = sum(middle.rpcs.values())
            cell["log_entries"] = middle.log_entries
            cell["count"] = middle.count
        latencies = sorted(us for run in runs.values() for us in run.latencies_us)
        if latencies:
            cell["p50_us"] = significant(percentile(latencies, 0.50))
            cell["p99_us"] = significant(percentile(latencies, 0.99))
        row["variants"][variant] = cell
    for variant, error in errors.items():
        row["variants"].setdefault(variant, {})["error"] = error
    row["bars"] = bars_of(measure)
    row["misses"] = misses(measure, row["variants"].get(default, {}))
    return row


def bars_of(measure):
    """The bars of a measure as words."""
    bars = []
    if measure.ratio_min is not None:
        bars.append(f"≥ {measure.ratio_min:g}")
    if measure.seconds_max is not None:
        bars.append(f"≤ {measure.seconds_max:g} s")
    if measure.rate_min is not None:
        bars.append(f"≥ {measure.rate_min:g}/s")
    if measure.rpcs_max is not None:
        bars.append(f"≤ {measure.rpcs_max} RPCs")
    return bars


def misses(measure, cell):
    """The bars that a cell misses, in words; a measure that gave nothing misses all it has."""
    if "median" not in cell:
        return bars_of(measure)
    found = []
    if measure.ratio_min is not None and cell.get("ratio", 0) < measure.ratio_min:
        found.append(f"≥ {measure.ratio_min:g}")
    if measure.seconds_max is not None and cell["median"] > measure.seconds_max:
        found.append(f"≤ {measure.seconds_max:g} s")
    if measure.rate_min is not None and cell["median"] < measure.rate_min:
        found.append(f"≥ {measure.rate_min:g}/s")
    if measure.rpcs_max is not None and cell.get("rpc_total", 0) > measure.rpcs_max:
        found.append(f"≤ {measure.rpcs_max} RPCs")
    return found


def human(value, unit):
    if unit == "s":
        if value < 0.001:
            return f"{value * 1e6:.3g} µs"
        return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
    if value >= 1e6:
        return f"{value / 1e6:.3g}M {unit}"
    if value >= 1e4:
        return f"{value / 1e3:.3g}k {unit}"
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:.0f} {unit}"


def ratio_words(ratio):
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def cell_words(cell, unit):
    if "median" not in cell:
        return "failed" if "error" in cell else ""
    words = human(cell["median"], unit)
    if "ratio" in cell:
        words += f" ({ratio_words(cell['ratio'])})"
    return words + (" (then failed)" if "error" in cell else "")


def rpc_words(cell):
    """"1500 mutate, 30 lookup; 1 per op" of one cell, or "0"."""
    if "rpcs" not in cell:
        return ""
    if not cell["rpcs"]:
        return "0"
    words = ", ".join(f"{count} {method}" for method, count in cell["rpcs"].items())
    if cell["count"] > 1:
        words += f"; {cell['rpc_total'] / cell['count']:.3g} each"
    return words


def verdict(row):
    if not row["bars"]:
        return ""
    return "missed: " + ", ".join(row["misses"]) if row["misses"] else "met"


def markdown(report):
    """The page: how it was measured, the table, the RPCs, what failed."""
    machine, variants = report["machine"], report["variants"]
    others = [name for name in variants if name != LOCAL]
    lines = [
        "# Benchmarks",
        "",
        "Made by `./dev bench`; [test/bench/README.md](../test/bench/README.md) says how each number is "
        "taken. In brackets: speed as a part of the local disk's (1 is as fast), the median of "
        f"{report['repetitions']} paired repetitions. Caches of cold rows are empty: a new mount, an "
        "empty cache directory, dropped page caches on all sides.",
        "",
        f"{machine['cpus']} x {machine['cpu']}, {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, {machine['filesystem']}; three nodes and the mount on this one machine and "
        f"disk. Load average {machine['load_before']} before, {machine['load_after']} after. Scale "
        f"{report['scale']:g}, seed {report['seed']}, {report['started']}, commit {report['commit']}.",
        "",
        "| variant | mounted with |",
        "| --- | --- |",
    ]
    for name, text in variants.items():
        lines.append(f"| {name} | {text} |")
    lines += ["", "![Speed as a part of the local disk's](benchmarks.svg)", "",
              "| workload | | " + " | ".join(variants) + " | bar | |",
              "| --- | --- | " + "--- | " * len(variants) + "--- | --- |"]
    for row in report["rows"]:
        cells = [cell_words(row["variants"].get(name, {}), row["unit"]) for name in variants]
        lines.append(f"| {row['name']} | {row['text']} | " + " | ".join(cells)
                     + f" | {', '.join(row['bars'])} | {verdict(row)} |")
    lines += ["", "## Messages and log entries", "",
              "RPCs of the mount during the timed part, and entries that it added to the replicated log. "
              "They do not depend on the machine.", "",
              "| workload | operations | " + " | ".join(f"{name}: RPCs | entries" for name in others)
              + " |",
              "| --- | --- | " + "--- | --- | " * len(others)]
    for row in report["rows"]:
        cells, count = [], ""
        for name in others:
            cell = row["variants"].get(name, {})
            count = count or (f"{cell['count']:.0f}" if "count" in cell else "")
            cells += [rpc_words(cell), str(cell.get("log_entries", ""))]
        lines.append(f"| {row['name']} | {count} | " + " | ".join(cells) + " |")
    slow = [row for row in report["rows"]
            if any("p99_us" in cell for cell in row["variants"].values())]
    if slow:
        lines += ["", "## Latencies", "", "p50 and p99 of single operations.", "",
                  "| workload | " + " | ".join(variants) + " |",
                  "| --- | " + "--- | " * len(variants)]
        for row in slow:
            cells = []
            for name in variants:
                cell = row["variants"].get(name, {})
                cells.append(f"{human(cell['p50_us'] / 1e6, 's')}, {human(cell['p99_us'] / 1e6, 's')}"
                             if "p99_us" in cell else "")
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    if report["errors"]:
        lines += ["", "## What failed", ""]
        lines += [f"- {error}" for error in report["errors"]]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- the chart

COLORS = ("#2f6fb5", "#d98032", "#5a9a57", "#9467a8")
AXIS_MIN, AXIS_MAX = 0.001, 3.0


def svg(report):
    """Bars on a logarithmic axis: speed as a part of the local disk's. The line is 1, as fast."""
    others = [name for name in report["variants"] if name != LOCAL]
    rows = [row for row in report["rows"]
            if any("ratio" in row["variants"].get(name, {}) for name in others)]
    left, width, top, bar, gap = 190, 620, 58, 9, 7
    step = bar * len(others) + gap
    height = top + step * len(rows) + 30

    def x_of(ratio):
        inside = min(max(ratio, AXIS_MIN), AXIS_MAX)
        return left + width * (math.log10(inside / AXIS_MIN) / math.log10(AXIS_MAX / AXIS_MIN))

    bottom = top + step * len(rows)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 70} {height}" '
           'font-family="sans-serif" font-size="11">',
           f'<rect width="{left + width + 70}" height="{height}" fill="#ffffff"/>',
           f'<text x="{left}" y="18" font-size="14">Speed as a part of the local disk&#39;s (1: as fast; '
           'logarithmic)</text>']
    x = left
    for number, name in enumerate(others):
        out.append(f'<rect x="{x}" y="28" width="10" height="10" fill="{COLORS[number % len(COLORS)]}"/>')
        out.append(f'<text x="{x + 14}" y="37">{html.escape(name)}</text>')
        x += 34 + 7 * len(name)
    for tick in (0.001, 0.01, 0.1, 0.5, 1):
        strong = tick == 1
        out.append(f'<line x1="{x_of(tick):.1f}" y1="{top - 6}" x2="{x_of(tick):.1f}" y2="{bottom}" '
                   f'stroke="{"#333333" if strong else "#dddddd"}"/>')
        out.append(f'<text x="{x_of(tick):.1f}" y="{bottom + 16}" text-anchor="middle">{tick:g}</text>')
    for index, row in enumerate(rows):
        y = top + step * index
        out.append(f'<text x="{left - 8}" y="{y + step / 2:.1f}" text-anchor="end">'
                   f'{html.escape(row["name"])}</text>')
        for number, name in enumerate(others):
            cell = row["variants"].get(name, {})
            if "ratio" not in cell:
                continue
            at = y + number * bar
            out.append(f'<rect x="{left}" y="{at}" width="{x_of(cell["ratio"]) - left:.1f}" '
                       f'height="{bar - 1}" fill="{COLORS[number % len(COLORS)]}"/>')
            out.append(f'<text x="{x_of(cell["ratio"]) + 4:.1f}" y="{at + bar - 1.5}" font-size="9">'
                       f'{ratio_words(cell["ratio"])}</text>')
    out.append("</svg>")
    return "\n".join(out) + "\n"
