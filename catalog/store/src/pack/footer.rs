//! A pack's footer and trailer: to bytes and back.
//!
//! Reading trusts nothing: sizes are checked before anything is allocated, the checksum before anything is
//! parsed, and the parsed footer must account for every byte of the file.

use crate::codec::{Encoding, FrameError, decode_into, encode_whole};
use crate::error::{Error, Result};
use crate::id::{ChunkId, KeyId, PackId, RecordId};
use crate::layout::{
    FORMAT_VERSION, MAX_CHUNK_BYTES, MAX_FOOTER_BYTES, MAX_RECORD_BYTES, PACK_HEADER_BYTES, PACK_MAX_CHUNKS,
    PACK_TRAILER_BYTES, SEALED_FORMAT_VERSION, SEALED_HEADER_BYTES,
};
use crate::pack_header::Header;
use crate::seal::{EndKeys, Keys, PlainPacks, SEAL_BYTES};
use crate::storage::PackStorage;

use super::opener::not_sealed;
use super::{ClosedPack, PackedChunk, Record};

/// Last bytes of a pack: they show that it was written to its end.
const TRAILER_MAGIC: [u8; 8] = *b"bmfs-end";

/// Footers hold ids, which do not compress, and JSON, which does; a higher level gains nothing.
const FOOTER_LEVEL: i32 = 3;

/// Bytes read from the end of a pack at once: trailer and footer of nearly all packs, so that a rebuild needs
/// two reads a pack.
const TAIL_READ_BYTES: usize = 128 * 1024;

/// The trailer's bytes in front of its checksum, which covers them.
const TRAILER_CHECKED_BYTES: usize = 16;

/// Size of a record in the footer without its payload: id, kind, length.
pub(super) const RECORD_HEAD_BYTES: usize = RecordId::BYTES + 1 + 4;

/// A pack's last bytes: footer and trailer. `keys` are there when the header is that of a sealed pack.
pub(super) fn encode_footer(
    header: &Header,
    keys: Option<&EndKeys>,
    chunks: &[PackedChunk],
    records: &[Record],
) -> Result<Vec<u8>> {
    let body = encode_body(chunks, records);
    if body.len() > MAX_FOOTER_BYTES - SEAL_BYTES {
        let (bytes, limit) = (body.len() as u64, MAX_FOOTER_BYTES as u64);
        return Err(Error::TooLarge {
            what: "A pack's footer",
            bytes,
            limit,
        });
    }
    encode_tail(header, keys, &body)
}

/// Footer and trailer around a footer's body.
pub(super) fn encode_tail(header: &Header, keys: Option<&EndKeys>, body: &[u8]) -> Result<Vec<u8>> {
    let mut tail = encode_whole(body, FOOTER_LEVEL).bytes;
    let added = keys.map_or(0, |_| SEAL_BYTES);
    let mut fields = Vec::with_capacity(TRAILER_CHECKED_BYTES);
    fields.extend_from_slice(&header.version().to_le_bytes());
    fields.extend_from_slice(&0_u32.to_le_bytes());
    fields.extend_from_slice(&((tail.len() + added) as u32).to_le_bytes());
    fields.extend_from_slice(&(body.len() as u32).to_le_bytes());
    let header = header.encode();
    if let Some(keys) = keys {
        keys.seal(&associated(&header, &fields), &mut tail)?;
    }
    tail.extend_from_slice(&fields);
    let checksum = match keys {
        None => checksum(&header, &tail),
        Some(keys) => keys.checksum(&header, &tail),
    };
    tail.extend_from_slice(checksum.as_bytes());
    tail.extend_from_slice(&TRAILER_MAGIC);
    Ok(tail)
}

/// What a footer is sealed together with.
fn associated(header: &[u8], fields: &[u8]) -> Vec<u8> {
    [header, fields].concat()
}

