#!/usr/bin/env python3
"""Compares read_pack.py, and so FORMAT.md, with what barmanfs itself read in the frozen repositories.

fs/tests/frozen/<n>/held.txt is what the program found there when it made the repository. The same lines are
made here from what read_pack.py prints and extracts. A byte of a pack that is flipped must be noticed, or
change nothing.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import read_pack

HERE = Path(__file__).resolve().parent
FROZEN = HERE.parent / "fs" / "tests" / "frozen"
FLIPS = int(os.environ.get("READ_PACK_FLIPS", "150"))


def run(repository, *arguments):
    command = [sys.executable, str(HERE / "read_pack.py"), str(repository), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False)


def lines_of(repository, *arguments):
    done = run(repository, *arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


# -- what the program said


def expected_lines(held):
    """The lines of held.txt but for clones, which are in no pack."""
    lines, in_clone = [], False
    for line in held.splitlines():
        if not line.startswith(" "):
            in_clone = line.startswith("clone ")
        if not in_clone and not line.startswith(" booted"):
            lines.append(line)
    return lines


# -- the same lines from read_pack.py


def some(value, form):
    return "None" if value is None else f"Some({form(value)})"


def quoted(value):
    return json.dumps(value)


def shown_time(value):
    seconds, _, fraction = value.rstrip("Z").partition(".")
    fraction = fraction.rstrip("0")
    return seconds.replace("T", " ") + (f".{fraction}" if fraction else "") + "+00"


def shown_lsn(value):
    return f"Lsn({read_pack.lsn(value)})"


def shown_version(number):
    return f"{number // 10000}.{number % 10000}"


def backup_lines(backup):
    end = some(backup.get("end_time"), lambda time: f"TimestampMicros({read_pack.instant(time)})")
    yield (
        f"backup {backup['id']} {backup['status']} {backup['kind'].capitalize()}"
        f" parent {some(backup.get('parent'), 'BackupId({})'.format)} label {some(backup.get('label'), quoted)}"
        f" {shown_time(backup['begin_time'])} to {end}, {shown_version(backup['server_version'])}"
        f" to {some(backup.get('stop_lsn'), shown_lsn)}"
    )
    if backup.get("cloned_from"):
        of = backup["cloned_from"]
        name, target = quoted(of["name"]), some(of.get("target"), quoted)
        shut_down = str(of["shut_down"]).lower()
        yield f" of ClonedFrom {{ name: CloneName({name}), target: {target}, shut_down: {shut_down} }}"


def slow_crc32c(data):
    """Bit by bit, so that it shares nothing with the program that is tested but the polynomial."""
    crc = 0xFFFFFFFF
    for byte in data.rstrip(b"\0"):
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc, len(data) - len(data.rstrip(b"\0"))


def extracted_line(root, path, listed):
    """A line of held.txt from the extracted file; the owner, which only root can restore, as `files` lists it."""
    target = root / path
    found = target.lstat()
    owner = listed.split(" ")[2]
    if target.is_symlink():
        # A link has no permissions and no time to restore.
        return f"  {listed.split(' -> ')[0]} -> {os.readlink(target)}"
    seconds, nanoseconds = divmod(found.st_mtime_ns, 1_000_000_000)
    line = f"  {path} {found.st_mode & 0o7777:o} {owner} {seconds}.{nanoseconds:09}"
    if target.is_dir():
        return line
    data = target.read_bytes()
    return f"{line} {len(data)} {read_pack.crc32c(data):08x}"


def read_lines(repository, scratch):
    backups = collections.defaultdict(list)
    for line in lines_of(repository, "list", "--json"):
        backup = json.loads(line)
        backups[backup["server"]].append(backup)
    for server, of_server in backups.items():
        yield f"server {server}"
        for backup in of_server:
            yield from backup_lines(backup)
            if backup.get("root"):
                name, root = f"{server}/{backup['id']}", scratch / backup["id"]
                lines_of(repository, "extract", name, "-o", root)
                for listed in lines_of(repository, "files", name):
                    yield extracted_line(root, listed.split(" ")[0], listed)
                extracted = sum(len(folders) + len(files) for _, folders, files in os.walk(root))
                assert extracted == len(lines_of(repository, "files", name)), "files that are not listed"
        yield from wal_lines(repository, server)


def wal_lines(repository, server):
    names = [line.split("  ")[0] for line in lines_of(repository, "wal", server)]
    for name in names:
        done = run(repository, "wal", server, name)
        assert done.returncode == 0, done.stderr.decode()
        if not name.startswith("quarantine/"):
            yield f"wal {name} {read_pack.crc32c(done.stdout):08x}"
    yield f"quarantined {sum(name.startswith('quarantine/') for name in names)}"


def everything(directory, crcs):
    """All that a repository holds, in this process: what the flipped byte may not change unnoticed."""
    repository = read_pack.Repository(directory)
    repository.crcs = crcs
    held = []
    for (server, backup_id), backup in repository.backups.items():
        held.append((server, backup_id, backup["status"], json.dumps(backup)))
        if backup.get("root"):
            for path, entry in repository.walk(repository.root(backup).content):
                held.append((path, read_pack.describe(path, entry)))
                if entry.kind == "file":
                    held.append(b"".join(repository.contents(entry.content, str(path))))
    for file in [*repository.wal.values(), *repository.quarantined]:
        held.append((json.dumps(file), b"".join(repository.wal_contents(file))))
    return held, repository.problems


@contextlib.contextmanager
def flipped(path, at, mask):
    original = path.read_bytes()
    changed = bytearray(original)
    changed[at] ^= mask
    path.write_bytes(changed)
    try:
        yield
    finally:
        path.write_bytes(original)


class ReadPack(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.scratch = Path(directory.name)
        self.maxDiff = None

    def copy(self, frozen):
        """Only the packs: nothing else is needed."""
        copy = self.scratch / f"copy-{frozen.name}"
        shutil.copytree(frozen / "repository" / "packs", copy / "packs")
        return copy

    def frozen(self):
        frozen = sorted(path for path in FROZEN.iterdir() if (path / "held.txt").exists())
        self.assertTrue(frozen)
        return frozen

    def test_crc32c(self):
        self.assertEqual(read_pack.crc32c(b"123456789"), 0xE3069283)  # the check value of its definition
        for length in [0, 1, 63, 64, 65, 8192, 131073, 200000]:
            data = random.Random(length).randbytes(length)
            crc, zeros = slow_crc32c(data)
            self.assertEqual(read_pack._update(crc, bytes(zeros)) ^ 0xFFFFFFFF, read_pack.crc32c(data), length)
            first, second = data[: length // 3], data[length // 3 :]
            combined = read_pack.crc32c_combine(read_pack.crc32c(first), read_pack.crc32c(second), len(second))
            self.assertEqual(combined, read_pack.crc32c(data), length)

    def test_what_the_program_found_is_listed_and_extracted(self):
        for frozen in self.frozen():
            expected = expected_lines((frozen / "held.txt").read_text())
            found = list(read_lines(self.copy(frozen), self.scratch))
            # A server's system id is in its own record, which no command shows.
            expected = [line.split(" Some(SystemId")[0] if line.startswith("server ") else line for line in expected]
            self.assertEqual(found, expected, frozen)

    def test_a_damaged_file_is_refused(self):
        copy = self.copy(self.frozen()[0])
        repository = read_pack.Repository(copy)
        backup = repository.find_backup("20261121T111600")
        (chunk_id, _), = repository.lookup(backup, b"PG_VERSION").content.rows
        place, = repository.chunks[chunk_id]
        with flipped(place.path, place.offset, 1):
            done = run(copy, "extract", "20261121T111600", "PG_VERSION", "-o", self.scratch / "out")
        self.assertEqual(done.returncode, 1)
        message, = done.stderr.decode().splitlines()
        self.assertIn(f"FAILED: Chunk {chunk_id.hex()} in pack {place.pack} is damaged", message)
        self.assertFalse((self.scratch / "out").exists(), "a damaged file looks whole")
        self.assertEqual(run(copy, "extract", "20261121T111600", "PG_VERSION").stdout, b"15\n")

    def test_a_map_with_a_wrong_checksum_is_refused(self):
        repository = read_pack.Repository(self.copy(self.frozen()[0]))
        file_map = repository.lookup(repository.find_backup("20261121T111600"), b"base/5/1259").content
        self.assertEqual(sum(map(len, repository.contents(file_map, "it"))), file_map.size)
        chunk_id, crc = file_map.rows[2]
        wrong_row = file_map.rows[:2] + [(chunk_id, crc ^ 1)] + file_map.rows[3:]
        for wrong in [file_map._replace(crc=file_map.crc ^ 1), file_map._replace(rows=wrong_row)]:
            with self.assertRaisesRegex(read_pack.Problem, "wrong CRC-32C"):
                list(repository.contents(wrong, "it"))

    def test_a_damaged_pack_is_reported(self):
        copy = self.copy(self.frozen()[0])
        pack = next(path for path in (copy / "packs").rglob("*") if path.is_file())
        with flipped(pack, pack.stat().st_size - 60, 1):
            done = run(copy, "list")
        self.assertEqual(done.returncode, 3)
        self.assertIn(f"Pack {pack.name} is damaged", done.stderr.decode())

    def test_a_moved_pack_is_reported(self):
        copy = self.copy(self.frozen()[0])
        pack = next(path for path in (copy / "packs").rglob("*") if path.is_file())
        pack.rename(pack.with_suffix(".bak"))
        done = run(copy, "list")
        self.assertEqual(done.returncode, 3)
        self.assertIn(f"is pack {pack.name} under another name", done.stderr.decode())

    def test_what_is_not_there_is_said(self):
        copy = self.copy(self.frozen()[0])
        for arguments in [
            ["files", "20000101T000000"],
            ["files", "20261121T111602"],  # it failed, and has no files
            ["extract", "20261121T111600", "no/such"],
            ["extract", "20261121T111600"],  # a directory needs -o
            ["wal", "main", "0000000100000000000000FF"],
        ]:
            done = run(copy, *arguments)
            self.assertEqual(done.returncode, 1, arguments)
            self.assertRegex(done.stderr.decode(), r"\AFAILED: [^\n]+\n\Z")
        self.assertEqual(run(self.scratch / "nowhere", "list").returncode, 1)

    def test_every_flipped_byte_is_noticed_or_harmless(self):
        copy, crcs = self.copy(self.frozen()[0]), {}
        expected, problems = everything(copy, crcs)
        self.assertEqual(problems, [])
        packs = sorted(path for path in (copy / "packs").rglob("*") if path.is_file())
        chance, noticed = random.Random(FLIPS), 0
        for _ in range(FLIPS):
            # The packs in turn: most of them are small, and all footer.
            pack = chance.choice(packs)
            at, mask = chance.randrange(pack.stat().st_size), chance.randrange(1, 256)
            with flipped(pack, at, mask):
                try:
                    found, problems = everything(copy, crcs)
                except read_pack.Problem:
                    noticed += 1
                    continue
            if problems:
                noticed += 1
            else:
                self.assertEqual(found, expected, f"byte {at} of {pack.name}, mask {mask}")
        print(f"{FLIPS} bytes flipped: {noticed} noticed, {FLIPS - noticed} harmless", file=sys.stderr)
        self.assertGreater(noticed, FLIPS // 2)


if __name__ == "__main__":
    unittest.main()
