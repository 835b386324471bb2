//! A recovery target as a user writes it: one text for the command line and for a directory's name.
//!
//! ```text
//! TARGET[,exclusive][,timeline=N|latest|current][,action=pause|promote|shutdown][,backup=ID][,self-contained]
//! TARGET: now | immediate | xid:N | name:TEXT | lsn:X/X | time:TEXT, or an LSN or a time without its word
//! ```
//! A directory's name cannot contain a slash: an LSN may be written with a dash, and `%2F` means a slash anywhere, as
//! `%2C` means a comma in a name. [`TargetSpec`]'s `Display` is the one canonical form, and is such a name.

use std::fmt::{self, Write as _};
use std::str::FromStr;

use barmanfs_pg::{Lsn, TimelineId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::names::BackupId;
use crate::recovery::time::{self, TimeTarget};

/// Longest name of a restore point in bytes, as PostgreSQL stores it (MAXFNAMELEN less the NUL at its end).
const NAME_BYTES_MAX: usize = 63;

/// Smaller transaction ids are reserved by PostgreSQL.
const FIRST_NORMAL_XID: u32 = 3;

/// How far to recover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// To the end of all WAL, including the segment that is being received.
    Now,
    /// To the end of the backup.
    Immediate,
    /// Up to the last commit at or before a time.
    Time(TimeTarget),
    /// Up to the first record at or after a position.
    Lsn(Lsn),
    /// Up to the end of a transaction.
    Xid(u32),
    /// Up to a restore point.
    Name(String),
}

/// Which timeline to recover along.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimelineChoice {
    /// The newest, as PostgreSQL finds it: it requests one history file after the other.
    #[default]
    Latest,
    /// The one the backup was taken on.
    Current,
    /// This one.
    Id(TimelineId),
}

/// What PostgreSQL does once it has reached the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It waits, open for queries.
    Pause,
    /// It begins a new timeline and takes writes.
    Promote,
    /// It shuts down.
    Shutdown,
}

impl Action {
    /// The value of `recovery_target_action`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

impl FromStr for Action {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        [Self::Pause, Self::Promote, Self::Shutdown]
            .into_iter()
            .find(|action| action.as_str() == text)
            .ok_or_else(|| TargetError::new(text, "is no action: there are pause, promote and shutdown"))
    }
}

/// What to recover to, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetSpec {
    /// How far.
    pub target: Target,
    /// Whether what is exactly at the target is recovered too: `recovery_target_inclusive`.
    pub inclusive: bool,
    /// Along which timeline.
    pub timeline: TimelineChoice,
    /// What to do at the target; none: as configured.
    pub action: Option<Action>,
    /// Whether the copy itself must contain all WAL that is needed.
    pub self_contained: bool,
    /// The backup to start from; none: the best.
    pub backup: Option<BackupId>,
}

/// A text that is not a valid target.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' {reason}")]
pub struct TargetError {
    text: String,
    reason: String,
}

impl TargetError {
    fn new(text: &str, reason: impl Into<String>) -> Self {
        Self {
            text: text.to_owned(),
            reason: reason.into(),
        }
    }
}

impl TargetSpec {
    /// The target of a copy that does `usual` at its target unless this says otherwise. Whether the end of a backup can be
    /// reached depends on it; a promotion is assumed where nothing is said.
    #[must_use]
    pub fn or_action(mut self, usual: Action) -> Self {
        if self.target == Target::Immediate && usual != Action::Promote {
            self.action.get_or_insert(usual);
        }
        self
    }
}

impl From<Target> for TargetSpec {
    /// The target with default options.
    fn from(target: Target) -> Self {
        Self {
            target,
            inclusive: true,
            timeline: TimelineChoice::Latest,
            action: None,
            self_contained: false,
            backup: None,
        }
    }
}

