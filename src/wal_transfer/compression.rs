//! The forms in which a WAL file may travel, and how they are told apart.
//!
//! A compressed file keeps its name, so only its first bytes show its form. No WAL file begins like one of them.

use std::cell::Cell;
use std::io::{self, BufRead, BufReader, Read, Write};

use zstd_safe::{CCtx, CParameter, DCtx, InBuffer, OutBuffer};

use self::lz4::Lz4Reader;

mod lz4;

/// As many bytes as the longest magic number.
pub(crate) const MAGIC_BYTES: usize = 10;

/// The size of buffers.
const BUFFER_BYTES: usize = 128 * 1024;

/// A form of compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Compression {
    /// gzip
    Gzip,
    /// bzip2
    Bzip2,
    /// xz
    Xz,
    /// zstd
    Zstd,
    /// lz4, in its frame format
    Lz4,
    /// snappy, in its framing format
    Snappy,
}

const MAGIC: &[(&[u8], Compression)] = &[
    (b"\x1f\x8b\x08", Compression::Gzip),
    (b"BZh", Compression::Bzip2),
    (b"\xfd7zXZ\x00", Compression::Xz),
    (b"\x28\xb5\x2f\xfd", Compression::Zstd),
    (b"\x04\x22\x4d\x18", Compression::Lz4),
    (b"\xff\x06\x00\x00sNaPpY", Compression::Snappy),
];

/// The most memory that a file of xz may ask for. Its highest preset needs 65 MiB.
const XZ_MEMORY_BYTES: u64 = 128 << 20;

impl Compression {
    /// The form of a file that begins with these bytes; `None` if it is not compressed.
    pub(crate) fn of(beginning: &[u8]) -> Option<Self> {
        let found = MAGIC.iter().find(|(magic, _)| beginning.starts_with(magic));
        found.map(|(_, form)| *form)
    }

    /// What this form holds.
    ///
    /// # Errors
    /// When no decoder can be made. Reading fails for what is cut or not in this form.
    pub(crate) fn reader<'a>(self, source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let source = BufReader::with_capacity(BUFFER_BYTES, source);
        Ok(match self {
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
            Self::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
            Self::Xz => {
                let stream = liblzma::stream::Stream::new_stream_decoder(
                    XZ_MEMORY_BYTES,
                    liblzma::stream::CONCATENATED,
                )
                .map_err(io::Error::other)?;
                Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
            }
            Self::Zstd => Box::new(ZstdReader::new(source)),
            Self::Lz4 => Box::new(Lz4Reader::new(source)),
            Self::Snappy => Box::new(snap::read::FrameDecoder::new(source)),
        })
    }

    /// Writes `source` in this form. If it cannot be read to its end, nothing is written that would end the output as if it were
    /// whole.
    ///
    /// # Errors
    /// Those of reading and writing.
    pub(crate) fn encode(
        self,
        level: Option<i32>,
        source: &mut dyn Read,
        target: &mut dyn Write,
    ) -> io::Result<()> {
        let of = |usual: u32, least: i32, most: i32| {
            let level = level.map(|level| level.clamp(least, most));
            level.and_then(|level| u32::try_from(level).ok()).unwrap_or(usual)
        };
        let is_closed = Cell::new(false);
        let target = Gate {
            target,
            is_closed: &is_closed,
        };
        match self {
            Self::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(target, flate2::Compression::new(of(6, 0, 9)));
                encode_all(source, &mut encoder, &is_closed)?;
                encoder.finish().map(drop)
            }
            Self::Bzip2 => {
                let mut encoder = bzip2::write::BzEncoder::new(target, bzip2::Compression::new(of(9, 1, 9)));
                encode_all(source, &mut encoder, &is_closed)?;
                encoder.finish().map(drop)
            }
            Self::Xz => {
                let mut encoder = liblzma::write::XzEncoder::new(target, of(3, 0, 9));
                encode_all(source, &mut encoder, &is_closed)?;
                encoder.finish().map(drop)
            }
            Self::Zstd => encode_zstd(level.unwrap_or(1).clamp(-7, 19), source, target.target),
            Self::Lz4 => {
                let mut encoder = lz4_flex::frame::FrameEncoder::new(target);
                encode_all(source, &mut encoder, &is_closed)?;
                encoder.finish().map(drop).map_err(io::Error::other)
            }
            Self::Snappy => {
                let mut encoder = snap::write::FrameEncoder::new(target);
                encode_all(source, &mut encoder, &is_closed)?;
                encoder.flush()
            }
        }
    }
}

