//! Answers to the kernel. Each handler of a request begins with [`Adapter::begin`] and ends with exactly one answer, so
//! this is the one place where requests and their errors are counted.

use std::ops::{Deref, DerefMut};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};

use super::Adapter;
use crate::counters::{BegunRequest, RequestKind};

/// What every reply of fuser can be answered with.
pub(super) trait Refuse {
    /// Answers with an error.
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse! {
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr
}

/// A reply that counts its request when it is sent.
#[derive(Debug)]
pub(super) struct Counted<'a, R> {
    // The field order matters: where nothing was sent, the reply sends EIO when it is dropped, and then the request ends.
    reply: R,
    request: BegunRequest<'a>,
}

impl Adapter {
    /// Begins a request that is answered with `reply`.
    pub(super) fn begin<R>(&self, kind: RequestKind, reply: R) -> Counted<'_, R> {
        Counted::new(self.context.counters().begin(kind), reply)
    }
}

impl<'a, R> Counted<'a, R> {
    fn new(mut request: BegunRequest<'a>, reply: R) -> Self {
        // This is what fuser answers when nothing is sent.
        request.fails(libc::EIO);
        Self { reply, request }
    }

    /// Sends an answer that is no error.
    pub(super) fn send(self, send: impl FnOnce(R)) {
        let Self { reply, mut request } = self;
        send(reply);
        request.succeeds();
    }
}

impl<R: Refuse> Counted<'_, R> {
    /// Answers with an error.
    pub(super) fn error(self, errno: Errno) {
        let Self { reply, mut request } = self;
        request.fails(errno.code());
        reply.refuse(errno);
    }

    /// Answers with what `send` makes of a success, or with the error.
    pub(super) fn finish<T>(self, outcome: Result<T, Errno>, send: impl FnOnce(R, T)) {
        match outcome {
            Ok(value) => self.send(|reply| send(reply, value)),
            Err(errno) => self.error(errno),
        }
    }
}

/// What a reply can do before it is sent: collect entries, register a file with the kernel.
impl<R> Deref for Counted<'_, R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.reply
    }
}

impl<R> DerefMut for Counted<'_, R> {
    fn deref_mut(&mut self) -> &mut R {
        &mut self.reply
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::counters::RequestCounters;

    #[derive(Debug, PartialEq)]
    enum Sent {
        Answer(u32),
        Error(i32),
    }

    struct Reply<'a>(&'a RefCell<Vec<Sent>>);

    impl Refuse for Reply<'_> {
        fn refuse(self, errno: Errno) {
            self.0.borrow_mut().push(Sent::Error(errno.code()));
        }
    }

    #[test]
    fn each_answer_counts_once() {
        let counters = RequestCounters::default();
        let sent = RefCell::default();
        let begin = || Counted::new(counters.begin(RequestKind::Read), Reply(&sent));
        let answer = |reply: Reply<'_>, number| reply.0.borrow_mut().push(Sent::Answer(number));
        begin().finish(Ok(7), answer);
        begin().send(|reply| answer(reply, 8));
        begin().finish(Err(Errno::ENOENT), answer);
        begin().error(Errno::EROFS);
        let (no_entry, read_only) = (Sent::Error(libc::ENOENT), Sent::Error(libc::EROFS));
        assert_eq!(
            *sent.borrow(),
            [Sent::Answer(7), Sent::Answer(8), no_entry, read_only]
        );
        let counts = counters.snapshot();
        assert_eq!(counts.of(RequestKind::Read).count, 4);
        assert_eq!(counts.errors.iter().map(|error| error.count).sum::<u64>(), 2);
        assert_eq!((counts.errors_with(2), counts.errors_with(30)), (1, 1));
    }

    #[test]
    fn a_request_that_is_dropped_fails_with_eio() {
        let counters = RequestCounters::default();
        drop(Counted::new(counters.begin(RequestKind::Read), ()));
        assert_eq!(counters.snapshot().errors_with(5), 1);
    }
}
