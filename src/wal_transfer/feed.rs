//! Several WAL files over one connection: the login, a new process and the opening of a repository are paid for once.
//!
//! `get-wal --feed` greets, and then reads names, one in a line. It answers each with pieces: a kind, a length, and bytes.
//! The content comes in blocks, compressed, and an answer that is cut off has no end, so a part of a file never counts as one.
//! The bytes are checked where they are read, and ssh lets none of them change on the way.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use barmanfs_pg::wal_name::WalName;
use rustix::event::PollFlags;
use zstd_safe::{CCtx, DCtx};

use super::fetch::Fetching;
use super::remote::{self, SSH_FAILED};
use super::{LARGEST_BYTES, check};
use crate::error::Error;
use crate::readiness::is_ready;

/// The first line of one that understands this.
const GREETING: &[u8] = b"barmanfs feed 1\n";

/// Bytes of a file that are compressed together.
const BLOCK_BYTES: usize = 1 << 20;

/// A compressed block is not much longer.
const MAX_PIECE_BYTES: usize = BLOCK_BYTES + (64 << 10);

/// WAL is compressed as quickly as possible.
const LEVEL: i32 = 1;

/// A line has a name of WAL.
const MAX_LINE_BYTES: usize = 64;

/// How long the next name may take: longer than a client lives that nobody asks.
const NAME_WITHIN: Duration = Duration::from_secs(120);

/// How long the next piece may take. A damaged repository, or one that is being completed, may need some time.
const PIECE_WITHIN: Duration = Duration::from_secs(60);

/// How long one that does not understand this may take to end.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// How often to look whether it has.
const LOOKED_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// What a piece is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// A block of the content.
    Plain,
    /// The same, compressed.
    Compressed,
    /// All has come.
    End,
    /// There is certainly no such file.
    Absent,
    /// Why it cannot be given.
    Failed,
}

impl Piece {
    const ALL: [Self; 5] = [
        Self::Plain,
        Self::Compressed,
        Self::End,
        Self::Absent,
        Self::Failed,
    ];

    fn byte(self) -> u8 {
        match self {
            Self::Plain => b'P',
            Self::Compressed => b'Z',
            Self::End => b'E',
            Self::Absent => b'A',
            Self::Failed => b'F',
        }
    }

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|piece| piece.byte() == byte)
    }
}

/// Gives files until nobody asks any more. `find` is the content of a file, `None` if there certainly is none.
///
/// # Errors
/// When the connection fails. What is wrong with a file is told there.
pub(crate) fn serve(
    names: &mut (impl Read + std::os::fd::AsFd),
    to: &mut impl Write,
    mut find: impl FnMut(&WalName) -> Result<Option<Box<dyn Read>>, Error>,
) -> io::Result<()> {
    to.write_all(GREETING).and_then(|()| to.flush())?;
    let mut packer = Packer::default();
    while let Some(line) = next_line(names)? {
        let name = line.parse::<WalName>();
        let found = match &name {
            Ok(name) => find(name).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let given = match found {
            Ok(Some(content)) => packer.send(content, to)?,
            Ok(None) => {
                write_piece(to, Piece::Absent, &[])?;
                Ok(())
            }
            Err(reason) => Err(reason),
        };
        if let Err(reason) = given {
            let reason = reason.as_bytes();
            write_piece(
                to,
                Piece::Failed,
                reason.get(..reason.len().min(BLOCK_BYTES)).unwrap_or_default(),
            )?;
        }
        to.flush()?;
    }
    Ok(())
}

/// The next line; `None` at the end, and when nobody asks any more.
fn next_line(names: &mut (impl Read + std::os::fd::AsFd)) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut byte = [0];
    while is_ready(names, PollFlags::IN, NAME_WITHIN) && names.read(&mut byte)? == 1 {
        match byte {
            [b'\n'] => return Ok(Some(String::from_utf8_lossy(&line).into_owned())),
            _ if line.len() == MAX_LINE_BYTES => return Err(io::ErrorKind::InvalidData.into()),
            [byte] => line.push(byte),
        }
    }
    Ok(None)
}

fn write_piece(to: &mut impl Write, piece: Piece, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let [a, b, c, d] = length.to_be_bytes();
    to.write_all(&[piece.byte(), a, b, c, d])?;
    to.write_all(bytes)
}