impl FromStr for TargetSpec {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        let parts: Vec<&str> = text.split(',').collect();
        // A time may contain commas: the options are everything after the last part that is not an option.
        let options = parts
            .iter()
            .rev()
            .take_while(|part| is_option(part.trim()))
            .count();
        let (target, options) = parts.split_at(parts.len() - options.min(parts.len() - 1));
        let mut spec = Self::from(target_of(&decoded(target.join(",").trim())?)?);
        let mut keys = Vec::new();
        for option in options {
            let option = decoded(option.trim())?;
            let key = match option.split_once('=').map_or(option.as_str(), |(key, _)| key) {
                // The two contradict each other.
                "inclusive" => "exclusive",
                key => key,
            };
            if keys.iter().any(|known| known == key) {
                return Err(TargetError::new(
                    text,
                    format!("has the option {key} more than once: name it once"),
                ));
            }
            keys.push(key.to_owned());
            spec.set(&option)?;
        }
        let has_a_limit = matches!(spec.target, Target::Time(_) | Target::Lsn(_) | Target::Xid(_));
        if !spec.inclusive && !has_a_limit {
            return Err(TargetError::new(
                text,
                "is exclusive, which means something with a time, an LSN or a transaction only",
            ));
        }
        Ok(spec)
    }
}

/// Whether this is an option, or at least meant as one.
fn is_option(part: &str) -> bool {
    matches!(part, "exclusive" | "inclusive" | "self-contained")
        || part
            .split_once('=')
            .is_some_and(|(key, _)| key.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
}

impl TargetSpec {
    fn set(&mut self, option: &str) -> Result<(), TargetError> {
        let wrong = |reason: &str| TargetError::new(option, reason);
        match option.split_once('=').unwrap_or((option, "")) {
            ("exclusive", "") => self.inclusive = false,
            ("inclusive", "") => self.inclusive = true,
            ("self-contained", "") => self.self_contained = true,
            ("timeline", "latest") => self.timeline = TimelineChoice::Latest,
            ("timeline", "current") => self.timeline = TimelineChoice::Current,
            ("timeline", number) => {
                let id = number.parse().map_err(|_| {
                    wrong("is no timeline: there are latest, current and the decimal numbers from 1")
                })?;
                self.timeline = TimelineChoice::Id(id);
            }
            ("action", action) => self.action = Some(action.parse()?),
            ("backup", id) => {
                let id = id
                    .parse()
                    .map_err(|_| wrong("names no backup: an id is like 20261120T101500"))?;
                self.backup = Some(id);
            }
            _ => {
                return Err(wrong(
                    "is no option of a target: there are exclusive, timeline=, action=, backup= and self-contained",
                ));
            }
        }
        Ok(())
    }
}

fn target_of(text: &str) -> Result<Target, TargetError> {
    let wrong = |reason: String| TargetError::new(text, reason);
    let is_no_time = |reason: String| {
        wrong(format!(
            "is no time to recover to: it {reason} (other targets: now, immediate, lsn:X/X, xid:N, name:TEXT)"
        ))
    };
    let (word, rest) = text.split_once(':').unwrap_or(("", text));
    match (word, rest) {
        ("", "now") => Ok(Target::Now),
        ("", "immediate") => Ok(Target::Immediate),
        ("xid", number) => xid(number.trim()).map_err(wrong),
        ("name", name) if (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains('\0') => {
            Ok(Target::Name(name.to_owned()))
        }
        ("name", _) => Err(wrong(format!(
            "is no restore point: a name has 1 to {NAME_BYTES_MAX} bytes"
        ))),
        ("lsn", position) => lsn(position.trim())
            .map(Target::Lsn)
            .ok_or_else(|| wrong("is no LSN: write it as lsn:16/B374D848 or lsn:16-B374D848".to_owned())),
        ("time", text) => time::parse(text).map(Target::Time).map_err(is_no_time),
        _ => match lsn(text).filter(|_| !is_year_and_month(text)) {
            Some(position) => Ok(Target::Lsn(position)),
            None => time::parse(text).map(Target::Time).map_err(is_no_time),
        },
    }
}

/// A transaction id. If it has an epoch, as from `pg_current_xact_id`, the lower half is used, as PostgreSQL does.
fn xid(number: &str) -> Result<Target, String> {
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let full: Option<u64> = digits.then(|| number.parse().ok()).flatten();
    match full.map(|full| (full & u64::from(u32::MAX)) as u32) {
        Some(xid) if xid >= FIRST_NORMAL_XID => Ok(Target::Xid(xid)),
        _ => Err(format!(
            "is no transaction: write xid:N with a decimal number from {FIRST_NORMAL_XID}"
        )),
    }
}

fn lsn(text: &str) -> Option<Lsn> {
    text.replacen('-', "/", 1).parse().ok()
}

/// `2026-11` is more likely half a date than a position 32 TB into the WAL.
fn is_year_and_month(text: &str) -> bool {
    text.split_once('-').is_some_and(|(year, month)| {
        let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        year.len() == 4 && month.len() <= 2 && digits(year) && digits(month)
    })
}

/// Decodes bytes written as `%XX`.
fn decoded(text: &str) -> Result<String, TargetError> {
    let wrong = || TargetError::new(text, "has a '%' without two hexadecimal digits; write it as %25");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2).ok_or_else(wrong)?;
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        bytes.push(u8::from_str_radix(digits.ok_or_else(wrong)?, 16).map_err(|_| wrong())?);
        rest = tail;
    }
    String::from_utf8(bytes).map_err(|_| TargetError::new(text, "is not UTF-8"))
}

