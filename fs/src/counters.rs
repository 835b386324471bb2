//! The requests of the kernel that one mount has answered, in numbers: how many of each kind, how long they took, and
//! which errors they got.
//!
//! Counting a request costs two readings of the clock and two additions, an error one more: no lock, no allocation.
//! What the requests read from the repository is counted there ([`barmanfs_store::counters`]).

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use barmanfs_store::{Latencies, LatencyCounts};
use serde::Serialize;

mod totals;

pub use totals::{ErrorTotals, MountCounters, RequestTotals};

/// The highest error number of Linux, EHWPOISON.
const MAX_ERRNO: usize = 133;

/// Errors have a place each by their number. The last place is for all higher numbers, which do not occur.
const ERRORS: usize = MAX_ERRNO + 2;

/// Declares the kinds, so that no list of them can miss one.
macro_rules! request_kinds {
    ($($kind:ident $name:literal $what:literal,)*) => {
        /// A kind of request that a mount answers. All other kinds fail with ENOSYS and do not count.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
        pub enum RequestKind {
            $(#[doc = $what] #[serde(rename = $name)] $kind,)*
        }

        impl RequestKind {
            /// All kinds, each at its own number.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name of the request in FUSE, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

request_kinds! {
    Lookup "lookup" "Find a name in a directory.",
    Forget "forget" "The kernel no longer knows an inode. It waits for no answer.",
    Getattr "getattr" "Read attributes.",
    Setattr "setattr" "Change attributes.",
    Readlink "readlink" "Read a symbolic link.",
    Mknod "mknod" "Make a file or a socket.",
    Mkdir "mkdir" "Make a directory, or a clone.",
    Unlink "unlink" "Remove a file.",
    Rmdir "rmdir" "Remove a directory, or a clone.",
    Symlink "symlink" "Make a symbolic link.",
    Rename "rename" "Rename a file.",
    Link "link" "Make a hard link.",
    Create "create" "Make and open a file.",
    Open "open" "Open a file.",
    Read "read" "Read from a file.",
    Write "write" "Write to a file.",
    Fsync "fsync" "Make a file durable.",
    Fsyncdir "fsyncdir" "Make a directory durable.",
    Fallocate "fallocate" "Allocate or free a part of a file.",
    Lseek "lseek" "Find data or a hole.",
    Release "release" "Close a file.",
    Opendir "opendir" "Open a directory.",
    Readdir "readdir" "List names.",
    Readdirplus "readdirplus" "List names with attributes.",
    Releasedir "releasedir" "Close a directory.",
    Statfs "statfs" "Read the space of the file system.",
    Getxattr "getxattr" "Read an extended attribute.",
    Listxattr "listxattr" "List extended attributes.",
}

const KINDS: usize = RequestKind::ALL.len();

/// The counters of one mount.
#[derive(Debug)]
pub struct RequestCounters {
    latencies: [Latencies; KINDS],
    bytes_read: AtomicU64,
    errors: [AtomicU64; ERRORS],
}

/// The numbers of [`RequestCounters`] at one moment, all since the mount began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestCounts {
    /// The answered requests, for each of [`RequestKind::ALL`].
    pub requests: Vec<KindCounts>,
    /// The answers that were an error, for each error number that occurred, in ascending order. A name that does not
    /// exist is an error only where the kernel may not remember that.
    pub errors: Vec<ErrorCounts>,
    /// Bytes that were sent as answers to reads, or before the kernel asked for them.
    pub bytes_read: u64,
}

/// The requests of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct KindCounts {
    /// The kind.
    pub kind: RequestKind,
    /// Their number and latencies, from when this process has read the request to when the answer is sent.
    pub latency: LatencyCounts,
}

/// The answers with one error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ErrorCounts {
    /// The number, as in `errno.h`; `None` for numbers that Linux does not have.
    pub errno: Option<u32>,
    /// How many answers had it.
    pub count: u64,
}

impl Default for RequestCounters {
    fn default() -> Self {
        Self {
            latencies: std::array::from_fn(|_| Latencies::default()),
            bytes_read: AtomicU64::new(0),
            errors: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }
}

impl RequestCounters {
    /// Begins a request. It counts when the result is dropped.
    pub(crate) fn begin(&self, kind: RequestKind) -> BegunRequest<'_> {
        BegunRequest {
            counters: self,
            kind,
            began: Instant::now(),
            errno: None,
        }
    }

    /// Counts bytes that are sent as an answer to a read, or as a small file that was opened.
    pub(crate) fn sends(&self, bytes: usize) {
        self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The numbers at this moment.
    pub fn snapshot(&self) -> RequestCounts {
        let kinds = RequestKind::ALL.iter().zip(&self.latencies);
        let requests = kinds.map(|(&kind, latencies)| KindCounts {
            kind,
            latency: latencies.snapshot(),
        });
        let errors = self.errors.iter().enumerate().map(|(place, count)| ErrorCounts {
            errno: (place <= MAX_ERRNO).then_some(place as u32),
            count: count.load(Ordering::Relaxed),
        });
        RequestCounts {
            requests: requests.collect(),
            errors: errors.filter(|error| error.count > 0).collect(),
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
        }
    }
}

/// A request that is not answered yet.
#[derive(Debug)]
pub(crate) struct BegunRequest<'a> {
    counters: &'a RequestCounters,
    kind: RequestKind,
    began: Instant,
    errno: Option<i32>,
}

impl BegunRequest<'_> {
    /// The answer is an error with this number.
    pub(crate) fn fails(&mut self, errno: i32) {
        self.errno = Some(errno);
    }

    /// The answer is no error.
    pub(crate) fn succeeds(&mut self) {
        self.errno = None;
    }
}

