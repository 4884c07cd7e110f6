#!/usr/bin/env python3
"""Makes a manual page of a page's source: make_page.py --version V --bin DIR SOURCE.md TARGET

A source is Markdown of a small kind: headings, paragraphs, lists, indented code, tables of two
columns, `code`, *emphasis*. The line `<!-- options: PROGRAM VERB... -->` is replaced by what that
program's --help says of its arguments and options, so that the page cannot disagree with it;
`<!-- about: PROGRAM VERB... -->` by its first sentence.
"""

import argparse
import dataclasses
import os
import re
import subprocess
import sys

DIRECTIVE = re.compile(r"<!-- (about|options): ([\w -]+) -->")
# "-h,--help", "TEXT:{a,b}=a" or "UINT:INT in [1 - 9]=3", "REQUIRED", the text: one blank may be all that
# parts them.
ENTRY = re.compile(r"([^\s,]+(?:,\s*-[^\s,]+)*)(?: ([A-Z]+(?::(?:[A-Z]+ in \[[^]]*\]|\{[^}]*\}|\S+))?(?:=\S+)?)(?= |$))?"
                   r"( REQUIRED)?(?: \.\.\.)?(?:\s+(.*))?")
TITLE = re.compile(r"# ([\w.-]+)\((\d)\): (.+)")


# ---------------------------------------------------------------- what --help says


@dataclasses.dataclass
class Entry:
    """A positional, an option or a subcommand."""

    names: list      # ["-h", "--help"], ["source"]
    argument: str    # "" for a flag, else a word in capitals
    text: str
    limits: list     # ["5 to 10000", "default 75"]
    required: bool


@dataclasses.dataclass
class Help:
    about: str
    positionals: list
    options: list
    subcommands: list


def read_help(bin_dir, words):
    """What `PROGRAM VERB... --help` prints, parsed."""
    done = subprocess.run([os.path.join(bin_dir, words[0]), *words[1:], "--help"], check=True,
                          capture_output=True, text=True)
    return parse_help(done.stdout)


def parse_help(text):
    """CLI11's help: sections of entries, each "  names TYPE  text", the text perhaps on later lines."""
    found = {"positionals": [], "options": [], "subcommands": []}
    about = re.split(r"(?im)^usage:", text)[0].strip()
    section = None
    for line in text.splitlines():
        head = line.strip().rstrip(":").lower()
        if line and line == line.lstrip() and line.endswith(":"):
            section = found.get(head)
            continue
        if section is None or not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        is_new = indent <= 2 or (indent < 16 and line.lstrip().startswith("-"))
        if is_new:
            section.append(list(ENTRY.fullmatch(line.strip()).groups(default="")))
        elif section:
            section[-1][-1] = (section[-1][-1] + " " + line.strip()).strip()
    return Help(about, **{name: [parse_entry(*entry) for entry in entries]
                          for name, entries in found.items()})


def parse_entry(names, kind, required, text):
    limits = []
    if among := re.search(r"\{([^}]*)\}", kind):
        choices = among.group(1).split(",")
        limits.append(", ".join(choices[:-1]) + " or " + choices[-1])
    if span := re.search(r"in \[(\S+) - (\S+)\]", kind):
        limits.append(f"{span.group(1)} to {span.group(2)}")
    if default := re.search(r"=(\S+)$", kind):
        limits.append(f"default {default.group(1)}")
    word = re.match(r"[A-Z]*", kind).group()
    argument = {"TEXT": "VALUE", "UINT": "N", "INT": "N"}.get(word, word)
    return Entry(re.split(r",\s*", names), argument, text, limits, bool(required))


# ---------------------------------------------------------------- roff


def escape(text):
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq")


def inline(text):
    """One line of Markdown; bold and italics do not nest."""
    out = []
    for code, bold, italic, label, plain in re.findall(
            r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*]+)\*|\[([^\]]+)\]\([^)]*\)|([^`*\[]+|[*\[])", text):
        if code or bold:
            out.append("\\fB" + escape(code or bold) + "\\fR")
        elif italic:
            out.append("\\fI" + escape(italic) + "\\fR")
        else:
            out.append(escape(label or plain))
    line = "".join(out)
    return "\\&" + line if line.startswith((".", "\\(aq")) else line


def sentence(text):
    return text if text.endswith(".") else text + "."


def entry_lines(entry, is_option):
    font = "B" if is_option else "I"
    head = ", ".join(f"\\f{font}{escape(name)}\\fR" for name in entry.names)
    if is_option and entry.argument:
        head += f" \\fI{entry.argument}\\fR"
    notes = ["required"] if is_option and entry.required else []
    notes += [note for note in entry.limits if note not in entry.text]
    text = entry.text + (f" ({'; '.join(notes)})" if notes else "")
    return [".TP", head, inline(sentence(text))]


def blocks_of(lines):
    """Runs of lines that belong together; a heading is one by itself."""
    block = []
    for line in lines:
        if block and (not line.strip() or line.startswith("#") or block[0].startswith("#")):
            yield block
            block = []
        if line.strip():
            block.append(line)
    if block:
        yield block


def block_lines(block, help_of):
    first = block[0]
    if directive := DIRECTIVE.fullmatch(first.strip()):
        what, words = directive.group(1), directive.group(2).split()
        found = help_of(words)
        if what == "about":
            yield from (".PP", inline(sentence(found.about)))
            return
        for entry in found.positionals:
            yield from entry_lines(entry, False)
        for entry in found.options:
            # Every verb has --help; it is told once.
            if len(words) == 1 or "--help" not in entry.names:
                yield from entry_lines(entry, True)
    elif first.startswith("## "):
        yield ".SH " + escape(first[3:].upper())
    elif first.startswith("### "):
        yield ".SS " + inline(first[4:])
    elif first.startswith("    "):
        yield from (".PP", ".RS 4", ".nf")
        yield from (("\\&" if line[4:5] == "." else "") + escape(line[4:]) for line in block)
        yield from (".fi", ".RE")
    elif first.startswith("|"):
        for line in block[2:]:
            cells = line.strip().strip("|").split(" | ")
            if len(cells) != 2:
                raise SystemExit(f"a table has two columns: {line}")
            yield from (".TP", inline(cells[0].strip()), inline(cells[1].strip()))
    elif first.startswith("- "):
        for line in block:
            if line.startswith("- "):
                yield ".IP \\(bu 2"
            yield inline(line.removeprefix("- ").strip())
    else:
        yield ".PP"
        yield from (inline(line.strip()) for line in block)


def page(source, version, help_of):
    """The whole page. `help_of` takes a list of words and returns their Help."""
    lines = source.splitlines()
    title = TITLE.fullmatch(lines[0])
    if not title:
        raise SystemExit("the first line must be '# name(section): what it is'")
    name, section, what = title.groups()
    out = [f'.TH "{escape(name.upper())}" {section} "" "Fermata {version}" "Fermata"', ".SH NAME",
           f"{escape(name)} \\- {escape(what)}"]
    for block in blocks_of(lines[1:]):
        out += block_lines(block, help_of)
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--version", required=True)
    parser.add_argument("--bin", required=True)
    parser.add_argument("source")
    parser.add_argument("target")
    given = parser.parse_args()
    with open(given.source, encoding="utf-8") as file:
        source = file.read()
    text = page(source, given.version, lambda words: read_help(given.bin, words))
    with open(given.target, "w", encoding="utf-8") as file:
        file.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
