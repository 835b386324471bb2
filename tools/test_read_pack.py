#!/usr/bin/env python3
"""Compares read_pack.py and read_clone.py, and so FORMAT.md, with what barmanfs itself read in the frozen repositories.

catalog/live/tests/frozen/<n>/held.txt is what the program found there when it made the repository. The same lines are
made here from what the two print and extract. A byte of a pack that is flipped must be noticed, or
change nothing. Where the program has been built, it makes servers with two histories as well.
"""

import collections
import contextlib
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import blake3
import read_clone
import read_pack

HERE = Path(__file__).resolve().parent
FROZEN = HERE.parent / "catalog" / "live" / "tests" / "frozen"
PROGRAM = Path(os.environ.get("CARGO_TARGET_DIR", HERE.parent / "target")) / "debug" / "barmanfs"
FLIPS = int(os.environ.get("READ_PACK_FLIPS", "150"))


def identity_of(repository):
    """The option with the key of an encrypted repository: all have the same."""
    is_encrypted = (Path(repository) / "keys").is_dir()
    return ["--identity", str(next(FROZEN.glob("*/key")))] if is_encrypted else []


def run(repository, *arguments, program="read_pack.py"):
    command = [sys.executable, str(HERE / program), *identity_of(repository), str(repository)]
    command += map(str, arguments)
    return subprocess.run(command, capture_output=True, check=False)


def lines_of(repository, *arguments, program="read_pack.py"):
    done = run(repository, *arguments, program=program)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().splitlines()


# -- what the program said

# It lists no boot tests, no decisions to keep a backup, and no forks.
NOT_READ = (" booted", " kept", "fork ")


def expected_lines(held, of_clones):
    """The lines of held.txt that belong to clones, which are in no pack, or the other lines."""
    lines, in_clone = [], False
    for line in held.splitlines():
        if not line.startswith(" "):
            in_clone = line.startswith("clone ")
        if in_clone == of_clones and not line.startswith(NOT_READ):
            lines.append(line)
    return lines


# -- the same lines from read_pack.py


def some(value, form):
    return "None" if value is None else f"Some({form(value)})"


def quoted(value):
    return json.dumps(value, ensure_ascii=False)


def shown_time(value):
    seconds, _, fraction = value.rstrip("Z").partition(".")
    return f"{seconds.replace('T', ' ')}.{fraction.ljust(6, '0')}+00"


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
    """Bit by bit, so that it shares only the polynomial with the tested program."""
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
        # Permissions and time of a symbolic link cannot be restored.
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
                yield from tree_lines(repository, f"{server}/{backup['id']}", scratch / f"{server}-{backup['id']}")
            if backup.get("snapshot"):
                snapshot = backup["snapshot"]
                mounts = [disk["mount_point"] for disk in snapshot["disks"]]
                yield f" snapshot {quoted(snapshot['name'])} {quoted(mounts)} {quoted(snapshot['backup_label'])}"
            if backup.get("configuration"):
                files = backup["configuration"]
                named = [files[key] for key in ("config_file", "hba_file", "ident_file") if files.get(key)]
                read_at = shown_time(files["read_at"])
                yield f" configuration {quoted(files['data_directory'])} {quoted(named)} {read_at}"
                room = scratch / f"{server}-{backup['id']}-configuration"
                yield from tree_lines(repository, f"{server}/{backup['id']}", room, "--configuration")
        yield from wal_lines(repository, server)
        yield from left_lines(repository, server)


def tree_lines(repository, name, root, *options):
    """The files of a backup, extracted and listed."""
    lines_of(repository, "extract", name, "-o", root, *options)
    listed = lines_of(repository, "files", name, *options)
    for line in listed:
        yield extracted_line(root, line.split(" ")[0], line)
    extracted = sum(len(folders) + len(files) for _, folders, files in os.walk(root))
    assert extracted == len(listed), "files that are not listed"