impl Drop for BegunRequest<'_> {
    fn drop(&mut self) {
        self.counters.latencies[self.kind as usize].add(self.began.elapsed());
        if let Some(errno) = self.errno {
            let place = usize::try_from(errno).unwrap_or(usize::MAX).min(ERRORS - 1);
            self.counters.errors[place].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl RequestCounts {
    /// The requests of one kind.
    pub fn of(&self, kind: RequestKind) -> LatencyCounts {
        let found = self.requests.iter().find(|counts| counts.kind == kind);
        found.map(|counts| counts.latency).unwrap_or_default()
    }

    /// How many answers had this error number.
    pub fn errors_with(&self, errno: u32) -> u64 {
        let found = self.errors.iter().find(|error| error.errno == Some(errno));
        found.map_or(0, |error| error.count)
    }
}

/// One line for the log, with what has occurred.
impl fmt::Display for RequestCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total: u64 = self.requests.iter().map(|counts| counts.latency.count).sum();
        write!(f, "{total} requests")?;
        for KindCounts { kind, latency } in &self.requests {
            if latency.count > 0 {
                let mean_us = latency.mean().as_micros();
                write!(f, ", {} {} ({mean_us} us on average)", latency.count, kind.name())?;
            }
        }
        for ErrorCounts { errno, count } in &self.errors {
            match errno {
                Some(errno) => write!(f, ", {count} with error {errno}")?,
                None => write!(f, ", {count} with another error")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_place_of_its_own() {
        let counters = RequestCounters::default();
        for (place, &kind) in RequestKind::ALL.iter().enumerate() {
            assert_eq!(kind as usize, place);
            for _ in 0..=place {
                drop(counters.begin(kind));
            }
        }
        let counts = counters.snapshot();
        for (place, &kind) in RequestKind::ALL.iter().enumerate() {
            assert_eq!(counts.of(kind).count, place as u64 + 1, "{kind:?}");
            assert_eq!(format!("{kind:?}").to_lowercase(), kind.name());
        }
        assert_eq!(counts.errors, []);
    }

    #[test]
    fn errors_count_by_their_number() {
        let counters = RequestCounters::default();
        for errno in [libc::ENOENT, libc::EIO, libc::ENOENT, 0, 133, 134, 4095, -1] {
            counters.begin(RequestKind::Read).fails(errno);
        }
        let mut good_at_last = counters.begin(RequestKind::Read);
        good_at_last.fails(libc::EIO);
        good_at_last.succeeds();
        drop(good_at_last);
        let counts = counters.snapshot();
        assert_eq!(counts.of(RequestKind::Read).count, 9, "an error is an answer");
        let errors: Vec<_> = counts
            .errors
            .iter()
            .map(|error| (error.errno, error.count))
            .collect();
        let known = [(0, 1), (2, 2), (5, 1), (133, 1)].map(|(errno, count)| (Some(errno), count));
        assert_eq!(errors, [known.as_slice(), &[(None, 3)]].concat());
        assert_eq!((counts.errors_with(2), counts.errors_with(13)), (2, 0));
    }

    #[test]
    fn a_request_takes_until_it_is_answered() {
        let counters = RequestCounters::default();
        let request = counters.begin(RequestKind::Write);
        let waited = std::time::Duration::from_millis(3);
        std::thread::sleep(waited);
        assert_eq!(counters.snapshot().of(RequestKind::Write).count, 0);
        drop(request);
        let latency = counters.snapshot().of(RequestKind::Write);
        assert!(latency.count == 1 && latency.mean() >= waited, "{latency:?}");
    }

    #[test]
    fn the_line_names_what_occurred() {
        let kind = |kind, count, sum_ns| {
            let latency = LatencyCounts {
                count,
                sum_ns,
                ..LatencyCounts::default()
            };
            KindCounts { kind, latency }
        };
        let error = |errno, count| ErrorCounts { errno, count };
        let counts = RequestCounts {
            requests: vec![
                kind(RequestKind::Lookup, 2, 5_000),
                kind(RequestKind::Open, 0, 0),
                kind(RequestKind::Read, 1, 7_900),
            ],
            errors: vec![error(Some(2), 3), error(None, 1)],
            bytes_read: 8192,
        };
        assert_eq!(
            counts.to_string(),
            "3 requests, 2 lookup (2 us on average), 1 read (7 us on average), 3 with error 2, 1 with another error"
        );
        assert_eq!(RequestCounters::default().snapshot().to_string(), "0 requests");
        let json = serde_json::to_value(&counts).unwrap();
        assert_eq!(json["requests"][0]["kind"], "lookup");
        assert_eq!(json["requests"][0]["latency"]["count"], 2);
        assert_eq!(
            json["errors"],
            serde_json::json!([{"errno": 2, "count": 3}, {"errno": null, "count": 1}])
        );
    }
}
