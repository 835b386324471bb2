#!/usr/bin/env python3
"""Read a barmanfs repository without barmanfs.

This program is written from catalog/store/FORMAT.md alone. It proves that the document is complete, and it
gets data back on a machine that has no barmanfs. It reads the packs and nothing else: no catalog.sqlite, no
lock. It never writes into the repository.

It needs Python 3.9 or later and two packages from PyPI:  pip install zstandard blake3
An encrypted repository needs a third one, cryptography, and the program age.
"""

import argparse
import contextlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional

try:
    import blake3
    import zstandard
except ImportError as missing:
    sys.exit(f"FAILED: {missing}. Install what is missing with: pip install zstandard blake3")

if tuple(map(int, zstandard.__version__.split(".")[:2])) < (0, 22):
    sys.exit(
        f"FAILED: zstandard {zstandard.__version__} is too old: 0.22 or later is needed, from: pip install zstandard"
    )

EXAMPLES = """\
examples:
  read_pack.py /backups list
  read_pack.py /backups files 20261120T101500
  read_pack.py /backups extract 20261120T101500 base/5/1259 -o 1259
  read_pack.py /backups extract main/20261120T101500 -o /restore/main      all files
  read_pack.py /backups wal main
  read_pack.py /backups wal main 00000001000000000000000A -o segment
  read_pack.py /backups wal main --left 1         of the first history that was left
  read_pack.py --identity /root/key.txt /backups list      an encrypted repository, opened by age

A backup is named by its id, or by SERVER/ID where two servers have the same id. Run as root, owners are
restored too. All ids of chunks are held in memory: about half a GB for each million chunks (100 GB of data).

exit codes:
  0  all is well
  1  what you asked for is not there or damaged; the last line says why
  2  wrong usage
  3  what you asked for is whole, but something else in the repository is not
"""

FORMAT_VERSION = 1
SEALED_VERSION = 2
TAG = 16
MAX_CHUNK = 4 << 20
MAX_FOOTER = 32 << 20
MAX_RECORD = 8 << 20
MAX_PACK_CHUNKS = 32768
BLOCK = 8192
INLINE_ROWS = 16
PIECE_ROWS = 2048

HEADER = struct.Struct("<8sII16s")
SEALED_HEADER = struct.Struct("<16s32s")
TRAILER = struct.Struct("<IIII32s8s")
ROW = struct.Struct("<32sI")
STORED, ZSTD, DELTA = 0, 1, 2
ZSTD_DICTIONARY_MAGIC = bytes.fromhex("37a430ec")

BACKUP, WAL, DELETION, KEEP, QUARANTINED, SERVER, BOOT_TEST, DAMAGE, HISTORY, REMOVAL, CONFIGURATION, SNAPSHOT = range(1, 13)


class Problem(Exception):
    """Something is damaged, missing, or not as the format demands. The text is for the user."""


def require(condition, message):
    if not condition:
        raise Problem(message)


# ---------------------------------------------------------------------------------------------------------
# CRC-32C. The standard library has none, and a loop over bytes reads only a few MB a second. So the data is
# cut into lanes of 64 bytes, and each step takes one byte of all lanes: their CRCs are one large integer,
# and one bytes.translate is a table look-up for all of them. That is ten times as fast.

LANE = 64
LANES_MAX = 2048


def _byte_table():
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


BYTE_TABLE = _byte_table()
# The same table, cut into the four bytes of its values, as bytes.translate needs it.
BYTE_PLANES = [bytes(value >> shift & 0xFF for value in BYTE_TABLE) for shift in (0, 8, 16, 24)]


def _update(crc, data):
    """The plain loop: the CRC register after more bytes."""
    for byte in data:
        crc = BYTE_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc


# The effect of 64 zero bytes on the register, for each value of each of its four bytes. The rest is
# exclusive or.
LANE_SHIFT = [[_update(value << shift, bytes(LANE)) for value in range(256)] for shift in (0, 8, 16, 24)]


def _lane_crcs(data):
    """The register after each lane, starting at 0, as four planes of bytes, the lowest first."""
    count = len(data) // LANE
    state, lowest = 0, (1 << 8 * count) - 1
    for at in range(LANE):
        column = int.from_bytes(data[at::LANE], "little")
        index = ((state & lowest) ^ column).to_bytes(count, "little")
        looked_up = b"".join(index.translate(plane) for plane in BYTE_PLANES)
        state = (state >> 8 * count) ^ int.from_bytes(looked_up, "little")
    planes = state.to_bytes(4 * count, "little")
    return [planes[count * plane : count * (plane + 1)] for plane in range(4)]


def crc32c(data):
    """CRC-32C (Castagnoli), as in iSCSI and PostgreSQL."""
    crc, whole = 0xFFFFFFFF, len(data) // LANE * LANE
    shift0, shift1, shift2, shift3 = LANE_SHIFT
    for start in range(0, whole, LANE * LANES_MAX):
        lanes = _lane_crcs(data[start : min(start + LANE * LANES_MAX, whole)])
        for b0, b1, b2, b3 in zip(*lanes):
            crc = shift0[crc & 0xFF] ^ shift1[crc >> 8 & 0xFF] ^ shift2[crc >> 16 & 0xFF] ^ shift3[crc >> 24]
            crc ^= b0 | b1 << 8 | b2 << 16 | b3 << 24
    return _update(crc, data[whole:]) ^ 0xFFFFFFFF


@lru_cache(maxsize=64)
def crc32c_of_zeros(length):
    return crc32c(bytes(length))


def _apply(matrix, vector):
    """Multiply a 32x32 bit matrix (a list of columns) with a vector."""
    result = 0
    for column in matrix:
        if vector & 1:
            result ^= column
        vector >>= 1
    return result