/// Passes bytes on until it is closed. An encoder that is dropped ends its stream, also after an error of its source.
struct Gate<'a> {
    target: &'a mut dyn Write,
    is_closed: &'a Cell<bool>,
}

impl Write for Gate<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.is_closed.get() {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => self.target.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.is_closed.get() {
            true => Ok(()),
            false => self.target.flush(),
        }
    }
}

/// Copies all of `source` into an encoder. Nothing passes the gate behind it after an error.
fn encode_all(source: &mut dyn Read, encoder: &mut dyn Write, is_closed: &Cell<bool>) -> io::Result<()> {
    let copied = io::copy(source, encoder);
    is_closed.set(copied.is_err());
    copied.map(drop)
}

/// What `source` holds, whatever form it is in; its form is read off its first bytes.
///
/// # Errors
/// When it cannot be read, or no decoder can be made.
pub(crate) fn decoded<'a>(mut source: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut beginning = Vec::with_capacity(MAGIC_BYTES);
    source
        .by_ref()
        .take(MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)?;
    let form = Compression::of(&beginning);
    let whole = io::Cursor::new(beginning).chain(source);
    match form {
        Some(form) => form.reader(whole),
        None => Ok(Box::new(whole)),
    }
}

fn zstd_error(code: zstd_safe::ErrorCode) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, zstd_safe::get_error_name(code))
}

fn encode_zstd(level: i32, source: &mut dyn Read, target: &mut dyn Write) -> io::Result<()> {
    use zstd_safe::zstd_sys::ZSTD_EndDirective::{ZSTD_e_continue, ZSTD_e_end};
    let mut context = CCtx::create();
    context
        .set_parameter(CParameter::CompressionLevel(level))
        .and_then(|_| context.set_parameter(CParameter::ChecksumFlag(true)))
        .map_err(zstd_error)?;
    let (mut read, mut written) = (vec![0_u8; BUFFER_BYTES], vec![0_u8; BUFFER_BYTES]);
    loop {
        let length = match source.read(&mut read) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let step = if length == 0 { ZSTD_e_end } else { ZSTD_e_continue };
        let mut input = InBuffer::around(read.get(..length).unwrap_or_default());
        loop {
            let mut output = OutBuffer::around(written.as_mut_slice());
            let left = context
                .compress_stream2(&mut output, &mut input, step)
                .map_err(zstd_error)?;
            let count = output.pos();
            target.write_all(written.get(..count).unwrap_or_default())?;
            let is_taken = input.pos() >= length;
            if is_taken && (left == 0 || length > 0) {
                break;
            }
        }
        if length == 0 {
            return Ok(());
        }
    }
}

/// Decodes frames of zstd. An end within a frame is an error.
struct ZstdReader<R> {
    source: R,
    context: DCtx<'static>,
    /// Bytes that the present frame still wants; 0 between frames.
    wanted: usize,
}

impl<R: BufRead> ZstdReader<R> {
    fn new(source: R) -> Self {
        Self {
            source,
            context: DCtx::create(),
            wanted: 0,
        }
    }
}