fn encode_body(chunks: &[PackedChunk], records: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
    body.extend_from_slice(&(records.len() as u32).to_le_bytes());
    for chunk in chunks {
        body.extend_from_slice(chunk.id.as_bytes());
        body.push(chunk.encoding as u8);
        body.extend_from_slice(&chunk.stored_bytes.to_le_bytes());
        body.extend_from_slice(&chunk.raw_bytes.to_le_bytes());
        if let Some(base) = chunk.base {
            body.extend_from_slice(base.as_bytes());
        }
    }
    for record in records {
        body.extend_from_slice(record.id.as_bytes());
        body.push(record.kind);
        body.extend_from_slice(&(record.payload.len() as u32).to_le_bytes());
        body.extend_from_slice(&record.payload);
    }
    body
}

/// `checked` is the footer as stored and the trailer's fields in front of the checksum.
fn checksum(header: &[u8], checked: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(header).update(checked).finalize()
}

/// Reads a pack's footer and checks everything that can be checked without decoding chunks; `FORMAT.md` lists
/// the checks.
///
/// # Errors
/// [`Error::MissingPack`], [`Error::Damaged`] for anything that is not as it was written,
/// [`Error::NewerFormat`] for an intact pack of a later release, [`Error::Io`].
pub fn read_footer(storage: &dyn PackStorage, id: PackId) -> Result<ClosedPack> {
    let bytes = storage.bytes(id)?;
    let damaged = |reason: String| Error::damaged(format!("Pack {id}"), reason);
    if bytes < (PACK_HEADER_BYTES + PACK_TRAILER_BYTES) as u64 {
        return Err(damaged(format!("It has only {bytes} bytes")));
    }
    // A pack of either version has so many bytes.
    let mut first = [0; SEALED_HEADER_BYTES];
    storage.read_at(id, 0, &mut first)?;
    let (trailer, checked) = read_tail(storage, id, bytes)?;
    let (header, body) = match trailer.version {
        SEALED_FORMAT_VERSION => open_footer(storage.keys(), id, &first, &trailer, checked)?,
        _ => plain_footer(storage.keys(), id, &first, &trailer, &checked)?,
    };
    let frames_end = bytes - (trailer.footer_bytes + PACK_TRAILER_BYTES) as u64;
    let (chunks, records) =
        parse_body(&body, &header, frames_end).map_err(|reason| damaged(reason.to_owned()))?;
    Ok(ClosedPack {
        id,
        bytes,
        chunks,
        records,
    })
}

/// The header of a plain pack and the body of its footer.
fn plain_footer(
    keys: &Keys,
    id: PackId,
    first: &[u8; SEALED_HEADER_BYTES],
    trailer: &Trailer,
    checked: &[u8],
) -> Result<(Header, Vec<u8>)> {
    let damaged = |reason: String| Error::damaged(format!("Pack {id}"), reason);
    let (first, _) = first.split_at(PACK_HEADER_BYTES);
    if *checksum(first, checked).as_bytes() != trailer.checksum {
        return Err(damaged("The checksum of its footer is wrong".to_owned()));
    }
    if trailer.version > SEALED_FORMAT_VERSION {
        let (what, found) = (format!("Pack {id}"), trailer.version);
        return Err(Error::NewerFormat {
            what,
            found,
            newest: SEALED_FORMAT_VERSION,
        });
    }
    let header = Header::Plain { id };
    if *first != *header.encode() || trailer.version != FORMAT_VERSION {
        return Err(damaged(
            "Its header does not go with its name and its end".to_owned(),
        ));
    }
    if keys.plain_packs() == PlainPacks::Refused {
        return Err(not_sealed(id));
    }
    let stored = checked.get(..trailer.footer_bytes).unwrap_or_default();
    let body = unpack_footer(stored, trailer.raw_bytes).map_err(|reason| damaged(reason.to_string()))?;
    Ok((header, body))
}

