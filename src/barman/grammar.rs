//! A command line of Barman, translated into one of ours.
//!
//! A link named `barman` to this program takes Barman's words. Most are ours, too; what is left is the meaning of `-v`,
//! other names of commands, and commands for which there is nothing to do here.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use crate::output::{Form, Format};
use crate::versions;

/// The name of a link under which this program is Barman.
const NAME: &str = "barman";
/// The names of links under which it is one of Barman's clients.
const WAL_ARCHIVE: &str = "barman-wal-archive";
const WAL_RESTORE: &str = "barman-wal-restore";
/// The hidden command for what needs nothing to be done.
pub(crate) const NOTHING_TO_DO: &str = "nothing-to-do";
/// Options before a command that have a value as the next word.
const WITH_VALUE: &[&str] = &["-c", "--config", "-f", "--format", "--log-level", "--color"];
/// Barman's commands that have another name here.
const RENAMED: &[(&str, &str)] = &[("verify-backup", "verify")];
/// Barman's commands for work that is done by itself here, or that nothing needs.
const NEEDLESS: &[&str] = &[
    "check-backup",
    "generate-manifest",
    "lock-directory-cleanup",
    "rebuild-xlogdb",
];

/// Behind these, `--format` is the format of the export, unless it has a value of the option that every command has.
const EXPORTS: &[&str] = &["export", "export-backup"];
const OUTPUT_FORMATS: &[&str] = &["json", "console"];
/// The name of the option for the format of an export.
const EXPORT_FORMAT: &str = "--as";

/// Which program was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    /// barmanfs.
    Own,
    /// barmanfs under the name `barman`.
    Barman,
    /// barmanfs under the name `barman-wal-archive`.
    WalArchive,
    /// barmanfs under the name `barman-wal-restore`.
    WalRestore,
}

impl Program {
    /// By the first word of a command line.
    pub(crate) fn called(arguments: &[OsString]) -> Self {
        let name = arguments.first().map(Path::new).and_then(Path::file_name);
        match name.and_then(OsStr::to_str) {
            Some(NAME) => Self::Barman,
            Some(WAL_ARCHIVE) => Self::WalArchive,
            Some(WAL_RESTORE) => Self::WalRestore,
            _ => Self::Own,
        }
    }

    /// The format if the command line does not ask for one.
    pub(crate) fn format(self) -> Option<Format> {
        match self {
            Self::Own | Self::WalArchive | Self::WalRestore => None,
            Self::Barman => Some(Format::Console),
        }
    }
}

/// A command line that was understood.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Words of ours.
    Words(Vec<OsString>),
    /// The version is asked for.
    Version,
}

/// Translates a command line.
pub(crate) fn translate(program: Program, mut arguments: Vec<OsString>) -> Call {
    let place = command_place(&arguments);
    let is_export = arguments
        .get(place)
        .is_some_and(|word| EXPORTS.iter().any(|name| word == name));
    if is_export {
        name_export_format(arguments.get_mut(place..).unwrap_or_default());
    }
    let before = arguments.get_mut(1..place).unwrap_or_default();
    // `-f json` or `-fjson`. Behind a command, -f belongs to that.
    for word in before.iter_mut() {
        match word.to_str() {
            Some("-f") => *word = "--format".into(),
            Some("-fjson") => *word = "--format=json".into(),
            Some("-fconsole") => *word = "--format=console".into(),
            _ => {}
        }
    }
    if program == Program::Own {
        return Call::Words(arguments);
    }
    if before.iter().any(|word| word == "-v" || word == "--version") {
        return Call::Version;
    }
    let Some(command) = arguments.get(place).and_then(|word| word.to_str()) else {
        return Call::Words(arguments);
    };
    if command == "help" {
        arguments.remove(place);
        arguments.push("--help".into());
    } else if NEEDLESS.contains(&command) {
        arguments.insert(place, NOTHING_TO_DO.into());
    } else if let Some((_, own)) = RENAMED.iter().find(|(name, _)| *name == command) {
        arguments.splice(place..=place, [OsString::from(own)]);
    }
    Call::Words(arguments)
}

