#!/usr/bin/env python3
"""Finds circles of modules inside a crate, and crates that use a layer above them.

A module is the first path component below src/; it and its children count as one. What counts as a use is read from
the text of the files: `use` lines and paths that begin with `crate::` or `super::`. Tests do not count. A name that
lib.rs or main.rs re-exports (`pub use x::Name`) counts as a use of `x`. Circles between the children of one module are
not looked for.

Prints nothing and ends with 0 when there is none; prints a line for each and ends with 1 otherwise.
"""

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

# From the lowest layer to the highest: the crate's name, its folder.
LAYERS = [
    ("barmanfs-pg", "catalog/pg"),
    ("barmanfs-store", "catalog/store"),
    ("barmanfs-foreign", "catalog/foreign"),
    ("barmanfs-bucket", "catalog/bucket"),
    ("barmanfs-catalog", "catalog"),
    ("barmanfs-live", "catalog/live"),
    ("barmanfs-fs", "fs"),
    ("barmanfs", "."),
]

# Uses of a lower layer that are unwanted all the same: (crate, what it must not use).
FORBIDDEN = {
    ("barmanfs-store", "barmanfs-pg"),
    ("barmanfs-foreign", "barmanfs-store"),
    ("barmanfs-bucket", "barmanfs-pg"),
    ("barmanfs-bucket", "barmanfs-foreign"),
    ("barmanfs-catalog", "barmanfs-bucket"),
    ("barmanfs-live", "barmanfs-bucket"),
    ("barmanfs-fs", "barmanfs-bucket"),
    ("barmanfs-catalog", "barmanfs-foreign"),
    ("barmanfs-live", "barmanfs-foreign"),
    ("barmanfs-fs", "barmanfs-foreign"),
}

# The crate's own items in lib.rs and main.rs.
TOP = "(top)"

TOKEN = re.compile(
    r"""//[^\n]*
      | /\*.*?\*/
      | b?r(?P<hashes>\#*)".*?"(?P=hashes)
      | b?"(?:\\.|[^"\\])*"
      | b?'(?:\\.[^']*|[^'\\])'
    """,
    re.S | re.X,
)
TEST_MODULE = re.compile(
    r"""\#\[cfg\((?:all\()?test\b[^\]]*\]\s*   # the attribute that keeps it out of the program
        (?:\#\[[^\]]*\]\s*)*                  # other attributes
        (?:pub(?:\([^)]*\))?\s+)?
        mod\s+(?P<name>\w+)\s*(?P<end>[{;])
    """,
    re.X,
)
TEST_FILE = re.compile(r'#\[cfg\(test\)\]\s*#\[path\s*=\s*"(?P<path>[^"]+)"\]')
USE = re.compile(r"(?P<public>\bpub(?:\([^)]*\))?\s+)?\buse\s+(?P<tree>[^;]+);")
INLINE = re.compile(r"\b(?P<path>(?:crate|super)(?:::\w+)+)")
BARE = re.compile(r"(?<![\w:])(?P<path>[a-z]\w*(?:::\w+)+)")


def without_comments_and_texts(text):
    return TOKEN.sub(lambda found: " " if found[0].startswith("/") else '""', text)


def without_tests(text):
    """Cuts test modules out; returns the text and the names of those that are files."""
    kept, files, at = [], set(), 0
    while found := TEST_MODULE.search(text, at):
        kept.append(text[at : found.start()])
        at = found.end()
        if found["end"] == ";":
            files.add(found["name"])
            continue
        depth = 1
        while depth and at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
    return "".join(kept) + text[at:], files


def expanded(tree):
    """The paths of a use tree: (path as a list, name it gets)."""
    tree = tree.strip()
    if "{" not in tree:
        path, _, name = tree.partition(" as ")
        path = [part.strip() for part in path.strip().split("::") if part.strip()]
        return [(path, name.strip() or path[-1])] if path else []
    start, inner = tree.index("{"), tree[tree.index("{") + 1 : tree.rindex("}")]
    before = [part.strip() for part in tree[:start].split("::") if part.strip()]
    parts, depth, part = [], 0, ""
    for letter in inner:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    parts.append(part)
    return [(before + path, name) for part in parts if part.strip() for path, name in expanded(part)]


def module_of(path, source):
    """Where a file is in its crate: [] for lib.rs and main.rs."""
    parts = list(path.relative_to(source).with_suffix("").parts)
    if parts[-1] == "mod":
        parts.pop()
    return [] if parts in (["lib"], ["main"]) else parts