@lru_cache(maxsize=64)
def _zeros_operator(length):
    """The matrix that appends `length` zero bytes to the data of a CRC (as zlib's crc32_combine)."""
    one_bit = [0x82F63B78] + [1 << bit for bit in range(31)]
    power, result = one_bit, None
    for _ in range(3):  # one bit, two, four: eight bits are one byte
        power = [_apply(power, column) for column in power]
    while length:
        if length & 1:
            result = power if result is None else [_apply(power, column) for column in result]
        power = [_apply(power, column) for column in power]
        length >>= 1
    return result or [1 << bit for bit in range(32)]


def crc32c_combine(first, second, second_length):
    """The CRC of two byte strings, one after the other, from the CRC of each."""
    return _apply(_zeros_operator(second_length), first) ^ second


# ---------------------------------------------------------------------------------------------------------
# Bytes with a position, so that no length beyond the actual bytes is accepted.


class Cursor:
    def __init__(self, data, what):
        self.data, self.at, self.what = data, 0, what

    def take(self, length):
        require(self.at + length <= len(self.data), f"{self.what} is cut short")
        self.at += length
        return bytes(self.data[self.at - length : self.at])

    def number(self, length, signed=False):
        return int.from_bytes(self.take(length), "little", signed=signed)

    def end(self):
        require(self.at == len(self.data), f"{self.what} has {len(self.data) - self.at} bytes too many")


