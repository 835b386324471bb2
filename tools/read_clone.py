#!/usr/bin/env python3
"""List or extract the files of a clone without barmanfs.

Written from the section "Clones" of catalog/store/FORMAT.md, on top of read_pack.py. Nobody may use the clone
meanwhile: stop its server, and end the mount that serves it. Nothing in the repository is changed.
"""

import argparse
import itertools
import json
import os
import struct
import sys
from pathlib import Path

import blake3
import read_pack
from read_pack import BLOCK, Cursor, Entry, Problem, require, text

EXAMPLES = """\
examples:
  read_clone.py /backups main/test1                            list all files
  read_clone.py /backups main/test1 -o /restore/test1          extract all files
  read_clone.py /backups main/test1 base/5/1259 -o 1259        extract one file
"""

FRAME = struct.Struct("<IIQQ")
STEP = 128 * 1024
KINDS = {1: "file", 2: "directory", 3: "link", 4: "socket"}


class Node:
    """A file, directory, symbolic link or socket of a clone, after all changes."""

    def __init__(self, kind, origin=None, entry=None):
        self.kind, self.origin, self.entry = kind, origin, entry
        self.mode = self.uid = self.gid = self.mtime_s = self.mtime_ns = 0
        self.target = None
        self.names = {}  # of a directory: name -> a node's number, or None where nothing is any more
        self.plain = entry is None  # the file in files/ is the whole file
        self.size = self.visible = 0
        self.runs = None  # blocks in the file in files/; None while all of it is the backup's
        if entry:
            self.mode, self.uid, self.gid = entry.mode, entry.uid, entry.gid
            self.mtime_s, self.mtime_ns = entry.mtime_s, entry.mtime_ns
            self.target = entry.content if kind == "link" else None
            self.size = self.visible = entry.content.size if kind == "file" else 0