/// The same of a sealed pack.
fn open_footer(
    keys: &Keys,
    id: PackId,
    first: &[u8; SEALED_HEADER_BYTES],
    trailer: &Trailer,
    mut checked: Vec<u8>,
) -> Result<(Header, Vec<u8>)> {
    let damaged = |reason: String| Error::damaged(format!("Pack {id}"), reason);
    let (key, salt) = match Header::parse(first) {
        Some(Header::Sealed { id: named, key, salt }) if named == id => (key, salt),
        _ => {
            return Err(damaged(
                "Its header does not go with its name and its end".to_owned(),
            ));
        }
    };
    let Some(end) = keys.end_keys(key, &salt) else {
        return Err(
            match is_of_held_key(keys, &Header::Sealed { id, key, salt }, trailer, &checked) {
                true => damaged("The key id in its header is wrong".to_owned()),
                false => Error::no_key(format!("Pack {id}"), key),
            },
        );
    };
    if end.checksum(first, &checked) != trailer.checksum {
        return Err(damaged("The checksum of its footer is wrong".to_owned()));
    }
    let fields = checked.split_off(trailer.footer_bytes);
    end.open(&associated(first, &fields), &mut checked)
        .ok_or_else(|| damaged("Its footer is not what was sealed".to_owned()))?;
    let body = unpack_footer(&checked, trailer.raw_bytes).map_err(|reason| damaged(reason.to_string()))?;
    Ok((Header::Sealed { id, key, salt }, body))
}

/// Whether a pack whose header names a key that is not held was written under one that is: then the name is damaged.
fn is_of_held_key(keys: &Keys, header: &Header, trailer: &Trailer, checked: &[u8]) -> bool {
    let Header::Sealed { id, salt, .. } = *header else {
        return false;
    };
    let fits = |key: KeyId| {
        let header = Header::Sealed { id, key, salt }.encode();
        let end = keys.end_keys(key, &salt);
        end.is_some_and(|end| end.checksum(&header, checked) == trailer.checksum)
    };
    keys.ids().any(fits)
}

/// A pack's last bytes, parsed.
struct Trailer {
    version: u32,
    footer_bytes: usize,
    raw_bytes: usize,
    checksum: [u8; 32],
}

/// Reads the trailer, and the bytes that its checksum covers apart from the header: the footer and the
/// trailer's first fields.
fn read_tail(storage: &dyn PackStorage, id: PackId, bytes: u64) -> Result<(Trailer, Vec<u8>)> {
    let damaged = |reason: &str| Error::damaged(format!("Pack {id}"), reason);
    let behind_header = bytes - PACK_HEADER_BYTES as u64;
    let mut tail = vec![0; behind_header.min(TAIL_READ_BYTES as u64) as usize];
    storage.read_at(id, bytes - tail.len() as u64, &mut tail)?;
    let trailer = parse_trailer(&tail).ok_or_else(|| damaged("It was not written to its end"))?;
    let wanted = trailer.footer_bytes + PACK_TRAILER_BYTES;
    if trailer.footer_bytes.max(trailer.raw_bytes) > MAX_FOOTER_BYTES || wanted as u64 > behind_header {
        return Err(damaged("Its end claims an impossible footer"));
    }
    match tail.len().checked_sub(wanted) {
        Some(frames) => drop(tail.drain(..frames)),
        None => {
            tail.resize(wanted, 0);
            storage.read_at(id, bytes - wanted as u64, &mut tail)?;
        }
    }
    tail.truncate(trailer.footer_bytes + TRAILER_CHECKED_BYTES);
    Ok((trailer, tail))
}

fn parse_trailer(tail: &[u8]) -> Option<Trailer> {
    let start = tail.len().checked_sub(PACK_TRAILER_BYTES)?;
    let mut fields = Fields(tail.get(start..)?);
    let version = fields.u32()?;
    let _reserved = fields.u32()?;
    let footer_bytes = fields.u32()? as usize;
    let raw_bytes = fields.u32()? as usize;
    let checksum = fields.array()?;
    (fields.0 == TRAILER_MAGIC).then_some(Trailer {
        version,
        footer_bytes,
        raw_bytes,
        checksum,
    })
}