impl<R: BufRead> Read for ZstdReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while !buffer.is_empty() {
            let bytes = self.source.fill_buf()?;
            let is_end = bytes.is_empty();
            if is_end && self.wanted == 0 {
                return Ok(0);
            }
            let mut input = InBuffer::around(bytes);
            let mut output = OutBuffer::around(&mut *buffer);
            self.wanted = self
                .context
                .decompress_stream(&mut output, &mut input)
                .map_err(zstd_error)?;
            let (taken, written) = (input.pos(), output.pos());
            self.source.consume(taken);
            if written > 0 {
                return Ok(written);
            }
            if is_end {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_form_is_recognized_and_read_back() {
        let content: Vec<u8> = (0..700_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        for form in Compression::value_variants() {
            for level in [None, Some(1), Some(99)] {
                let mut encoded = Vec::new();
                form.encode(level, &mut content.as_slice(), &mut encoded).unwrap();
                assert!(encoded.len() < content.len() / 2, "{form:?}");
                assert_eq!(Compression::of(&encoded), Some(*form));
                let mut back = Vec::new();
                decoded(encoded.as_slice())
                    .unwrap()
                    .read_to_end(&mut back)
                    .unwrap();
                assert!(back == content, "{form:?}");
            }
        }
    }

    #[test]
    fn what_is_cut_is_an_error_or_too_short() {
        let content: Vec<u8> = (0..700_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        for form in Compression::value_variants() {
            let mut encoded = Vec::new();
            form.encode(None, &mut content.as_slice(), &mut encoded).unwrap();
            for length in (MAGIC_BYTES..encoded.len()).step_by(encoded.len() / 97 + 1) {
                let mut back = Vec::new();
                let read = decoded(&encoded[..length]).unwrap().read_to_end(&mut back);
                // Snappy has no end mark.
                let has_end = *form != Compression::Snappy;
                assert!(
                    read.is_err() || !has_end && back.len() < content.len(),
                    "{form:?}"
                );
            }
        }
    }

    /// As `cat` joins them, and as programs write that compress with several threads.
    #[test]
    fn several_parts_are_read_as_one() {
        let parts = [&b"one "[..], b"", &[7; 300_000], b" end"];
        for form in Compression::value_variants() {
            let mut encoded = Vec::new();
            for mut part in parts {
                form.encode(None, &mut part, &mut encoded).unwrap();
            }
            let mut back = Vec::new();
            decoded(encoded.as_slice())
                .unwrap()
                .read_to_end(&mut back)
                .unwrap();
            assert!(back == parts.concat(), "{form:?}");
        }
    }

    /// The block of lz4 that is cut away leaves whole blocks.
    #[test]
    fn lz4_without_its_end_mark_is_cut() {
        let mut encoded = Vec::new();
        Compression::Lz4
            .encode(None, &mut &[7; 300_000][..], &mut encoded)
            .unwrap();
        let end_mark = [0; 4];
        assert!(encoded.ends_with(&end_mark));
        encoded.truncate(encoded.len() - end_mark.len());
        let read = decoded(encoded.as_slice()).unwrap().read_to_end(&mut Vec::new());
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_cannot_be_read_to_its_end_never_looks_whole() {
        /// Bytes, and then a damaged disk.
        struct Failing<'a>(&'a [u8]);
        impl Read for Failing<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                match self.0.read(buffer)? {
                    0 => Err(io::Error::other("damaged")),
                    length => Ok(length),
                }
            }
        }
        let content: Vec<u8> = (0..700_000_u32).map(|n| (n / 7 % 251) as u8).collect();
        for form in Compression::value_variants() {
            for length in [0, 100, content.len()] {
                let mut encoded = Vec::new();
                let error = form.encode(None, &mut Failing(&content[..length]), &mut encoded);
                assert_eq!(error.unwrap_err().to_string(), "damaged", "{form:?}");
                let mut back = Vec::new();
                let read = decoded(encoded.as_slice()).unwrap().read_to_end(&mut back);
                // Snappy has no end mark, and nothing at all is of no form.
                let has_end = *form != Compression::Snappy && !encoded.is_empty();
                assert!(read.is_err() || !has_end, "{form:?} {length}");
            }
        }
    }

    #[test]
    fn what_is_not_compressed_stays_as_it_is() {
        for content in ["", "1", "1\t0/3000000\tno recovery target\n"] {
            let mut back = String::new();
            decoded(content.as_bytes())
                .unwrap()
                .read_to_string(&mut back)
                .unwrap();
            assert_eq!(back, content);
        }
    }
}