fn read_piece(from: &mut impl Read) -> io::Result<(Piece, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head)?;
    let [kind, a, b, c, d] = head;
    let length = u32::from_be_bytes([a, b, c, d]) as usize;
    let piece = Piece::of(kind).filter(|_| length <= MAX_PIECE_BYTES);
    let piece = piece.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no piece of a file came"))?;
    let mut bytes = vec![0; length];
    from.read_exact(&mut bytes)?;
    Ok((piece, bytes))
}

/// Compresses blocks.
#[derive(Default)]
struct Packer {
    context: CCtx<'static>,
    block: Vec<u8>,
    packed: Vec<u8>,
}

impl Packer {
    /// Sends a content. The inner error is one of reading it.
    fn send(&mut self, mut content: impl Read, to: &mut impl Write) -> io::Result<Result<(), String>> {
        loop {
            self.block.clear();
            let limit = BLOCK_BYTES as u64;
            if let Err(error) = content.by_ref().take(limit).read_to_end(&mut self.block) {
                return Ok(Err(error.to_string()));
            }
            if self.block.is_empty() {
                write_piece(to, Piece::End, &[])?;
                return Ok(Ok(()));
            }
            self.packed.resize(zstd_safe::compress_bound(self.block.len()), 0);
            let packed = self
                .context
                .compress(self.packed.as_mut_slice(), &self.block, LEVEL)
                .ok()
                .filter(|length| *length < self.block.len());
            match packed.and_then(|length| self.packed.get(..length)) {
                Some(packed) => write_piece(to, Piece::Compressed, packed)?,
                None => write_piece(to, Piece::Plain, &self.block)?,
            }
        }
    }
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Fed {
    /// A whole file, with its size and its hash.
    File { size_bytes: u64, hash: String },
    /// The other side says that there is none.
    Absent,
}

/// A connection to one that feeds.
pub(super) struct Feed {
    ssh: Child,
    names: ChildStdin,
    from: BufReader<Limited>,
    context: DCtx<'static>,
    block: Vec<u8>,
}

/// What ssh prints, waited for no longer than a piece may take.
#[derive(Debug)]
struct Limited(ChildStdout);

impl Read for Limited {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match is_ready(&self.0, PollFlags::IN, PIECE_WITHIN) {
            true => self.0.read(into),
            false => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

impl Feed {
    /// Connects; `None` if the other side is one that cannot do this, as Barman.
    ///
    /// # Errors
    /// When ssh cannot be started, or does not reach the other side.
    pub(super) fn open(fetching: &Fetching) -> io::Result<Option<Self>> {
        let mut words = vec!["get-wal", "--feed"];
        if fetching.replay {
            words.push("--replay");
        }
        words.push(&fetching.remote.server);
        let mut command = fetching.remote.command(&words);
        let mut ssh = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(names), Some(from)) = (ssh.stdin.take(), ssh.stdout.take()) else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let mut feed = Self {
            ssh,
            names,
            from: BufReader::with_capacity(BLOCK_BYTES, Limited(from)),
            context: DCtx::create(),
            block: Vec::new(),
        };
        let mut greeting = [0; GREETING.len()];
        match feed.from.read_exact(&mut greeting) {
            Ok(()) if greeting == GREETING => Ok(Some(feed)),
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            // It has said something else, or nothing. It may live on, and wait for names: dropped, it is ended.
            _ => match ended_within(&mut feed.ssh, ENDED_WITHIN)?.map(remote::code) {
                Some(SSH_FAILED) => Err(io::ErrorKind::NotConnected.into()),
                _ => Ok(None),
            },
        }
    }