/// The footer's body. A footer that zstd does not shrink is stored as it is.
fn unpack_footer(stored: &[u8], raw_bytes: usize) -> Result<Vec<u8>, FrameError> {
    let encoding = if stored.len() == raw_bytes {
        Encoding::Stored
    } else {
        Encoding::Zstd
    };
    let mut body = vec![0; raw_bytes];
    decode_into(stored, encoding, None, &mut body)?;
    Ok(body)
}

const CUT_SHORT: &str = "Its footer is cut short";

/// Parses the footer; `frames_end` is where it begins in the file, and so where the last frame must end.
fn parse_body(
    body: &[u8],
    header: &Header,
    frames_end: u64,
) -> Result<(Vec<PackedChunk>, Vec<Record>), &'static str> {
    let mut fields = Fields(body);
    let chunk_count = fields.u32().ok_or(CUT_SHORT)? as usize;
    let record_count = fields.u32().ok_or(CUT_SHORT)? as usize;
    if chunk_count > PACK_MAX_CHUNKS {
        return Err("Its footer lists more chunks than a pack has");
    }
    let mut chunks = Vec::with_capacity(chunk_count);
    let mut offset = header.bytes() as u32;
    let added_bytes = match header {
        Header::Plain { .. } => 0,
        Header::Sealed { .. } => SEAL_BYTES,
    };
    for _ in 0..chunk_count {
        let chunk = parse_chunk(&mut fields, offset, added_bytes)?;
        offset = offset
            .checked_add(chunk.stored_bytes)
            .ok_or("Its chunks reach beyond 4 GiB")?;
        chunks.push(chunk);
    }
    if u64::from(offset) != frames_end {
        return Err("Its chunks do not fill it from header to footer");
    }
    // Nothing is reserved in advance: only the records themselves confirm the count.
    let mut records = Vec::new();
    for _ in 0..record_count {
        records.push(parse_record(&mut fields)?);
    }
    if fields.0.is_empty() {
        Ok((chunks, records))
    } else {
        Err("Its footer is longer than what it lists")
    }
}

/// `added_bytes` are what sealing adds to a frame.
fn parse_chunk(
    fields: &mut Fields<'_>,
    offset: u32,
    added_bytes: usize,
) -> Result<PackedChunk, &'static str> {
    let id = ChunkId(fields.array().ok_or(CUT_SHORT)?);
    let encoding =
        Encoding::from_u8(fields.u8().ok_or(CUT_SHORT)?).ok_or("It has a chunk of unknown encoding")?;
    let stored_bytes = fields.u32().ok_or(CUT_SHORT)?;
    let raw_bytes = fields.u32().ok_or(CUT_SHORT)?;
    let base = match encoding {
        Encoding::Stored | Encoding::Zstd => None,
        Encoding::Delta => Some(ChunkId(fields.array().ok_or(CUT_SHORT)?)),
    };
    let frame_bytes = (stored_bytes as usize).checked_sub(added_bytes);
    let frame_bytes = frame_bytes.ok_or("It has a frame shorter than any sealed frame is")?;
    if frame_bytes.max(raw_bytes as usize) > MAX_CHUNK_BYTES {
        return Err("It has a chunk larger than any chunk is");
    }
    if base == Some(id) {
        return Err("It has a delta that is its own base");
    }
    Ok(PackedChunk {
        id,
        encoding,
        offset,
        stored_bytes,
        raw_bytes,
        base,
    })
}

fn parse_record(fields: &mut Fields<'_>) -> Result<Record, &'static str> {
    let id = RecordId(fields.array().ok_or(CUT_SHORT)?);
    let kind = fields.u8().ok_or(CUT_SHORT)?;
    let payload_bytes = fields.u32().ok_or(CUT_SHORT)? as usize;
    if payload_bytes > MAX_RECORD_BYTES {
        return Err("It has a record larger than any record is");
    }
    let payload = fields.take(payload_bytes).ok_or(CUT_SHORT)?.to_vec();
    Ok(Record { id, kind, payload })
}

/// Bytes still to be parsed. All numbers are little-endian.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        self.0.split_off(..bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
}