class Crate:
    """The modules of a crate, and which of them uses which."""

    def __init__(self, source):
        self.texts = {}
        tests = set()
        for path in sorted(source.rglob("*.rs")):
            module = module_of(path, source)
            written = path.read_text()
            for found in TEST_FILE.finditer(written):
                elsewhere = (path.parent / found["path"]).resolve()
                if elsewhere.is_relative_to(source):
                    tests.add(tuple(module_of(elsewhere, source)))
            text, files = without_tests(without_comments_and_texts(written))
            self.texts[tuple(module)] = text
            tests.update(tuple(module) + (name,) for name in files)
        self.texts = {
            module: text
            for module, text in self.texts.items()
            if not any(module[: len(test)] == test for test in tests)
        }
        self.modules = {module[0] for module in self.texts if module}
        self.passed_on = self._passed_on()
        self.uses = self._uses()

    def _passed_on(self):
        """Names in lib.rs or main.rs that are items of a module."""
        names = {}
        for found in USE.finditer(self.texts.get((), "")):
            for path, name in expanded(found["tree"]):
                path = path[1:] if path[0] in ("crate", "self") else path
                if path and path[0] in self.modules:
                    names[name] = path[0]
        return names

    def _target(self, module, path):
        """The module a path leads to, seen from a module; None when it leads out of the crate."""
        if path[0] == "crate":
            at, path = [], path[1:]
        elif path[0] in ("self", "super"):
            at = list(module)
            while path and path[0] in ("self", "super"):
                if path[0] == "super":
                    # A module in the same file may be meant: then this stays inside the module.
                    at = at[:-1]
                path = path[1:]
        else:
            return None
        if at:
            return at[0]
        if not path:
            return TOP
        return path[0] if path[0] in self.modules else self.passed_on.get(path[0], TOP)

    def _uses(self):
        uses = {}
        for module, text in self.texts.items():
            if not module:
                own = [found for found in USE.finditer(text) if not found["public"]]
                paths = [path for found in own for path, _ in expanded(found["tree"])]
                paths = [["crate"] + path if path[0] in self.modules else path for path in paths]
            else:
                paths = [path for found in USE.finditer(text) for path, _ in expanded(found["tree"])]
            rest = USE.sub("", text)
            paths += [found["path"].split("::") for found in INLINE.finditer(rest)]
            if not module:
                bare = [found["path"].split("::") for found in BARE.finditer(rest)]
                paths += [["crate"] + path for path in bare if path[0] in self.modules]
            here = module[0] if module else TOP
            for path in paths:
                target = self._target(module, path)
                if target is not None and target != here:
                    uses.setdefault(here, set()).add(target)
        return uses

    def circles(self):
        """Groups of modules each of which uses, over others or not, every other."""
        reached = {module: self._reached(module) for module in self.modules | {TOP}}
        groups = {
            frozenset(other for other in beyond if module in reached[other]) | {module}
            for module, beyond in reached.items()
            if module in beyond
        }
        return sorted((sorted(group) for group in groups), key=str)

    def _reached(self, start):
        seen, waiting = set(), [start]
        while waiting:
            for other in self.uses.get(waiting.pop(), ()):
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        return seen

    def around(self, group):
        """A shortest way through a group back to its first module, for a person to follow."""
        start, ways = group[0], [[group[0]]]
        while ways:
            way = ways.pop(0)
            for other in sorted(self.uses.get(way[-1], ())):
                if other == start:
                    return " -> ".join(way + [start])
                if other in group and other not in way:
                    ways.append(way + [other])
        return " -> ".join(group)


def dependencies(folder):
    """The crates of this workspace that a crate depends on, test dependencies left out."""
    found, section = set(), ""
    for line in (ROOT / folder / "Cargo.toml").read_text().splitlines():
        if line.startswith("["):
            section = line.strip()
        elif section == "[dependencies]" and (name := re.match(r"(barmanfs-[\w-]+)[.\s=]", line)):
            found.add(name[1])
    return found


def layer_breaks():
    rank = {name: place for place, (name, _) in enumerate(LAYERS)}
    for name, folder in LAYERS:
        for used in sorted(dependencies(folder)):
            if (name, used) in FORBIDDEN or rank.get(used, len(LAYERS)) >= rank[name]:
                yield f"{name} uses {used}, which is not a layer below it"


def problems():
    yield from layer_breaks()
    for name, folder in LAYERS:
        crate = Crate(ROOT / folder / "src")
        for group in crate.circles():
            yield f"{name}: {', '.join(group)} use each other: {crate.around(group)}"


def main():
    found = list(problems())
    for line in found:
        print(line)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