class Clone:
    def __init__(self, repository, directory):
        self.repository, self.directory = repository, directory
        with read_pack.as_problem(f"{directory}/clone.json"):
            description = json.loads((directory / "clone.json").read_bytes())
            version = description["version"]
            require(version <= 1, f"{directory} has version {version}: a newer barmanfs wrote it")
            self.description = description
            self.seed = description.get("seed") or description["id"]
            self.lower_root = read_pack.root_from_json(description["root"])
            self.nodes = {}
            self.root = self.known_or_lower(b"", self.lower_root)
            for graft in description.get("grafts") or []:
                self.add_graft(graft)
        self.replay()

    # -- numbers and nodes

    def number(self, kind, what):
        digest = blake3.blake3(self.seed.encode() + kind + what).digest()
        return max(int.from_bytes(digest[:8], "little") & (1 << 63) - 1, 16)

    def known_or_lower(self, path, entry):
        """The number of the backup's node at a path; it is known afterwards."""
        number = self.number(b"path", path)
        if number not in self.nodes:
            self.nodes[number] = Node(entry.kind, path, entry)
        return number

    def add_graft(self, graft):
        path = os.fsencode(graft["path"])
        parent, _, name = path.rpartition(b"/")
        values = [graft["attributes"][field] for field in ("mode", "uid", "gid", "mtime_s", "mtime_ns")]
        entry = Entry(name, "file", *values, read_pack.map_from_json(graft["map"], text(path)))
        self.nodes[self.lower(parent)].names[name] = self.known_or_lower(path, entry)

    def lower(self, path):
        number = self.number(b"path", path)
        if number not in self.nodes:
            entry = self.repository.lookup_below(self.lower_root, path, "the backup")
            self.nodes[number] = Node(entry.kind, path, entry)
        return number

    # -- the journal

    def replay(self):
        path = self.directory / "journal"
        data = path.read_bytes()
        offset = 0
        while (frame := whole_frame(data, offset)) is not None:
            cursor = Cursor(frame[1], f"The frame at byte {offset} of {path}")
            while cursor.at < len(cursor.data):
                self.apply(cursor, is_first=offset == cursor.at == 0)
            offset += FRAME.size + len(frame[1])
        require(offset > 0, f"{path} has no complete record")
        for at in range(offset + 1, len(data)):
            later = whole_frame(data, at)
            require(later is None or later[0] <= offset, f"{path} is damaged at byte {offset}")

    def apply(self, cursor, is_first):
        kind = cursor.number(1)
        require((kind == 1) == is_first, f"{cursor.what} does not begin with the version of a journal")
        if kind == 1:
            version, seed = cursor.number(4), short(cursor)
            require(version == 1, f"{cursor.what} has version {version}")
            require(seed == self.seed.encode(), f"{cursor.what} is of another clone: {text(seed)}")
        elif kind == 2:
            cursor.number(8)  # only a writer needs the count
        elif kind == 3:
            self.introduce(cursor)
        elif kind == 4:
            self.set_attributes(cursor)
        elif kind == 5:
            parent, name = self.node(cursor), short(cursor)
            child = cursor.number(8) if optional(cursor) else None
            require(child is None or child in self.nodes, f"{cursor.what} refers to a node before it describes it")
            parent.names[read_pack.check_name(name, cursor.what)] = child
        elif kind == 6:
            self.set_data(cursor)
        elif kind == 7:
            self.node(cursor).plain = True
        else:
            raise Problem(f"{cursor.what} has a change of the unknown kind {kind}")

    def node(self, cursor):
        number = cursor.number(8)
        require(number in self.nodes, f"{cursor.what} refers to node {number:016x} before it describes it")
        return self.nodes[number]

    def introduce(self, cursor):
        number = cursor.number(8)
        origin = short(cursor) if optional(cursor) else None
        kind = KINDS.get(cursor.number(1))
        target = short(cursor) if kind == "link" else None
        require(kind, f"{cursor.what} has a node of an unknown kind")
        if origin is not None:
            require(self.lower(origin) == number, f"{cursor.what} gives a node a number that is not its")
        elif number not in self.nodes:
            self.nodes[number] = Node(kind)
            self.nodes[number].target = target

    def set_attributes(self, cursor):
        node = self.node(cursor)
        node.mode, node.uid, node.gid, _links = (cursor.number(4) for _ in range(4))
        node.mtime_s, node.mtime_ns = cursor.number(8, signed=True), cursor.number(4)
        cursor.take(12)  # the time of the last change of attributes, which cannot be restored

    def set_data(self, cursor):
        node = self.node(cursor)
        if node.plain:  # it is the backup's again in part: nothing of it is in files/ yet
            node.plain, node.runs = False, []
        node.size = cursor.number(8)
        node.visible = min(node.visible, node.size, cursor.number(8))
        runs = (node.runs or []) + [(cursor.number(8), cursor.number(8)) for _ in range(cursor.number(4))]
        end = read_pack.row_count(node.size, BLOCK)
        node.runs = [(first, min(last, end)) for first, last in runs if first < end]

    # -- what is in it

    def children(self, number):
        """The (name, number) of all entries of a directory, sorted by name."""
        node, found = self.nodes[number], {}
        if node.entry:
            for entry in self.repository.entries(node.entry.content, text(node.origin) or "the root"):
                if entry.name not in node.names:
                    path = node.origin + b"/" + entry.name if node.origin else entry.name
                    found[entry.name] = self.known_or_lower(path, entry)
        found.update({name: child for name, child in node.names.items() if child is not None})
        return sorted(found.items())

    def walk(self, number=None, path=b""):
        """All (path, number) below a directory."""
        for name, child in self.children(self.root if number is None else number):
            full = path + b"/" + name if path else name
            yield full, child
            if self.nodes[child].kind == "directory":
                yield from self.walk(child, full)

    def find(self, path):
        number = self.root
        for name in [name for name in path.split(b"/") if name]:
            require(self.nodes[number].kind == "directory", f"{text(path)} is not in the clone")
            number = dict(self.children(number)).get(name)
            require(number is not None, f"{text(path)} is not in the clone")
        return number

    def upper(self, number):
        return self.directory / "files" / f"{number:016x}"

    def contents(self, number):
        """The bytes of a file, in pieces."""
        node = self.nodes[number]
        if node.plain:
            yield from plain_contents(self.upper(number))
        elif node.runs is None:
            yield from self.repository.contents(node.entry.content, text(node.origin))
        else:
            yield from self.partial_contents(number, node)

    def partial_contents(self, number, node):
        lower = iter(())
        if node.entry:
            lower = itertools.chain.from_iterable(self.repository.contents(node.entry.content, text(node.origin)))
        # Created when it is first needed: a file that was only truncated has none.
        upper = open(self.upper(number), "rb") if node.runs else None
        for start in range(0, node.size, STEP):
            length = min(STEP, node.size - start)
            data = bytearray(itertools.islice(lower, max(0, min(node.visible - start, length))))
            data.extend(bytes(length - len(data)))
            for first, end in node.runs:
                begin, stop = max(first * BLOCK, start), min(end * BLOCK, start + length)
                if begin < stop:
                    upper.seek(begin)
                    data[begin - start : stop - start] = upper.read(stop - begin).ljust(stop - begin, b"\0")
            yield bytes(data)

    def entry(self, number):
        """The node in the form that read_pack writes. A file of the clone alone has the time of its file."""
        node = self.nodes[number]
        time = node.mtime_s, node.mtime_ns
        if node.kind == "file" and node.plain and self.upper(number).exists():
            time = divmod(self.upper(number).stat().st_mtime_ns, 1_000_000_000)
        return Entry(b"", node.kind, node.mode, node.uid, node.gid, *time, node.target)

    def description_of(self, path, number):
        """One line of the list."""
        entry = self.entry(number)
        line = f"{text(path)} {entry.mode:o} {entry.uid}:{entry.gid} {entry.mtime_s}.{entry.mtime_ns:09}"
        if entry.kind == "link":
            return f"{line} -> {text(entry.content)}"
        if entry.kind != "file":
            return line + (" socket" if entry.kind == "socket" else "")
        size = crc = 0
        for data in self.contents(number):
            size, crc = size + len(data), read_pack.crc32c_combine(crc, read_pack.crc32c(data), len(data))
        return f"{line} {size} {crc:08x}"