def wal_lines(repository, server):
    names = [line.split("  ")[0] for line in lines_of(repository, "wal", server)]
    for name in names:
        done = run(repository, "wal", server, name)
        assert done.returncode == 0, done.stderr.decode()
        if not name.startswith("quarantine/"):
            yield f"wal {name} {read_pack.crc32c(done.stdout):08x}"
    yield f"quarantined {sum(name.startswith('quarantine/') for name in names)}"


def left_lines(repository, server):
    """The files of the histories that were left, the first one first."""
    for number in range(1, 100):
        listed = run(repository, "wal", server, "--left", number)
        if listed.returncode != 0:
            return
        for name in [line.split("  ")[0] for line in listed.stdout.decode().splitlines()]:
            done = run(repository, "wal", server, name, "--left", number)
            assert done.returncode == 0, done.stderr.decode()
            yield f"left {number} wal {name} {read_pack.crc32c(done.stdout):08x}"


def clone_lines(repository, directory, root):
    """The lines of a clone: held.txt has them without times."""
    clone = json.loads((directory / "clone.json").read_text())
    origin = clone["origin"]
    target, copied_from = some(origin.get("target"), quoted), some(origin.get("copied_from"), quoted)
    yield (
        f"clone {clone['name']} CloneOrigin {{ backup: BackupId({origin['backup']}), target: {target},"
        f" copied_from: {copied_from} }} {some(clone.get('max_bytes'), str)}"
    )
    name = f"{clone['server']}/{clone['name']}"
    lines_of(repository, name, "-o", root, program="read_clone.py")
    for listed in lines_of(repository, name, program="read_clone.py"):
        path, mode, owner, _, *rest = listed.split(" ")
        line = extracted_line(root, path, listed).split(" ")
        # As extracted, except for the time.
        yield " ".join([*line[:5], *line[6:]])
        assert rest == line[6:] and [mode, owner] == line[3:5], f"{listed} is not what was extracted"


def everything(directory, crcs):
    """All content of a repository, in this process: a flipped byte must not change it unnoticed."""
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


# -- packs of our own, for what no frozen repository has


def make_pack(repository, number, chunks=(), records=(), version=1):
    """A pack with chunks stored as they are, and records (id, kind, JSON)."""
    name = bytes([number]) * 16
    header = read_pack.HEADER.pack(b"bmfspack", version, 0, name)
    footer = len(chunks).to_bytes(4, "little") + len(records).to_bytes(4, "little")
    for data in chunks:
        size = len(data).to_bytes(4, "little")
        footer += blake3.blake3(data).digest() + b"\0" + size + size
    for record, kind, value in records:
        payload = value if isinstance(value, bytes) else json.dumps(value).encode()
        footer += bytes([record]) * 16 + bytes([kind]) + len(payload).to_bytes(4, "little") + payload
    fields = b"".join(field.to_bytes(4, "little") for field in (version, 0, len(footer), len(footer)))
    checksum = blake3.blake3(header + footer + fields).digest()
    path = repository / "packs" / name.hex()[:2] / name.hex()
    path.parent.mkdir(parents=True)
    path.write_bytes(header + b"".join(chunks) + footer + fields + checksum + b"bmfs-end")
    return path


def record_id(number):
    return (bytes([number]) * 16).hex()


BACKUP = {
    "version": 1,
    "server": "main",
    "id": "20261120T101500",
    "status": "DONE",
    "kind": "full",
    "begin_time": "2026-11-20T10:15:00Z",
    "segment_size": 16 << 20,
    "wal_included": False,
    "timeline": 1,
    "start_lsn": "0/2000028",
    "stop_lsn": "0/4000000",
    "files": 0,
    "logical_bytes": 0,
    "root": {
        "directory": {"pages": [], "entries": 0},
        "attributes": {"mode": 448, "uid": 0, "gid": 0, "mtime_s": 0, "mtime_ns": 0},
    },
}


