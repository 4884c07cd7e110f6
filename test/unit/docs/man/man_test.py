#!/usr/bin/env python3
"""The manual pages against the programs: each says what the other knows."""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

sys.dont_write_bytecode = True

PAGES = {"fermata": "fermata.1", "fermata-mountd": "fermata-mountd.8",
         "fermata-serverd": "fermata-serverd.8"}
ALL_PAGES = [*PAGES.values(), "fermata-node.toml.5"]

given = None
make_page = None


def plain(name):
    """A built page as its reader's text, without fonts."""
    with open(os.path.join(given.build, "man", name), encoding="utf-8") as file:
        text = file.read()
    return re.sub(r"\\f[BIR]", "", text).replace("\\-", "-").replace("\\(aq", "'").replace("\\&", "")


def verbs(words):
    """(words, Help) of a program and of everything below it."""
    found = make_page.read_help(given.bin, words)
    yield words, found
    for entry in found.subcommands:
        yield from verbs([*words, entry.names[0]])


class Pages(unittest.TestCase):
    def test_every_option_argument_and_verb_of_a_program_is_in_its_page(self):
        for program, name in PAGES.items():
            text = plain(name)
            seen = 0
            for words, found in verbs([program]):
                if not found.subcommands and len(words) > 1:
                    self.assertRegex(text, rf"(?m)^\.SS {' '.join(words)}\b")
                    # What follows the verb's heading, up to the next.
                    part = text.split(f".SS {' '.join(words)}", 1)[1]
                    part = re.split(r"(?m)^\.S[SH] ", part)[0]
                else:
                    part = text
                for entry in found.options + found.positionals:
                    for option in entry.names:
                        where = text if option in ("-h", "--help") else part
                        with self.subTest(words=words, option=option):
                            self.assertRegex(where, rf"(?m)(^|[\s,]){re.escape(option)}\b")
                        seen += 1
            self.assertGreater(seen, 10)  # the parser found something

    def test_every_long_option_in_a_source_exists(self):
        known = {option for program in PAGES for _, found in verbs([program])
                 for entry in found.options for option in entry.names}
        for name in ALL_PAGES:
            with open(os.path.join(given.source, name + ".md"), encoding="utf-8") as file:
                text = file.read()
            for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"<!--.*?-->", "", text)):
                with self.subTest(page=name, option=option):
                    self.assertIn(option, known)

    def test_mount_options_that_the_help_names_are_explained(self):
        found = make_page.read_help(given.bin, ["fermata-mountd"])
        named = next(entry.text for entry in found.options if entry.names == ["-o"])
        table = plain("fermata-mountd.8").split(".SH MOUNT OPTIONS")[1].split(".SH SIGNALS")[0]
        for option in re.findall(r"[\w-]+(?:=\w+)?", named):
            with self.subTest(option=option):
                self.assertRegex(table, rf"(?m)^(.*, )?{re.escape(option)}(,.*)?$")

    def test_an_options_file_as_in_its_page_is_taken(self):
        with open(os.path.join(given.source, "fermata-node.toml.5.md"), encoding="utf-8") as file:
            example = "\n".join(line[4:] for line in file.read().splitlines() if line.startswith("    "))
        self.assertIn("data-dir", example)
        with tempfile.TemporaryDirectory() as directory:
            missing = os.path.join(directory, "missing")
            path = os.path.join(directory, "options.toml")
            with open(path, "w", encoding="utf-8") as file:
                file.write(re.sub(r'data-dir = ".*"', f'data-dir = "{missing}"', example))
            done = subprocess.run([os.path.join(given.bin, "fermata-serverd"), "--config", path],
                                  capture_output=True, text=True, check=False)
        # It read all of it, and went on to the directory that is not there.
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn(missing, done.stderr)

    @unittest.skipUnless(shutil.which("groff"), "groff is not installed")
    def test_groff_has_nothing_to_say(self):
        for name in ALL_PAGES:
            done = subprocess.run(["groff", "-man", "-ww", "-z", os.path.join(given.build, "man", name)],
                                  capture_output=True, text=True, check=False)
            self.assertEqual((done.returncode, done.stderr), (0, ""), name)

    def test_install_puts_each_into_its_section(self):
        with tempfile.TemporaryDirectory() as prefix:
            subprocess.run([given.cmake, "--install", given.build, "--prefix", prefix], check=True,
                           stdout=subprocess.DEVNULL)
            man = os.path.join(prefix, "share", "man")
            found = sorted(os.path.join(os.path.basename(where), name)
                           for where, _, names in os.walk(man) for name in names)
            programs = sorted(os.listdir(os.path.join(prefix, "bin")))
        self.assertEqual(found, sorted(f"man{name[-1]}/{name}" for name in ALL_PAGES))
        self.assertEqual(programs, sorted(PAGES))


class Parser(unittest.TestCase):
    def test_the_left_column_may_end_with_one_blank_or_with_its_line(self):
        found = make_page.parse_help(
            "What it is\nUsage: p [OPTIONS]\n\nOptions:\n"
            "  -h,--help                   Print this\n"
            "  --mount-point TEXT REQUIRED An existing directory\n"
            "  --lease-ms UINT:INT in [500 - 600000]=10000\n"
            "                              Lease of sessions\n"
            "  --nodes UINT:{1,3,5}=3      Nodes\n"
            "  -o TEXT ...                 Mount options\n\n")
        self.assertEqual(found.about, "What it is")
        self.assertEqual([entry.names for entry in found.options],
                         [["-h", "--help"], ["--mount-point"], ["--lease-ms"], ["--nodes"], ["-o"]])
        self.assertEqual([entry.text for entry in found.options],
                         ["Print this", "An existing directory", "Lease of sessions", "Nodes",
                          "Mount options"])
        self.assertEqual([entry.required for entry in found.options],
                         [False, True, False, False, False])
        self.assertEqual(found.options[2].limits, ["500 to 600000", "default 10000"])
        self.assertEqual(found.options[3].limits, ["1, 3 or 5", "default 3"])

    def test_newer_layouts_of_the_help(self):
        found = make_page.parse_help(
            "What it is\n\n\nUSAGE: p [OPTIONS] SUBCOMMAND\n\n\nOPTIONS:\n"
            "  -h,     --help              Print this help\n"
            "          --data-dir TEXT REQUIRED\n"
            "                              Directory of\n"
            "                              the data\n\n"
            "SUBCOMMANDS:\n  mini                        A whole cluster\n")
        self.assertEqual([entry.names for entry in found.options], [["-h", "--help"], ["--data-dir"]])
        self.assertEqual(found.options[1].text, "Directory of the data")
        self.assertEqual([entry.names for entry in found.subcommands], [["mini"]])

    def test_roff_s_own_characters_are_data(self):
        source = "# p(1): it\n\n## S\n\n.dot and 'quote\n\n    .code \\ here\n"
        built = make_page.page(source, "1", None)
        self.assertIn("\n\\&.dot", built)
        self.assertIn("\n\\&.code \\e here\n", built)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for flag in ("--source", "--build", "--bin", "--cmake"):
        parser.add_argument(flag, required=True)
    given, rest = parser.parse_known_args()
    sys.path.insert(0, given.source)
    import make_page
    unittest.main(argv=sys.argv[:1] + rest)