/// Gives `--format` the name that it has for an export.
fn name_export_format(words: &mut [OsString]) {
    let is_output = |value: &str| OUTPUT_FORMATS.contains(&value);
    for place in 0..words.len() {
        let next = words.get(place + 1).and_then(|next| next.to_str());
        let is_of_output = next.is_some_and(is_output);
        let Some(word) = words.get_mut(place) else { return };
        let renamed = match word.to_str() {
            Some("--format") if !is_of_output => EXPORT_FORMAT.to_owned(),
            Some(text) => match text.strip_prefix("--format=") {
                Some(value) if !is_output(value) => format!("{EXPORT_FORMAT}={value}"),
                _ => continue,
            },
            None => continue,
        };
        *word = renamed.into();
    }
}

/// The place of the command: the first word that is neither an option nor an option's value.
fn command_place(arguments: &[OsString]) -> usize {
    let mut place = 1;
    while let Some(word) = arguments.get(place).and_then(|word| word.to_str()) {
        match word {
            option if WITH_VALUE.contains(&option) => place += 2,
            option if option.starts_with('-') => place += 1,
            _ => break,
        }
    }
    place
}

/// What the words ask to be printed, before they are parsed: wrong usage must be printed in that form, too.
pub(crate) fn form(words: &[OsString]) -> Form {
    let options: Vec<&OsString> = words.iter().take_while(|word| *word != "--").collect();
    let format = |pair: &[&OsString]| pair == ["--format", "json"];
    if options.iter().any(|word| *word == "--json") {
        Form::Json
    } else if options.windows(2).any(format) || options.iter().any(|word| *word == "--format=json") {
        Form::BarmanJson
    } else {
        Form::Text
    }
}

/// The line of `barman -v`. Programs compare its first word.
pub(crate) fn version() -> String {
    format!(
        "{} (compatible) barmanfs {}",
        versions::BARMAN,
        env!("CARGO_PKG_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn translated(line: &str) -> String {
        let arguments = words(line);
        match translate(Program::called(&arguments), arguments) {
            Call::Words(words) => words.join(OsStr::new(" ")).into_string().unwrap(),
            Call::Version => version(),
        }
    }

    #[test]
    fn barmans_words_become_ours() {
        for (line, own) in [
            ("barman -q cron", "barman -q cron"),
            (
                "/usr/bin/barman -c a.conf -f json check main",
                "/usr/bin/barman -c a.conf --format json check main",
            ),
            ("barman help backup", "barman backup --help"),
            ("barman help", "barman --help"),
            (
                "barman -q check-backup main",
                "barman -q nothing-to-do check-backup main",
            ),
            ("barman verify-backup main latest", "barman verify main latest"),
            ("barman -d", "barman -d"),
        ] {
            assert_eq!(translated(line), own);
        }
        assert!(translated("barman -c a.conf -v").starts_with("3.19.1 "));
    }

    #[test]
    fn an_export_has_a_format_of_its_own() {
        for (line, own) in [
            (
                "barmanfs export main latest a --format tar",
                "barmanfs export main latest a --as tar",
            ),
            (
                "barmanfs -q export m l a --format=plain",
                "barmanfs -q export m l a --as=plain",
            ),
            (
                "barmanfs export m l a --format json",
                "barmanfs export m l a --format json",
            ),
            (
                "barman -f json export-backup m l a",
                "barman --format json export-backup m l a",
            ),
            ("barmanfs stats --format tar", "barmanfs stats --format tar"),
        ] {
            assert_eq!(translated(line), own);
        }
    }

    #[test]
    fn our_own_words_stay() {
        for line in [
            "barmanfs -v backup main -v",
            "barmanfs verify-backup",
            "barmanfs mount /mnt -f",
        ] {
            assert_eq!(translated(line), line);
        }
        assert_eq!(
            translated("barmanfs -f json list-servers"),
            "barmanfs --format json list-servers"
        );
    }

    #[test]
    fn the_form_is_known_before_parsing() {
        for (line, expected) in [
            ("barmanfs list-backups --json", Form::Json),
            ("barman --format json nonsense", Form::BarmanJson),
            ("barman --format=json nonsense", Form::BarmanJson),
            ("barman --format console check main", Form::Text),
            ("barmanfs clone start main a -- --json", Form::Text),
        ] {
            assert_eq!(form(&words(line)), expected, "{line}");
        }
    }
}