def wal_record(name, archived_at, data=b""):
    crc = read_pack.crc32c(data)
    rows = [{"chunk": blake3.blake3(data).hexdigest(), "crc32c": crc}] if data else []
    file_map = {"size_bytes": len(data), "window_bytes": 1 << 20, "crc32c": crc, "windows": {"inline": rows}}
    return {
        "version": 1,
        "server": "main",
        "name": name,
        "size_bytes": len(data),
        "archived_at": archived_at,
        "origin": "test",
        "map": file_map,
    }


def decision(at, **event):
    return {"version": 1, "server": "main", "timeline": 1, "lsn": "0/2000028", "at": at, "event": event}


def removal(first, last, at=BACKUP["begin_time"]):
    return {"version": 1, "server": "main", "first": first, "last": last, "removed_at": at}


# -- a server of the program's with two histories


def segment(number, history):
    """A segment of 1 MiB with a right first page and, instead of records, bytes that depend on the history."""
    size = 1 << 20
    header = struct.pack("<HHIQQQII", 0xD110, 2, 1, number * size, 0, 42, size, 8192)
    return header + bytes([history]) * (size - len(header))


class Program:
    """The program with a repository of its own, which has no backup."""

    def __init__(self, directory):
        self.repository, self.config = directory / "repository", directory / "barmanfs.conf"
        (self.repository / "packs").mkdir(parents=True)
        shutil.copy(min(FROZEN.iterdir()) / "repository" / "repository.json", self.repository)
        self.config.write_text(f"[barmanfs]\nrepository = {self.repository}\n[main]\nconninfo = host=/nowhere\n")
        assert self.run("rebuild-catalog").returncode == 0

    def run(self, *arguments):
        return subprocess.run([PROGRAM, "-c", self.config, *arguments], capture_output=True, check=False)

    def archive(self, number, history):
        path = self.config.with_name(f"00000001{number:016X}")
        path.write_bytes(segment(number, history))
        return self.run("wal-archive", "main", path).returncode == 0


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

    def room(self, frozen):
        """A directory for what is extracted from this frozen repository: another may have the same names."""
        room = self.scratch / frozen.name
        room.mkdir()
        return room

    def copy(self, frozen):
        """Only the packs, and the keys: nothing else is needed."""
        copy = self.scratch / f"copy-{frozen.name}"
        if (frozen / "key").exists():
            shutil.copytree(frozen / "repository" / "keys", copy / "keys")
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
            expected = expected_lines((frozen / "held.txt").read_text(), False)
            found = list(read_lines(self.copy(frozen), self.room(frozen)))
            # A server's system id is in its own record, which no command shows.
            expected = [line.split(" Some(SystemId")[0] if line.startswith("server ") else line for line in expected]
            self.assertEqual(found, expected, frozen)

    def test_clones_are_listed_and_extracted(self):
        for frozen in self.frozen():
            repository, room, found = frozen / "repository", self.room(frozen), []
            for directory in sorted((repository / "live").glob("*/[!.]*")):
                found += clone_lines(repository, directory, room / directory.name)
            self.assertEqual(found, expected_lines((frozen / "held.txt").read_text(), True), frozen)

    def test_a_damaged_journal_is_refused_and_a_torn_one_read(self):
        copy = self.scratch / "copy"
        shutil.copytree(self.frozen()[0] / "repository", copy)
        journal = copy / "live" / "main" / "test1" / "journal"
        whole = lines_of(copy, "main/test1", program="read_clone.py")
        journal.write_bytes(journal.read_bytes() + b"torn")
        self.assertEqual(lines_of(copy, "main/test1", program="read_clone.py"), whole)
        # No frame except the last may be damaged if a later one says that it was durable.
        data = journal.read_bytes()[:-4]
        frames, offset = [], 0
        while offset < len(data):
            frames.append((offset, read_clone.whole_frame(data, offset)))
            offset += read_clone.FRAME.size + len(frames[-1][1][1])
        durable = max(frame[0] for _, frame in frames)
        before = [offset for offset, _ in frames if offset < durable]
        self.assertTrue(before)
        for offset in before:
            with flipped(journal, offset + read_clone.FRAME.size, 1):
                done = run(copy, "main/test1", program="read_clone.py")
            self.assertEqual(done.returncode, 1)
            self.assertRegex(
                done.stderr.decode(), r"\AFAILED: [^\n]+ (is damaged at byte \d+|has no complete record)\n\Z"
            )

    def test_a_damaged_file_is_refused(self):
        copy = self.copy(self.frozen()[0])
        repository = read_pack.Repository(copy)
        backup = repository.find_backup("20261121T111600")
        ((chunk_id, _),) = repository.lookup_below(repository.root(backup), b"PG_VERSION", "it").content.rows
        (place,) = repository.chunks[chunk_id]
        with flipped(place.path, place.offset, 1):
            done = run(copy, "extract", "20261121T111600", "PG_VERSION", "-o", self.scratch / "out")
        self.assertEqual(done.returncode, 1)
        (message,) = done.stderr.decode().splitlines()
        self.assertIn(f"FAILED: Chunk {chunk_id.hex()} in pack {place.pack} is damaged", message)
        self.assertFalse((self.scratch / "out").exists(), "a damaged file looks whole")
        self.assertEqual(run(copy, "extract", "20261121T111600", "PG_VERSION").stdout, b"15\n")

    def test_a_damaged_file_is_left_out_of_a_whole_backup(self):
        copy, out = self.copy(self.frozen()[0]), self.scratch / "out"
        repository = read_pack.Repository(copy)
        backup = repository.find_backup("20261121T111600")
        for path, missing in [(b"base/5/1259", "base/5/1259"), (b"base/5", None)]:
            content = repository.lookup_below(repository.root(backup), path, "it").content
            chunk_id = content.pages[0][1] if missing is None else content.rows[0][0]
            with contextlib.ExitStack() as damage:
                for place in repository.chunks[chunk_id]:
                    damage.enter_context(flipped(place.path, place.offset, 1))
                done = run(copy, "extract", "20261121T111600", "-o", out)
            self.assertEqual(done.returncode, 1)
            lines = done.stderr.decode().splitlines()
            self.assertEqual(len(lines), 2, lines)
            self.assertIn(missing or chunk_id.hex(), lines[0])
            self.assertIn("FAILED: 1 files or directories are damaged", lines[1])
            there = {str(file.relative_to(out)) for file in out.rglob("*") if not file.is_dir()}
            listed = {
                line.split(" ")[0] for line in lines_of(copy, "files", "20261121T111600") if len(line.split(" ")) > 4
            }
            lost = {missing} if missing else {name for name in listed if name.startswith("base/5/")}
            self.assertEqual(there, listed - lost)
            shutil.rmtree(out)

    def test_a_map_with_a_wrong_checksum_is_refused(self):
        repository = read_pack.Repository(self.copy(self.frozen()[0]))
        root = repository.root(repository.find_backup("20261121T111600"))
        file_map = repository.lookup_below(root, b"base/5/1259", "it").content
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
            # The packs in turn: most of them are small, and almost only footer.
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

    # -- rules that no frozen repository shows

    def packs(self, *packs):
        """A repository of packs, each a list of records."""
        directory = self.scratch / f"made-{len(list(self.scratch.iterdir()))}"
        (directory / "packs").mkdir(parents=True)
        for number, records in enumerate(packs):
            make_pack(directory, number, records=records)
        return read_pack.Repository(directory)

    def test_a_deletion_counts_in_any_order(self):
        backup, deletion = (1, 1, BACKUP), (2, 3, {"version": 1, "of": record_id(1)})
        self.assertEqual(len(self.packs([backup]).backups), 1)
        of_deletion = (3, 3, {"version": 1, "of": record_id(2)})
        for packs in [
            [[of_deletion, backup, deletion]],
            [[backup], [deletion]],
            [[deletion], [backup]],
            [[deletion, backup]],
            [[backup], [backup, deletion]],
        ]:
            repository = self.packs(*packs)
            self.assertEqual((repository.backups, repository.problems), ({}, []))

    def test_of_records_of_one_name_one_counts(self):
        failed = {**BACKUP, "status": "FAILED", "root": None}
        for order in [[(1, 1, failed), (2, 1, BACKUP)], [(2, 1, BACKUP), (1, 1, failed)]]:
            (backup,) = self.packs(order).backups.values()
            self.assertEqual(backup["record"], record_id(2), "the one that did not fail")
        name = "000000010000000000000002"
        earlier, later = wal_record(name, "2026-11-20T10:15:00.25Z"), wal_record(name, "2026-11-20T10:15:00.3Z")
        for order in [[(2, 2, earlier), (1, 2, later)], [(1, 2, later), (2, 2, earlier)]]:
            self.assertEqual(self.packs(order).wal["main", name]["record"], record_id(2), "the earlier")
        for order in [[(2, 2, later), (1, 2, later)], [(1, 2, later), (2, 2, later)]]:
            self.assertEqual(self.packs(order).wal["main", name]["record"], record_id(1), "the smaller id")
        self.assertEqual(
            len(self.packs([(1, 5, {**later, "reason": "x"}), (2, 5, {**later, "reason": "y"})]).quarantined), 2
        )

    def test_a_backup_waits_for_its_wal(self):
        wal = [(number, 2, wal_record(f"00000001000000000000000{number}", BACKUP["begin_time"])) for number in (2, 3)]
        for records, status in [(wal, "DONE"), (wal[:1], "WAITING_FOR_WALS"), ([], "WAITING_FOR_WALS")]:
            (backup,) = self.packs([(1, 1, BACKUP), *records]).backups.values()
            self.assertEqual(backup["status"], status)
        (backup,) = self.packs([(1, 1, {**BACKUP, "wal_included": True})]).backups.values()
        self.assertEqual(backup["status"], "DONE")

    def test_removed_files_are_in_no_archive(self):
        names = [f"00000001000000000000000{number}" for number in range(1, 5)] + ["00000002.history"]
        times = [f"2026-11-20T10:15:0{second}Z" for second in range(10)]
        files = [(number, 2, wal_record(name, times[5])) for number, name in enumerate(names)]
        for removed_at, left in [(times[6], names[2:]), (times[5], names[2:]), (times[4], names)]:
            removed = (9, 10, removal(names[0], names[1], removed_at))
            for records in ([removed, *files], [*files, removed]):
                self.assertEqual([name for _, name in self.packs(records).wal], left)
        # One that came again is there, and the archive of another server has what it had.
        again = (8, 2, wal_record(names[0], times[7]))
        elsewhere = (7, 2, {**wal_record(names[1], times[5]), "server": "other"})
        packs = self.packs([*files, again, elsewhere, (9, 10, removal(names[0], names[1], times[6]))])
        self.assertEqual(set(packs.wal), {("main", name) for name in [names[0], *names[2:]]} | {("other", names[1])})

    def test_a_decision_moves_files(self):
        first, second, third, fourth = (f"00000001000000000000000{number}" for number in range(1, 5))
        times = [f"2026-11-20T10:15:0{second}Z" for second in range(10)]

        def file(name, at, kind=2):
            size = 0 if name.endswith(".history") else 16 << 20
            value = {**wal_record(name, times[at]), "size_bytes": size}
            return (kind, value if kind == 2 else {**value, "reason": "another history"})

        files = {
            1: file(first, 1),
            2: file(second, 1),
            3: file(third, 1),
            4: file("00000002.history", 1),
            5: file(third, 2, 5),
            6: file(fourth, 2, 5),
            7: file(first, 9),
            8: file(fourth + ".partial", 1),
        }
        ids = {number: record_id(number) for number in range(30)}
        restart = {"of": [ids[20]], "apart": [ids[3], ids[15]], "taken": [ids[5]], "shared_from": "0/2000001"}
        again = {"of": [], "apart": [ids[5]], "shared_from": "0/2000000"}
        decisions = {
            10: decision(times[5], restart=restart),
            11: decision(times[6], keep={"of": [], "taken": [ids[6]]}),
            12: decision(times[7], restart=again),
            20: decision(times[3], fork={"why": "", "found_by": ""}),
        }
        backups = {
            15: {**BACKUP, "id": "20261120T000001"},
            16: {**BACKUP, "id": "20261120T000002", "fork": ids[20]},
            17: {**BACKUP, "id": "20261120T000003", "fork": ids[21]},
        }
        records = [(number, *record) for number, record in files.items()]
        records += [(number, 9, value) for number, value in decisions.items()]
        records += [(number, 1, value) for number, value in backups.items()]
        for packs in [[records], [records[::-1]], [[record] for record in records]]:
            repository = self.packs(*packs)
            self.assertEqual(repository.problems, [])
            archives = collections.defaultdict(dict)
            for (archive, name), value in repository.wal.items():
                archives[archive][name] = bytes.fromhex(value["record"])[0]
            partial, history = {fourth + ".partial": 8}, {"00000002.history": 4}
            self.assertEqual(archives["main"], {first: 1, second: 2, fourth: 6, **history, **partial})
            self.assertEqual(archives[f"main/{ids[10]}"], {second: 2, third: 3, **history})
            self.assertEqual(archives[f"main/{ids[12]}"], {second: 2, third: 5, fourth: 6, **history})
            self.assertEqual(len(archives), 3)
            self.assertEqual(repository.quarantined, [])
            statuses = [backup["status"] for backup in repository.backups.values()]
            self.assertEqual(statuses, ["DONE", "WAITING_FOR_WALS", "WAITING_FOR_WALS"])
        # Without the second restart, the file that the first one took is in the server's archive.
        repository = self.packs([*records, (25, 3, {"version": 1, "of": ids[12]})])
        self.assertEqual(repository.wal["main", third]["record"], ids[5])
        statuses = [backup["status"] for backup in repository.backups.values()]
        self.assertEqual(statuses, ["DONE", "DONE", "WAITING_FOR_WALS"])

    @unittest.skipUnless(PROGRAM.is_file(), f"{PROGRAM} is not built")
    def test_two_histories_are_those_the_program_shows(self):
        for word in ["keep", "restart"]:
            program = Program(self.scratch / word)
            for archived in [(1, 1), (2, 1), (3, 1)]:
                self.assertTrue(program.archive(*archived))
            for refused in [(2, 2), (3, 2), (4, 2)]:
                self.assertFalse(program.archive(*refused))
            for at in [None, "0/200028"]:
                if at:
                    self.assertEqual(program.run("history", "main", word, "--at", at).returncode, 0)
                for archive in [[], ["--left", "1"]] if at and word == "restart" else [[]]:
                    listed = [line.split("  ")[0] for line in lines_of(program.repository, "wal", "main", *archive)]
                    for name in [f"00000001{number:016X}" for number in range(1, 5)]:
                        ours = run(program.repository, "wal", "main", name, *archive)
                        theirs = program.run("get-wal", "main", name, *archive)
                        self.assertEqual((ours.returncode, ours.stdout), (theirs.returncode, theirs.stdout), name)
                        self.assertEqual(name in listed, theirs.returncode == 0)

    def test_a_damaged_copy_of_a_chunk_is_passed_over(self):
        data, directory = b"segment", self.scratch / "copies"
        name = "000000010000000000000002"
        first = make_pack(directory, 1, chunks=[data], records=[(1, 2, wal_record(name, BACKUP["begin_time"], data))])
        second = make_pack(directory, 2, chunks=[b"before", data])
        for path, at in [(first, 32), (second, 38)]:
            with flipped(path, at, 1):
                self.assertEqual(run(directory, "wal", "main", name).stdout, data)
        with flipped(first, 32, 1), flipped(second, 38, 1):
            self.assertEqual(run(directory, "wal", "main", name).returncode, 1)
        first.unlink()
        damaged = {
            "version": 1,
            "pack": second.name,
            "found_at": BACKUP["begin_time"],
            "chunks": [blake3.blake3(data).hexdigest()],
        }
        make_pack(
            directory, 3, chunks=[data], records=[(1, 2, wal_record(name, BACKUP["begin_time"], data)), (2, 8, damaged)]
        )
        places = read_pack.Repository(directory).chunks[blake3.blake3(data).digest()]
        self.assertEqual([place.pack for place in places], [record_id(3), second.name])

    def test_what_is_newer_is_said_to_be_newer(self):
        directory = self.scratch / "newer"
        make_pack(directory, 1, records=[(1, 1, BACKUP)], version=3)
        make_pack(directory, 2, records=[(1, 1, {**BACKUP, "version": 2}), (2, 99, b"\xff of a later release")])
        repository = read_pack.Repository(directory)
        self.assertEqual(repository.backups, {})
        self.assertEqual(len(repository.problems), 2)
        for problem in repository.problems:
            self.assertIn("newer", problem)

    def test_no_record_makes_it_fail_without_a_reason(self):
        def changes(value):
            """The value with each of its parts, at any depth, left out or replaced."""
            names = list(value) if isinstance(value, dict) else range(len(value))
            for name in names:
                for other in [None, -1, 1 << 70, "x", [], {}, True, 1e300]:
                    yield with_other(value, name, other)
                if isinstance(value, dict):
                    yield {key: kept for key, kept in value.items() if key != name}
                if isinstance(value[name], (dict, list)):
                    for changed in changes(value[name]):
                        yield with_other(value, name, changed)

        def with_other(value, name, other):
            changed = value.copy()
            changed[name] = other
            return changed

        chance = random.Random(1)
        good = [
            (1, BACKUP),
            (2, wal_record("000000010000000000000002", BACKUP["begin_time"], b"x")),
            (3, {"version": 1, "of": record_id(9)}),
            (4, {"version": 1, "of": record_id(9), "target": "full", "kept_at": BACKUP["begin_time"]}),
            (5, {**wal_record("00000002.history", BACKUP["begin_time"]), "reason": "other bytes"}),
            (10, removal("000000010000000000000001", "000000010000000000000002")),
            (8, {"version": 1, "pack": record_id(1), "chunks": ["00" * 32]}),
            (9, decision(BACKUP["begin_time"], keep={"of": [], "taken": [record_id(9)]})),
            (9, decision(BACKUP["begin_time"], restart={"of": [], "apart": [], "taken": [], "shared_from": "0/0"})),
        ]
        good.append(
            (
                11,
                {
                    "version": 1,
                    "of": record_id(9),
                    "server": "main",
                    "backup": "20261120T101500",
                    "directory": {"entries": 0, "pages": []},
                    "read_at": BACKUP["begin_time"],
                    "data_directory": "/srv/main",
                },
            )
        )
        snapshot = {"name": "s", "disks": [{"snapshot": "s", "mount_point": "/srv"}], "backup_label": "x"}
        good.append((12, {**BACKUP, "kind": "snapshot", "root": None, "snapshot": snapshot}))
        payloads = [(kind, payload) for kind, value in good for payload in changes(value)]
        payloads += [(kind, bytes(chance.randbytes(chance.randrange(9)))) for kind, _ in good for _ in range(20)]
        payloads += [(kind, payload) for kind, _ in good for payload in ([], None, 1, {}, {"version": 1})]
        for kind, payload in payloads:
            directory = self.scratch / "odd"
            make_pack(directory, 1, records=[(1, kind, payload)])
            try:
                everything(directory, {})
            except read_pack.Problem:
                pass
            except Exception as error:
                raise AssertionError(f"kind {kind}: {payload}") from error
            shutil.rmtree(directory)


if __name__ == "__main__":
    unittest.main()
