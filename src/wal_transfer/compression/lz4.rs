//! Decodes frames of lz4, one after the other. The decoder of a single frame stops at its end mark, and where its source ends,
//! with or without one: this tells the two apart.

use std::io::{self, BufRead, Read};

use lz4_flex::frame::FrameDecoder;

/// Decodes all frames. An end within a frame is an error.
pub(super) struct Lz4Reader<R: Read> {
    decoder: FrameDecoder<Watched<R>>,
    is_within_frame: bool,
}

/// Notes when it was asked for bytes that it did not have.
struct Watched<R> {
    source: R,
    has_ended: bool,
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.source.read(buffer)?;
        self.has_ended |= count == 0 && !buffer.is_empty();
        Ok(count)
    }
}

impl<R: BufRead> Lz4Reader<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            decoder: FrameDecoder::new(Watched {
                source,
                has_ended: false,
            }),
            is_within_frame: true,
        }
    }
}

impl<R: BufRead> Read for Lz4Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.is_within_frame {
                if self.decoder.get_mut().source.fill_buf()?.is_empty() {
                    return Ok(0);
                }
                self.is_within_frame = true;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            if self.decoder.get_ref().has_ended {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // Only the end mark is left without a look for more.
            self.is_within_frame = false;
        }
    }
}