impl fmt::Display for Target {
    /// The canonical form, fit for a directory's name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Now => f.write_str("now"),
            Self::Immediate => f.write_str("immediate"),
            Self::Time(time) => time.fmt(f),
            Self::Lsn(lsn) => write!(f, "lsn:{:X}-{:X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF),
            Self::Xid(xid) => write!(f, "xid:{xid}"),
            Self::Name(name) => {
                f.write_str("name:")?;
                name.chars().try_for_each(|c| write_escaped(f, c))
            }
        }
    }
}

/// Escapes characters that cannot be in a directory's name or that end the target, and blanks, because those at the
/// ends are trimmed.
fn write_escaped(f: &mut fmt::Formatter<'_>, c: char) -> fmt::Result {
    if c.is_control() || c.is_whitespace() || matches!(c, '%' | ',' | '/') {
        let mut bytes = [0; 4];
        c.encode_utf8(&mut bytes)
            .bytes()
            .try_for_each(|byte| write!(f, "%{byte:02X}"))
    } else {
        f.write_char(c)
    }
}

impl fmt::Display for TargetSpec {
    /// The canonical form, fit for a directory's name; options with default values are omitted.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)?;
        if !self.inclusive {
            f.write_str(",exclusive")?;
        }
        match self.timeline {
            TimelineChoice::Latest => {}
            TimelineChoice::Current => f.write_str(",timeline=current")?,
            TimelineChoice::Id(id) => write!(f, ",timeline={id}")?,
        }
        if let Some(action) = self.action {
            write!(f, ",action={}", action.as_str())?;
        }
        if let Some(backup) = self.backup {
            write!(f, ",backup={backup}")?;
        }
        if self.self_contained {
            f.write_str(",self-contained")?;
        }
        Ok(())
    }
}