    /// Fetches a file.
    ///
    /// # Errors
    /// When the connection fails, or what came is not that file. The connection is of no use then.
    pub(super) fn fetch(&mut self, name: &WalName, path: &Path) -> io::Result<Fed> {
        writeln!(self.names, "{name}")?;
        let mut file = File::create(path)?;
        let mut hasher = blake3::Hasher::new();
        let mut size_bytes = 0;
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
        loop {
            let (piece, bytes) = read_piece(&mut self.from)?;
            let block = match piece {
                Piece::Plain => &bytes,
                Piece::Compressed => self.unpack(&bytes)?,
                Piece::Absent => return Ok(Fed::Absent),
                Piece::Failed => return Err(wrong(String::from_utf8_lossy(&bytes).into_owned())),
                Piece::End => break,
            };
            size_bytes += block.len() as u64;
            if size_bytes > LARGEST_BYTES {
                return Err(wrong("it is larger than any segment".to_owned()));
            }
            hasher.update(block);
            file.write_all(block)?;
        }
        check(name, path).map_err(wrong)?;
        Ok(Fed::File {
            size_bytes,
            hash: hasher.finalize().to_hex().to_string(),
        })
    }

    fn unpack(&mut self, packed: &[u8]) -> io::Result<&Vec<u8>> {
        self.block.resize(BLOCK_BYTES, 0);
        let length = self
            .context
            .decompress(self.block.as_mut_slice(), packed)
            .map_err(|code| io::Error::new(io::ErrorKind::InvalidData, zstd_safe::get_error_name(code)))?;
        self.block.truncate(length);
        Ok(&self.block)
    }
}

/// Waits for a process; `None` if it has not ended.
fn ended_within(child: &mut Child, within: Duration) -> io::Result<Option<ExitStatus>> {
    let since = Instant::now();
    loop {
        match child.try_wait()? {
            None if since.elapsed() < within => std::thread::sleep(LOOKED_AGAIN_AFTER),
            status => return Ok(status),
        }
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let _ends_soon = self.ssh.kill();
        let _ended = self.ssh.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_process_that_does_not_end_is_not_waited_for() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let found = ended_within(&mut child, Duration::from_millis(50)).unwrap();
        assert_eq!(found, None);
        child.kill().unwrap();
        assert!(ended_within(&mut child, ENDED_WITHIN).unwrap().is_some());
    }

    fn answers(asked: &str, content: impl Fn(&WalName) -> Result<Option<Box<dyn Read>>, Error>) -> Vec<u8> {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        ours.write_all(asked.as_bytes()).unwrap();
        ours.shutdown(std::net::Shutdown::Write).unwrap();
        let mut said = Vec::new();
        serve(&mut theirs, &mut said, content).unwrap();
        said
    }

    fn pieces(mut said: &[u8]) -> Vec<(Piece, Vec<u8>)> {
        said = said.strip_prefix(GREETING).unwrap();
        std::iter::from_fn(|| read_piece(&mut said).ok()).collect()
    }

    #[test]
    fn each_name_has_an_answer() {
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n / 1000) as u8).collect();
        let asked = "000000010000000000000001\n00000002.history\nno name\n000000010000000000000002\n";
        let said = answers(asked, |name| match name.to_string().as_str() {
            "000000010000000000000001" => Ok(Some(Box::new(io::Cursor::new(content.clone())))),
            "00000002.history" => Ok(None),
            _ => Err(Error::failed("it is damaged")),
        });
        let pieces = pieces(&said);
        let kinds: Vec<Piece> = pieces.iter().map(|(piece, _)| *piece).collect();
        use Piece::{Absent, Compressed, End, Failed};
        assert_eq!(
            kinds,
            [Compressed, Compressed, Compressed, End, Absent, Failed, Failed]
        );
        assert_eq!(pieces[6].1, b"it is damaged");
        assert!(said.len() < content.len() / 2);
    }

    #[test]
    fn what_fails_in_the_middle_has_no_end() {
        struct Failing;
        impl Read for Failing {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("damage"))
            }
        }
        let said = answers("000000010000000000000001\n", |_| {
            Ok(Some(Box::new(io::repeat(7).take(1 << 20).chain(Failing))))
        });
        let pieces = pieces(&said);
        assert!(pieces.iter().all(|(piece, _)| *piece != Piece::End));
        assert_eq!(pieces.last().unwrap(), &(Piece::Failed, b"damage".to_vec()));
    }

    #[test]
    fn hostile_pieces_are_refused() {
        for hostile in [&b"X\0\0\0\0"[..], b"P\xff\xff\xff\xff", b"P\0\0\0\x05ab", b"Z"] {
            assert!(read_piece(&mut &hostile[..]).is_err());
        }
    }
}