def whole_frame(data, offset):
    """Up to where the journal was durable, and the payload, if there is a whole frame at this place."""
    if len(data) - offset < FRAME.size:
        return None
    length, crc, own_offset, durable = FRAME.unpack_from(data, offset)
    end = offset + FRAME.size + length
    if length == 0 or own_offset != offset or end > len(data) or read_pack.crc32c(data[offset + 8 : end]) != crc:
        return None
    return durable, data[offset + FRAME.size : end]


def short(cursor):
    return cursor.take(cursor.number(4))


def optional(cursor):
    there = cursor.number(1)
    require(there in (0, 1), f"{cursor.what} has a wrong optional value")
    return there == 1


def plain_contents(path):
    if path.exists():
        with open(path, "rb") as file:
            while data := file.read(STEP):
                yield data


def extract(clone, number, output):
    node = clone.nodes[number]
    require(node.kind in ("file", "directory"), "Only files and directories can be extracted")
    if node.kind == "file":
        read_pack.write_file(clone.contents(number), output, clone.entry(number))
        return
    require(not os.path.lexists(output), f"{output} exists")
    output.mkdir(mode=0o700)
    directories = [(output, number)]
    for path, child in clone.walk(number):
        target, entry = output / os.fsdecode(path), clone.entry(child)
        if entry.kind == "file":
            read_pack.write_file(clone.contents(child), target, entry)
        elif entry.kind == "link":
            os.symlink(entry.content, os.fsencode(target))
            read_pack.set_owner(target, entry)
        elif entry.kind == "directory":
            target.mkdir(mode=0o700)
            directories.append((target, child))
    for target, directory in reversed(directories):
        read_pack.set_attributes(target, clone.entry(directory))


def main():
    parser = argparse.ArgumentParser(
        description="List or extract the files of a clone without barmanfs. Nobody may use the clone meanwhile.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", help="the directory of the repository")
    parser.add_argument("--identity", metavar="FILE", help="a secret key of age, for an encrypted repository")
    parser.add_argument("clone", metavar="SERVER/NAME")
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="a file or a directory; all when left out")
    parser.add_argument(
        "-o", "--output", type=Path, help="where to put it; must not exist. Without it, files are listed"
    )
    arguments = parser.parse_args()
    try:
        if arguments.identity:
            read_pack.open_keys(arguments.repository, arguments.identity)
        repository = read_pack.Repository(arguments.repository)
        clone = Clone(repository, Path(arguments.repository) / "live" / arguments.clone)
        number = clone.find(os.fsencode(arguments.path))
        if arguments.output:
            extract(clone, number, arguments.output)
        else:
            for path, child in clone.walk(number) if clone.nodes[number].kind == "directory" else [(b"", number)]:
                print(clone.description_of(path, child))
    except (Problem, OSError) as problem:
        print(f"FAILED: {problem}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