impl Serialize for TargetSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TargetSpec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn canonical(text: &str) -> String {
        text.parse::<TargetSpec>()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
            .to_string()
    }

    #[test]
    fn every_form_has_one_canonical_one() {
        for (text, expected) in [
            ("now", "now"),
            ("immediate", "immediate"),
            ("xid:1234", "xid:1234"),
            ("xid:4294968530", "xid:1234"),
            ("name:before_migration", "name:before_migration"),
            ("name:a%2Cb %2F%25", "name:a%2Cb%20%2F%25"),
            ("name:a,b", "name:a%2Cb"),
            ("name:now", "name:now"),
            ("name:é", "name:é"),
            ("0/5A3F10C8", "lsn:0-5A3F10C8"),
            ("0-5a3f10c8", "lsn:0-5A3F10C8"),
            ("0%2F5A3F10C8", "lsn:0-5A3F10C8"),
            ("lsn:0/5A3F10C8", "lsn:0-5A3F10C8"),
            ("lsn:2026-11", "lsn:2026-11"),
            ("2026-11-20 14:03:07+00", "2026-11-20 14:03:07+00"),
            (
                "time:2026-11-20 15:03:07 Europe%2FParis",
                "2026-11-20 14:03:07+00",
            ),
            ("2026-11-20 14:03:07", "2026-11-20 14:03:07"),
            (
                "Nov 20, 2026 2:03:07 PM UTC,timeline=2",
                "2026-11-20 14:03:07+00,timeline=2",
            ),
            ("now,timeline=latest,inclusive", "now"),
            ("now,timeline=current", "now,timeline=current"),
            (
                "xid:7,self-contained, backup=20261120T101500,action=pause,exclusive",
                "xid:7,exclusive,action=pause,backup=20261120T101500,self-contained",
            ),
        ] {
            assert_eq!(canonical(text), expected, "{text}");
            assert_eq!(canonical(expected), expected);
            assert!(!expected.contains('/'));
        }
    }

    #[test]
    fn invalid_targets_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "no time"),
            (",exclusive", "no time"),
            ("before_migration", "name:TEXT"),
            ("2026-11", "no date"),
            ("yesterday", "each time it is read"),
            ("11/12/2026", "matter of taste"),
            ("xid:", "no transaction"),
            ("xid:0x10", "no transaction"),
            ("xid:2", "no transaction"),
            ("name:", "no restore point"),
            (
                "name:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
                "no restore point",
            ),
            ("lsn:5A3F10C8", "no LSN"),
            ("now,exclusive", "exclusive"),
            ("immediate,exclusive", "exclusive"),
            ("now,timeline=0", "no timeline"),
            ("now,timeline=one", "no timeline"),
            ("now,action=stop", "no action"),
            ("now,action=pause,action=shutdown", "option action more than once"),
            (
                "now,timeline=2,backup=20261120T101500,timeline=2",
                "option timeline more than once",
            ),
            ("lsn:0/1,exclusive,inclusive", "option exclusive more than once"),
            ("now,backup=latest", "names no backup"),
            ("now,speed=fast", "no option"),
            ("now%", "hexadecimal"),
            ("now%+1", "hexadecimal"),
            ("name:%FF", "UTF-8"),
        ] {
            let error = text.parse::<TargetSpec>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    fn any_target() -> impl Strategy<Value = Target> {
        prop_oneof![
            Just(Target::Now),
            Just(Target::Immediate),
            (3_u32..).prop_map(Target::Xid),
            any::<u64>().prop_map(|lsn| Target::Lsn(Lsn(lsn))),
            "\\PC{1,15}|[a-z,=/% .:]{1,40}".prop_map(Target::Name),
        ]
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_read_back(
            target in any_target(),
            exclusive: bool,
            timeline in prop_oneof![
                Just(TimelineChoice::Latest),
                Just(TimelineChoice::Current),
                (1_u32..).prop_map(|id| TimelineChoice::Id(TimelineId(id))),
            ],
            action in proptest::option::of(prop_oneof![
                Just(Action::Pause),
                Just(Action::Promote),
                Just(Action::Shutdown),
            ]),
            self_contained: bool,
            with_backup: bool,
        ) {
            let inclusive = !exclusive || !matches!(target, Target::Lsn(_) | Target::Xid(_));
            let backup = with_backup.then(|| "20261120T101500".parse().unwrap());
            let spec = TargetSpec { target, inclusive, timeline, action, self_contained, backup };
            let text = spec.to_string();
            prop_assert_eq!(text.parse(), Ok(spec));
            prop_assert!(!text.contains('/') && !text.contains('\0'));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(now|xid:|lsn:|name:|time:|0-|2026-)[0-9A-Za-z,=%/: .+-]{0,30}|\\PC*") {
            if let Ok(spec) = text.parse::<TargetSpec>() {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }
    }
}