def unpack_zstd(frame, length, what, prefix=b""):
    """Decode one zstd frame that must give exactly `length` bytes."""
    try:
        # Without this check, the length in the frame would be allocated, however large.
        claimed = zstandard.get_frame_parameters(frame).content_size
        require(claimed in (length, zstandard.CONTENTSIZE_UNKNOWN), f"{what} claims {claimed} bytes, not {length}")
        dictionary = None
        if prefix:
            dictionary = zstandard.ZstdCompressionDict(prefix, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
        decoder = zstandard.ZstdDecompressor(dict_data=dictionary)
        data = decoder.decompress(frame, max_output_size=max(length, 1), allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise Problem(f"{what} is no whole zstd frame: {error}") from error
    require(len(data) == length, f"{what} decodes to {len(data)} bytes, not {length}")
    return data


# ---------------------------------------------------------------------------------------------------------
# Packs


class Place(NamedTuple):
    """Where a chunk is."""

    pack: str
    path: Path
    offset: int
    stored: int
    encoding: int
    size: int
    base: Optional[bytes]
    key: Optional[bytes]  # of the frames of a sealed pack


class Record(NamedTuple):
    id: str
    kind: int
    payload: bytes
    pack: str


class Key:
    """A key of an encrypted repository: the text that age gives back."""

    def __init__(self, text):
        fields = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
        require(fields.get("barmanfs repository key") == "1", "What age gave back is no key of a repository")
        secret = bytes.fromhex(fields["packs"])
        self.id = derive("barmanfs 2026-11-30 id of a key", secret)[:16]
        self.data = derive("barmanfs 2026-11-30 data", secret)
        self.footers = derive("barmanfs 2026-11-30 footers", secret)
        self.ids = bytes.fromhex(fields["ids"]) if fields["id_hash"] == "blake3-keyed" else None


def derive(context, secret):
    return blake3.blake3(secret, derive_key_context=context).digest()


def unseal(key, nonce, sealed, associated, what):
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(nonce, sealed, associated)
    except InvalidTag:
        raise Problem(f"{what} is not what was sealed for this place") from None


KEYS = {}  # key id -> Key


def open_keys(directory, identity):
    """The keys of an encrypted repository, each opened by the program age with one of its files."""
    for folder in sorted((Path(directory) / "keys").glob("*")):
        for file in sorted(folder.glob("*.age")):
            opened = subprocess.run(["age", "-d", "-i", identity, file], capture_output=True, text=True)
            if opened.returncode == 0:
                key = Key(opened.stdout)
                require(key.id.hex() == folder.name, f"{file} holds another key than its name says")
                KEYS[key.id] = key
                break


def id_of(data):
    key = next((key.ids for key in KEYS.values() if key.ids), None)
    return (blake3.blake3(data, key=key) if key else blake3.blake3(data)).digest()


def read_pack(path):
    """Check a pack in the order of the format; return its chunks and its records."""
    what = f"Pack {path.name}"
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        require(size >= HEADER.size + TRAILER.size, f"{what} has only {size} bytes")
        file.seek(size - TRAILER.size)
        trailer = file.read(TRAILER.size)
        version, _, footer_bytes, raw_bytes, checksum, magic = TRAILER.unpack(trailer)
        require(magic == b"bmfs-end", f"{what} does not end as a pack")
        require(max(footer_bytes, raw_bytes) <= MAX_FOOTER, f"{what} claims a footer of more than 32 MiB")
        footer_at = size - TRAILER.size - footer_bytes
        require(footer_at >= HEADER.size, f"{what} has no room for its footer")
        file.seek(footer_at)
        footer = file.read(footer_bytes)
        file.seek(0)
        header = file.read(HEADER.size)
        rest = file.read(SEALED_HEADER.size) if version == SEALED_VERSION else b""
    key = None
    if version == SEALED_VERSION:
        require(footer_at >= HEADER.size + SEALED_HEADER.size, f"{what} has no room for its footer")
        key_id, salt = SEALED_HEADER.unpack(rest)
        require(key_id in KEYS, f"{what} is sealed under key {key_id.hex()}: open it with --identity FILE")
        key = KEYS[key_id]
        end = derive("barmanfs 2026-11-30 end of a pack", key.footers + salt)
        proper = blake3.blake3(header + rest + footer + trailer[:16], key=end).digest()
    else:
        proper = blake3.blake3(header + footer + trailer[:16]).digest()
    require(proper == checksum, f"{what} is damaged: wrong checksum")
    require(version <= SEALED_VERSION, f"{what} has version {version}: a newer barmanfs wrote it")
    header_magic, header_version, header_zero, pack_id = HEADER.unpack(header)
    require(header_magic == b"bmfspack", f"{what} does not begin as a pack")
    require(header_version == version != 0 and header_zero == 0, f"{what} has a wrong header")
    require(pack_id.hex() == path.name, f"{what} says that it is pack {pack_id.hex()}")
    frames = None
    if key:
        frames = derive("barmanfs 2026-11-30 frames of a pack", key.data + salt)
        footer_key = derive("barmanfs 2026-11-30 footer of a pack", key.footers + salt)
        footer = unseal(footer_key, bytes(12), footer, header + rest + trailer[:16], f"The footer of pack {path.name}")
    if len(footer) != raw_bytes:
        footer = unpack_zstd(footer, raw_bytes, f"The footer of pack {path.name}")
    return parse_footer(footer, path, HEADER.size + len(rest), footer_at, frames)


def parse_footer(footer, path, offset, footer_at, frames):
    cursor = Cursor(footer, f"The footer of pack {path.name}")
    chunk_count, record_count = cursor.number(4), cursor.number(4)
    require(chunk_count <= MAX_PACK_CHUNKS, f"Pack {path.name} claims {chunk_count} chunks")
    chunks, added = [], TAG if frames else 0
    for _ in range(chunk_count):
        chunk_id, encoding = cursor.take(32), cursor.number(1)
        stored, size = cursor.number(4), cursor.number(4)
        require(encoding in (STORED, ZSTD, DELTA), f"Pack {path.name} has a chunk of the unknown encoding {encoding}")
        require(stored >= added, f"Pack {path.name} has a frame without a tag")
        require(max(stored - added, size) <= MAX_CHUNK, f"Pack {path.name} claims a chunk of more than 4 MiB")
        base = cursor.take(32) if encoding == DELTA else None
        require(base != chunk_id, f"Pack {path.name} has a chunk that is its own base")
        chunks.append((chunk_id, Place(path.name, path, offset, stored, encoding, size, base, frames)))
        offset += stored
    require(offset == footer_at, f"The frames of pack {path.name} do not end where its footer begins")
    records = []
    for _ in range(record_count):
        record_id, kind, length = cursor.take(16), cursor.number(1), cursor.number(4)
        require(length <= MAX_RECORD, f"Pack {path.name} claims a record of more than 8 MiB")
        records.append(Record(record_id.hex(), kind, cursor.take(length), path.name))
    cursor.end()
    return chunks, records


PACK_NAME = re.compile(r"[0-9a-f]{32}")


def find_packs(directory):
    """The packs under their own names, and files under other names that begin as a pack, with its id."""
    packs, strays = [], []
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = Path(folder) / name
            if PACK_NAME.fullmatch(name) and path.parent == Path(directory) / name[:2]:
                packs.append(path)
            elif not being_written(name) and path.is_file():
                pack_id = pack_id_in_header(path)
                strays += [(path, pack_id)] if pack_id else []
    own = {path.name for path in packs}
    return packs, [(path, pack_id) for path, pack_id in strays if pack_id not in own]


def being_written(name):
    """Packs of writers at work or killed, and files that NFS keeps because a process has them open."""
    return (name.startswith("tmp-") and name.endswith(".partial")) or name.startswith(".nfs")


def pack_id_in_header(path):
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) == HEADER.size and header.startswith(b"bmfspack"):
        return header[16:].hex()
    return None


# ---------------------------------------------------------------------------------------------------------
# Maps and listings


class FileMap(NamedTuple):
    size: int
    window: int
    crc: int
    rows: Optional[list]  # [(chunk id or None, CRC)], or None when they are in pieces
    pieces: Optional[list]  # chunk ids


class Entry(NamedTuple):
    name: bytes
    kind: str  # "file", "directory", "link"
    mode: int
    uid: int
    gid: int
    mtime_s: int
    mtime_ns: int
    content: object  # FileMap, Directory, or the target of a link


class Directory(NamedTuple):
    entries: int
    pages: list  # [(first name, chunk id)]


def row_count(size, window):
    return -(-size // window)


def check_map(file_map, what):
    """A map must have a possible window size, and as many rows or pieces as its size needs."""
    window = file_map.window
    require(BLOCK <= window <= MAX_CHUNK and window & (window - 1) == 0, f"{what} has windows of {window} bytes")
    rows = row_count(file_map.size, window)
    if file_map.rows is None:
        pieces = row_count(rows, PIECE_ROWS) if rows > INLINE_ROWS else -1
        require(len(file_map.pieces) == pieces, f"{what} has a wrong number of pieces")
    else:
        require(len(file_map.rows) == rows <= INLINE_ROWS, f"{what} has a wrong number of rows")
    return file_map


def parse_rows(data):
    return [(None if chunk == bytes(32) else chunk, crc) for chunk, crc in ROW.iter_unpack(data)]


def number_of(value, name, limit=1 << 64):
    """A number in a record that fits into the same field in bytes."""
    number = value[name]
    if not isinstance(number, int) or not 0 <= number < limit:
        raise ValueError(f"{name} is {number!r}")
    return number


def chunk_id_of(hex_digits):
    chunk_id = bytes.fromhex(hex_digits)
    if len(chunk_id) != 32:
        raise ValueError(f"{hex_digits!r} is no chunk id")
    return chunk_id


def map_from_json(value, what):
    """A map in a record. The caller decides what a missing field or one of another type means."""
    windows = value["windows"]
    rows = pieces = None
    if "inline" in windows:
        rows = [
            (None if row.get("chunk") is None else chunk_id_of(row["chunk"]), number_of(row, "crc32c", 1 << 32))
            for row in windows["inline"]
        ]
    else:
        pieces = [chunk_id_of(piece) for piece in windows["pieces"]]
    size, window = number_of(value, "size_bytes"), number_of(value, "window_bytes", 1 << 32)
    return check_map(FileMap(size, window, number_of(value, "crc32c", 1 << 32), rows, pieces), what)


def directory_from_json(value):
    pages = [(bytes.fromhex(page["first"]), chunk_id_of(page["chunk"])) for page in value["pages"]]
    return Directory(number_of(value, "entries"), pages)


def root_from_json(value):
    """The entry of a root directory, which has no name."""
    attributes = value["attributes"]
    mode, mtime_ns = number_of(attributes, "mode", 0o10000), number_of(attributes, "mtime_ns", 1_000_000_000)
    uid, gid = number_of(attributes, "uid", 1 << 32), number_of(attributes, "gid", 1 << 32)
    return Entry(
        b"", "directory", mode, uid, gid, int(attributes["mtime_s"]), mtime_ns, directory_from_json(value["directory"])
    )


def check_name(name, what):
    good = 1 <= len(name) <= 255 and b"\0" not in name and b"/" not in name and name not in (b".", b"..")
    require(good, f"{what} has an entry with the impossible name {name!r}")
    return name


def parse_page(data, what):
    cursor = Cursor(data, what)
    require(cursor.take(8) == b"bmfslist", f"{what} does not begin as a listing")
    version = cursor.number(4)
    require(version == FORMAT_VERSION, f"{what} has version {version}, not {FORMAT_VERSION}")
    count = cursor.number(4)
    require(count >= 1, f"{what} is empty")
    entries = [parse_entry(cursor, what) for _ in range(count)]
    cursor.end()
    return entries


def parse_entry(cursor, what):
    kind = cursor.number(1)
    name = check_name(cursor.take(cursor.number(2)), what)
    mode, uid, gid = cursor.number(4), cursor.number(4), cursor.number(4)
    mtime_s, mtime_ns = cursor.number(8, signed=True), cursor.number(4)
    require(mode <= 0o7777 and mtime_ns < 1_000_000_000, f"{what} has an entry with impossible attributes")
    if kind in (1, 2):
        kind, content = "file", parse_map(cursor, kind == 1, what)
    elif kind == 3:
        kind, content = "directory", parse_reference(cursor, what)
    elif kind == 4:
        kind, content = "link", cursor.take(cursor.number(2))
        require(1 <= len(content) <= 4095 and b"\0" not in content, f"{what} has a link with an impossible target")
    else:
        raise Problem(f"{what} has an entry of the unknown kind {kind}")
    return Entry(name, kind, mode, uid, gid, mtime_s, mtime_ns, content)


def parse_map(cursor, inline, what):
    size, window, crc = cursor.number(8), cursor.number(4), cursor.number(4)
    # Checked before anything is read by the counts that are derived from them.
    require(BLOCK <= window <= MAX_CHUNK, f"{what} has windows of {window} bytes")
    count = row_count(size, window)
    if inline:
        require(count <= INLINE_ROWS, f"{what} has {count} rows in an entry")
        return check_map(FileMap(size, window, crc, parse_rows(cursor.take(count * ROW.size)), None), what)
    ids = cursor.take(row_count(count, PIECE_ROWS) * 32)
    return check_map(FileMap(size, window, crc, None, [ids[at : at + 32] for at in range(0, len(ids), 32)]), what)


def parse_reference(cursor, what):
    entries, pages = cursor.number(8), cursor.number(4)
    return Directory(entries, [(cursor.take(cursor.number(2)), cursor.take(32)) for _ in range(pages)])


# ---------------------------------------------------------------------------------------------------------
# A repository


class Repository:
    """The packs of a repository, read once. `problems` has one line for each problem."""

    def __init__(self, directory):
        self.problems = []
        self.chunks = {}  # chunk id -> its places
        self.records = {}  # record id -> Record; a record that is in several packs counts once
        self.crcs = {}  # chunk id -> CRC-32C, of chunks that were proven by their id
        packs = Path(directory) / "packs"
        require(packs.is_dir(), f"{directory} is no repository: it has no directory 'packs'")
        paths, strays = find_packs(packs)
        for path in paths:
            self.read(path)
        for path, pack_id in strays:
            self.problems.append(
                f"{path} is pack {pack_id} under another name: move it to {packs}/{pack_id[:2]}/{pack_id}"
            )
        self.apply_records()
        self.sort_places()

    def read(self, path):
        try:
            chunks, records = read_pack(path)
        except (Problem, OSError) as problem:
            self.problems.append(str(problem))
            return
        for chunk_id, place in chunks:
            self.chunks.setdefault(chunk_id, []).append(place)
        for record in records:
            self.records.setdefault(record.id, record)

    # -- records

    def parse(self, record):
        """A record's payload, or None when it cannot be understood, which is a problem of the repository."""
        try:
            value = json.loads(record.payload)
            require(
                value["version"] <= 1, f"Record {record.id} has version {value['version']}: a newer barmanfs wrote it"
            )
            value["record"] = record.id
            check_fields(record.kind, value)
            return value
        except Problem as problem:
            self.problems.append(str(problem))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self.problems.append(f"Record {record.id} in pack {record.pack} cannot be read: {error!r}")
        return None

    def of_kind(self, kind):
        values = (self.parse(record) for record in self.live if record.kind == kind)
        return [value for value in values if value is not None]

    def apply_records(self):
        """Deletions first: the order in which records are read does not matter."""
        self.live = [record for record in self.records.values() if record.kind == DELETION]
        annulled = {deletion["of"] for deletion in self.of_kind(DELETION)}
        self.live = [record for record in self.records.values() if record.id not in annulled]
        decisions = [decision_from_json(value) for value in self.of_kind(HISTORY)]
        self.decisions = sorted((decision for decision in decisions if decision), key=lambda one: (one.at, one.record))
        # The archive of each record that a decision names: the last decision counts.
        self.placed = {record: archive for decision in self.decisions for record, archive in decision.placed.items()}
        self.removals = self.of_kind(REMOVAL)
        backups = self.of_kind(BACKUP) + self.of_kind(SNAPSHOT)
        backups = [((backup["server"], backup["id"]), backup) for backup in backups]
        self.backups = claim(backups, lambda backup: (backup["status"] == "FAILED", backup["record"]))
        refused = self.of_kind(QUARANTINED)
        self.quarantined = [file for file in refused if file["record"] not in self.placed]
        files = self.of_kind(WAL) + [file for file in refused if file["record"] in self.placed]
        files = [((archive, file["name"]), file) for file in files for archive in self.archives_with(file)]
        self.wal = claim(files, lambda file: (instant(file["archived_at"]), file["record"]))
        configurations = claim([(one["of"], one) for one in self.of_kind(CONFIGURATION)], lambda one: one["record"])
        for backup in self.backups.values():
            backup["status"] = self.status(backup)
            if backup["record"] in configurations:
                backup["configuration"] = configurations[backup["record"]]
        self.damaged = {
            (damage["pack"], bytes.fromhex(chunk)) for damage in self.of_kind(DAMAGE) for chunk in damage["chunks"]
        }

    def archives_with(self, file):
        """The archives a file is in: its own, and those of histories that were left and have it as well."""
        archive = self.placed.get(file["record"], file["server"])
        if self.removed_from(archive, file) is None:
            yield archive
        removed_at = self.removed_from(file["server"], file)
        moves = [(one.at, one.placed[file["record"]]) for one in self.decisions if file["record"] in one.placed]
        for restart in self.restarts(file["server"]):
            left_before = any(to != file["server"] and at <= restart.at for at, to in moves)
            came_later = any(to == file["server"] and at >= restart.at for at, to in moves)
            is_older = instant(file["archived_at"]) < restart.at
            was_removed = removed_at is not None and removed_at <= restart.at
            if is_older and not left_before and not came_later and not was_removed and is_shared(file, restart.shared_from):
                yield restart.left

    def removed_from(self, archive, file):
        """When the file was first removed from an archive; None if it was not."""
        segment, archived_at = file["name"][:24], instant(file["archived_at"])
        times = [
            instant(removal["removed_at"])
            for removal in self.removals
            if removal["server"] == archive and removal["first"] <= segment <= removal["last"] and len(segment) == 24
        ]
        return min((time for time in times if time >= archived_at), default=None)

    def restarts(self, server):
        """The decisions that left a history of the server, in their order."""
        return [decision for decision in self.decisions if decision.left and decision.server == server]

    def archive_of(self, backup):
        """The archive that has a backup's WAL; None for a history that nobody has decided for."""
        fork = backup.get("fork")
        is_servers = fork is None or any(fork in decision.forks for decision in self.decisions if decision.left)
        return self.placed.get(backup["record"], backup["server"] if is_servers else None)

    def status(self, backup):
        """A complete backup waits until the archive has all the WAL it needs."""
        archive = self.archive_of(backup)
        if backup["status"] == "FAILED" or all((archive, name) in self.wal for name in needed_wal(backup)):
            return "FAILED" if backup["status"] == "FAILED" else "DONE"
        return "WAITING_FOR_WALS"

    def find_backup(self, name):
        server, slash, backup_id = name.rpartition("/")
        found = [backup for (of, id), backup in self.backups.items() if id == backup_id and (of == server or not slash)]
        require(found, f"There is no backup {name}")
        require(len(found) == 1, f"Several servers have a backup {name}: name it SERVER/{name}")
        return found[0]

    def archive(self, server, left):
        """The archive of a server or, with a number, of a history of it that was left."""
        if left is None:
            return server
        restarts = self.restarts(server)
        require(1 <= left <= len(restarts), f"Server {server} has no history {left} that was left")
        return restarts[left - 1].left

    def find_wal(self, archive, name):
        if name.startswith("quarantine/"):
            found = [file for file in self.quarantined if name == f"quarantine/{file['record']}"]
            require(found, f"Nothing is in quarantine as {name}")
            return found[0]
        require((archive, name) in self.wal, f"{name} of {archive} is not in the archive")
        return self.wal[archive, name]

    # -- chunks

    def sort_places(self):
        """Best places first: those not known to be damaged, then whole chunks before deltas."""
        for chunk_id, places in self.chunks.items():
            places.sort(key=lambda place: ((place.pack, chunk_id) in self.damaged, place.encoding == DELTA))

    def chunk(self, chunk_id, size=None, is_base=False):
        """The bytes of a chunk, verified by its id. All its places are tried before it counts as damaged."""
        places = [place for place in self.chunks.get(chunk_id, []) if not (is_base and place.encoding == DELTA)]
        failures = []
        for place in places:
            try:
                data = self.decode(chunk_id, place)
                require(size in (None, len(data)), f"Chunk {chunk_id.hex()} has {len(data)} bytes, {size} are needed")
                return data
            except (Problem, OSError) as problem:
                failures.append(str(problem))
        what = "The whole chunk" if is_base else "Chunk"
        raise Problem(failures[0] if failures else f"{what} {chunk_id.hex()} is in no readable pack")

    def decode(self, chunk_id, place):
        what = f"Chunk {chunk_id.hex()} in pack {place.pack}"
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            frame = file.read(place.stored)
        require(len(frame) == place.stored, f"{what} is cut short")
        if place.key:
            place_of = (bytes.fromhex(place.pack), place.offset, chunk_id, place.encoding, place.stored, place.size)
            where = struct.pack("<16sI32sBII", *place_of)
            frame = unseal(place.key, struct.pack("<I8x", place.offset), frame, where, what)
        if place.encoding == STORED:
            data = frame
            require(len(data) == place.size, f"{what} has {len(data)} bytes, not {place.size}")
        elif place.encoding == ZSTD:
            data = unpack_zstd(frame, place.size, what)
        else:
            data = decode_delta(frame, place.size, self.chunk(place.base, is_base=True), what)
        require(id_of(data) == chunk_id, f"{what} is damaged: wrong BLAKE3")
        return data

    def crc_of(self, chunk_id, data):
        if chunk_id is None:
            return crc32c_of_zeros(len(data))
        if chunk_id not in self.crcs:
            self.crcs[chunk_id] = crc32c(data)
        return self.crcs[chunk_id]

    # -- files and directories

    def rows(self, file_map):
        if file_map.rows is not None:
            yield from file_map.rows
            return
        left = row_count(file_map.size, file_map.window)
        for piece in file_map.pieces:
            count = min(left, PIECE_ROWS)
            yield from parse_rows(self.chunk(piece, size=count * ROW.size))
            left -= count

    def contents(self, file_map, what):
        """The bytes of a file, window by window, each verified before it is returned."""
        left, whole_crc = file_map.size, 0
        for chunk_id, crc in self.rows(file_map):
            length = min(left, file_map.window)
            data = bytes(length) if chunk_id is None else self.chunk(chunk_id, size=length)
            require(self.crc_of(chunk_id, data) == crc, f"{what}: a window has the wrong CRC-32C")
            whole_crc = crc32c_combine(whole_crc, crc, length)
            left -= length
            yield data
        require(whole_crc == file_map.crc, f"{what} has the wrong CRC-32C")

    def entries(self, directory, what):
        """The entries of a directory, sorted by name."""
        count, last = 0, None
        for first, chunk_id in directory.pages:
            page = parse_page(self.chunk(chunk_id), f"The listing of {what}")
            require(page[0].name == first, f"The listing of {what} has a page that begins with another name")
            for entry in page:
                require(last is None or last < entry.name, f"The listing of {what} is not sorted")
                last, count = entry.name, count + 1
                yield entry
        require(count == directory.entries, f"The listing of {what} has {count} entries, not {directory.entries}")

    def walk(self, directory, path=b""):
        """All (path, entry) below a directory; a directory comes before its entries."""
        for entry in self.entries(directory, text(path) or "the root"):
            name = path + b"/" + entry.name if path else entry.name
            yield name, entry
            if entry.kind == "directory":
                yield from self.walk(entry.content, name)

    def root(self, backup):
        """The entry of a backup's root directory."""
        require(backup.get("root"), f"Backup {backup['id']} has no files: its status is {backup['status']}")
        with as_problem(f"The record of backup {backup['id']}"):
            return root_from_json(backup["root"])

    def configuration(self, backup):
        """The entry of the directory with the configuration files of a backup, as if it had the backup's attributes."""
        require(backup.get("configuration"), f"Backup {backup['id']} has no configuration files of its own")
        with as_problem(f"The record with the configuration files of backup {backup['id']}"):
            directory = {"directory": backup["configuration"]["directory"]}
            return root_from_json({**backup["root"], **directory})

    def lookup_below(self, root, path, where):
        entry = root
        for name in [name for name in path.split(b"/") if name not in (b"", b".")]:
            require(entry.kind == "directory", f"{text(path)} is not in {where}")
            found = [child for child in self.entries(entry.content, text(path)) if child.name == name]
            require(found, f"{text(path)} is not in {where}")
            entry = found[0]
        return entry

    def wal_contents(self, file):
        what = f"{file['name']} of {file['server']}"
        with as_problem(f"The record of {what}"):
            file_map = map_from_json(file["map"], what)
        return self.contents(file_map, what)


# The fields that this program uses and that must not be missing. The others are read where they are used.
FIELDS = {
    BACKUP: {
        "server": str,
        "id": str,
        "status": str,
        "kind": str,
        "begin_time": str,
        "segment_size": int,
        "wal_included": bool,
        "logical_bytes": int,
        "files": int,
    },
    WAL: {"server": str, "name": str, "size_bytes": int, "archived_at": str, "origin": str, "map": dict},
    DELETION: {"of": str},
    DAMAGE: {"pack": str, "chunks": list},
    HISTORY: {"server": str, "at": str, "event": dict},
    KEEP: {"of": str, "target": str, "kept_at": str},
    REMOVAL: {"server": str, "first": str, "last": str, "removed_at": str},
    CONFIGURATION: {"of": str, "directory": dict, "read_at": str, "data_directory": str},
}
FIELDS[QUARANTINED] = {**FIELDS[WAL], "reason": str}
FIELDS[SNAPSHOT] = {**FIELDS[BACKUP], "snapshot": dict}


def check_fields(kind, value):
    """Raise an error when a payload lacks a field that its kind must have."""
    for name, type_of in FIELDS.get(kind, {}).items():
        if not isinstance(value[name], type_of):
            raise TypeError(f"{name} is {value[name]!r}")
    if kind in (BACKUP, SNAPSHOT):
        size = value["segment_size"]
        if not 1 << 20 <= size <= 1 << 30:
            raise ValueError(f"segment_size is {size}")
        next(needed_wal(value), None)  # the first one is computed with all its fields
    if kind in (WAL, QUARANTINED):
        instant(value["archived_at"])
    if kind == REMOVAL:
        instant(value["removed_at"])
    if kind == HISTORY:
        decision_from_json(value)
    if kind == DAMAGE:
        for chunk in value["chunks"]:
            bytes.fromhex(chunk)


class Decision(NamedTuple):
    """Which of two histories of a server counts."""

    at: int
    record: str
    server: str
    left: Optional[str]  # the archive of the history that is left
    shared_from: int
    forks: list
    placed: dict  # record id -> the archive it is in from then on


def decision_from_json(value):
    """A decision; None for a fork, which decides nothing."""
    ((name, event),) = value["event"].items()
    at, server, left, shared_from, apart = instant(value["at"]), value["server"], None, 0, []
    if name == "fork":
        return None
    if name == "restart":
        # No server has such a name.
        left, shared_from, apart = f"{server}/{value['record']}", lsn(event["shared_from"]), event["apart"]
    elif name != "keep":
        raise ValueError(f"{name!r} is no event")
    forks, taken = event["of"], event.get("taken", [])
    if not all(isinstance(ids, list) for ids in (forks, apart, taken)):
        raise TypeError("a list of ids is no list")
    placed = {**dict.fromkeys(taken, server), **dict.fromkeys(apart, left)}
    return Decision(at, value["record"], server, left, shared_from, forks, placed)


def is_shared(file, shared_from):
    """Whether a history that was left needs a file that it has in common with the server's archive."""
    name, size = file["name"], file["size_bytes"]
    if name.endswith(".history"):
        return True
    if not re.fullmatch(r"[0-9A-F]{24}", name) or not 1 << 20 <= size <= 1 << 30 or size & (size - 1):
        return False
    return (int(name[8:16], 16) << 32) + (int(name[16:], 16) + 1) * size > shared_from


def claim(values, rank):
    """Pairs of a name and a value as a dictionary. Of several values that claim one name the lowest rank has it."""
    return dict(sorted(dict(sorted(values, key=lambda pair: rank(pair[1]), reverse=True)).items()))


@contextlib.contextmanager
def as_problem(what):
    """A record whose fields are missing or of another type is damage, not a fault of this program."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{what} is not as the format demands: {error!r}") from error


def decode_delta(frame, size, base, what):
    """Put a chunk together from the changed blocks in the frame and the other blocks of its base."""
    blocks = row_count(size, BLOCK)
    cursor = Cursor(frame, what)
    bitmap = int.from_bytes(cursor.take(row_count(blocks, 8)), "little")
    require(bitmap >> blocks == 0, f"{what} marks blocks behind its end")
    starts = [(block * BLOCK, bitmap >> block & 1) for block in range(blocks)]
    prefix = b"".join(base[start : start + BLOCK] for start, changed in starts if changed)
    require(not prefix.startswith(ZSTD_DICTIONARY_MAGIC), f"{what} has a prefix that no writer uses")
    length = sum(min(BLOCK, size - start) for start, changed in starts if changed)
    fresh = Cursor(unpack_zstd(frame[cursor.at :], length, what, prefix), what)
    parts = []
    for start, changed in starts:
        end = min(start + BLOCK, size)
        require(changed or end <= len(base), f"{what} takes a block behind the end of its base")
        parts.append(fresh.take(end - start) if changed else base[start:end])
    return b"".join(parts)


def instant(time):
    """A record's time as microseconds since 1970: as texts, times with fewer digits would not sort."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?Z", time)
    if not match:
        raise ValueError(f"{time!r} is no time")
    seconds = datetime.fromisoformat(match[1]).replace(tzinfo=timezone.utc)
    return int(seconds.timestamp()) * 1_000_000 + int((match[2] or "").ljust(6, "0"))


def lsn(value):
    high, low = value.split("/")
    return int(high, 16) << 32 | int(low, 16)


def needed_wal(backup):
    """The segments a complete backup needs from the archive."""
    if backup["wal_included"] or backup.get("stop_lsn") is None:
        return
    size, stop = backup["segment_size"], lsn(backup["stop_lsn"])
    for number in range(lsn(backup["start_lsn"]) // size, row_count(stop, size)):
        log, segment = divmod(number, 0x1_0000_0000 // size)
        yield f"{backup['timeline']:08X}{log:08X}{segment:08X}"


# ---------------------------------------------------------------------------------------------------------
# Output


def text(name):
    """Bytes of a name for people: bytes that are not printable UTF-8 are escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in name.decode("utf-8", "backslashreplace")
    )


def describe(path, entry):
    """One line of `files`."""
    time = f"{entry.mtime_s}.{entry.mtime_ns:09}"
    line = f"{text(path)} {entry.mode:o} {entry.uid}:{entry.gid} {time}"
    if entry.kind == "file":
        return f"{line} {entry.content.size} {entry.content.crc:08x}"
    return line + (f" -> {text(entry.content)}" if entry.kind == "link" else "")


def list_backups(repository, arguments):
    for (server, backup_id), backup in repository.backups.items():
        if arguments.json:
            print(json.dumps(backup))
            continue
        label = f"  {backup['label']}" if backup.get("label") else ""
        print(
            f"{server}/{backup_id}  {backup['status']:<16}  {backup['kind']:<11}  {backup['begin_time']}"
            f"  {backup['files']} files  {backup['logical_bytes']} bytes{label}"
        )


def chosen_root(repository, arguments):
    """The tree that the arguments name, and what it is."""
    backup = repository.find_backup(arguments.backup)
    if arguments.configuration:
        return repository.configuration(backup), f"the configuration of backup {backup['id']}"
    return repository.root(backup), f"backup {backup['id']}"


def list_files(repository, arguments):
    root, _ = chosen_root(repository, arguments)
    for path, entry in repository.walk(root.content):
        print(describe(path, entry))


def wal(repository, arguments):
    archive = repository.archive(arguments.server, arguments.left)
    if arguments.segment:
        file = repository.find_wal(archive, arguments.segment)
        write_file(repository.wal_contents(file), arguments.output)
        return
    files = [(name, file) for (of, name), file in repository.wal.items() if of == archive]
    files += [(f"quarantine/{file['record']}", file) for file in repository.quarantined if file["server"] == archive]
    require(files, f"Server {arguments.server} has no WAL here")
    for name, file in files:
        print(f"{name}  {file['size_bytes']} bytes  {file['archived_at']}  {file['origin']}", end="")
        print(f"  {file['name']}: {file['reason']}" if name.startswith("quarantine/") else "")


def extract(repository, arguments):
    path = os.fsencode(arguments.path)
    root, what = chosen_root(repository, arguments)
    entry = repository.lookup_below(root, path, what)
    if entry.kind == "file":
        write_file(repository.contents(entry.content, text(path)), arguments.output, entry)
    elif entry.kind == "link":
        print(text(entry.content))
    else:
        require(arguments.output, f"{text(path)} is a directory: say with -o where to put it")
        extract_directory(repository, entry, Path(arguments.output))


def write_file(contents, output, entry=None):
    """Write a file under a temporary name first, so that a damaged one never looks whole."""
    if output is None:
        require(not sys.stdout.isatty(), "The file would go to the terminal: say with -o where to put it")
        for data in contents:
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    output = Path(output)
    require(not os.path.lexists(output), f"{output} exists")
    with tempfile.NamedTemporaryFile(dir=output.parent, prefix=".read_pack-") as file:
        for data in contents:
            # A hole remains a hole.
            if data.count(0) == len(data):
                file.seek(len(data), os.SEEK_CUR)
            else:
                file.write(data)
        file.truncate(file.tell())
        file.flush()
        if entry:
            set_attributes(file.name, entry)
        os.link(file.name, output)


def extract_directory(repository, root, output):
    """Write a tree. Damaged files are left out and reported; all others are written."""
    require(not os.path.lexists(output), f"{output} exists")
    failures = extract_entries(repository, root, b"", output)
    for failure in failures:
        print(failure, file=sys.stderr)
    require(not failures, f"{len(failures)} files or directories are damaged, see above; all others are in {output}")


def extract_entries(repository, directory, path, target):
    """Write a directory with its content; return what could not be written."""
    failures = []
    target.mkdir(mode=0o700)
    try:
        for entry in repository.entries(directory.content, text(path) or "the root"):
            child_path = path + b"/" + entry.name if path else entry.name
            child = target / os.fsdecode(entry.name)
            if entry.kind == "directory":
                failures += extract_entries(repository, entry, child_path, child)
                continue
            try:
                extract_entry(repository, entry, child_path, child)
            except Problem as problem:
                failures.append(f"{text(child_path)}: {problem}")
    except Problem as problem:
        failures.append(str(problem))
    # Last, because writing into a directory needs its permission and changes its time.
    set_attributes(target, directory)
    return failures


def extract_entry(repository, entry, path, target):
    if entry.kind == "file":
        write_file(repository.contents(entry.content, text(path)), target, entry)
    else:
        os.symlink(entry.content, os.fsencode(target))
        set_owner(target, entry)


def set_owner(path, entry):
    if os.geteuid() == 0:
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)


def set_attributes(path, entry):
    set_owner(path, entry)  # before the mode: it clears the set-user-id bits
    os.chmod(path, entry.mode)
    time = entry.mtime_s * 1_000_000_000 + entry.mtime_ns
    os.utime(path, ns=(time, time))


CONFIGURATION_HELP = "the server's configuration files from outside its data directory, which came with the backup"


def parse_arguments():
    parser = argparse.ArgumentParser(
        description="Read a barmanfs repository without barmanfs: list backups, list and extract files and WAL.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", help="the directory of the repository")
    parser.add_argument("--identity", metavar="FILE", help="a secret key of age, for an encrypted repository")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser("list", help="list the backups of all servers")
    command.add_argument("--json", action="store_true", help="one JSON object a line: the record, with today's status")
    command.set_defaults(run=list_backups)

    command = commands.add_parser("files", help="list the files of a backup")
    command.add_argument("backup", metavar="BACKUP")
    command.add_argument("--configuration", action="store_true", help=CONFIGURATION_HELP)
    command.set_defaults(run=list_files)

    command = commands.add_parser("extract", help="extract a file, a directory, or a whole backup")
    command.add_argument("backup", metavar="BACKUP")
    command.add_argument("path", metavar="PATH", nargs="?", default="", help="a file or a directory; all when left out")
    command.add_argument(
        "-o", "--output", help="where to put it; must not exist; a file goes to standard output without"
    )
    command.add_argument("--configuration", action="store_true", help=CONFIGURATION_HELP)
    command.set_defaults(run=extract)

    command = commands.add_parser("wal", help="list the archived WAL of a server, or extract a file of it")
    command.add_argument("server", metavar="SERVER")
    command.add_argument("segment", metavar="SEGMENT", nargs="?", help="a name as the list shows it")
    command.add_argument("-o", "--output", help="where to put it; must not exist; standard output without")
    command.add_argument(
        "--left", metavar="N", type=int, help="of the Nth history that was left, in the order of the decisions"
    )
    command.set_defaults(run=wal)
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    try:
        if arguments.identity:
            open_keys(arguments.repository, arguments.identity)
        repository = Repository(arguments.repository)
        with as_problem("A record"):
            arguments.run(repository, arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output has closed it. Python would try to write the rest again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Problem, OSError) as problem:
        print(f"FAILED: {problem}", file=sys.stderr)
        return 1
    for problem in repository.problems:
        print(problem, file=sys.stderr)
    if repository.problems:
        print(f"INCOMPLETE: {len(repository.problems)} problems above; what they hide is not shown", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
