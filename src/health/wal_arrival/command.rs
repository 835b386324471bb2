//! The effect of an `archive_command`, as far as its text shows it.

/// The placeholder for the path of the segment.
const PATH: &str = "%p";
/// Options of this program that are followed by a value.
const WITH_VALUE: &[&str] = &["-c", "--config", "--log-level"];

/// The kind of an `archive_command`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    /// It calls this program for the server.
    Ours,
    /// It calls this program for another server.
    OtherServer(String),
    /// It calls this program, but reports success whatever the program's exit code is.
    Unchecked,
    /// It calls this program without `%p`.
    WithoutPath,
    /// It does not call this program.
    Other,
}

/// Interprets the words of `command` as a shell would. A call in a script is not detected.
pub(super) fn read(command: &str, server: &str) -> Call {
    let words = words(command);
    let program = words
        .iter()
        .position(|word| word.rsplit('/').next().is_some_and(is_program));
    let Some(rest) = program.and_then(|at| words.get(at + 1..)) else {
        return Call::Other;
    };
    let mut arguments = Vec::new();
    let mut rest = rest.iter();
    while let Some(word) = rest.next() {
        if is_control(word) {
            break;
        }
        if WITH_VALUE.contains(&word.as_str()) {
            rest.next();
        } else if !word.starts_with('-') {
            arguments.push(word.as_str());
        }
    }
    match arguments.as_slice() {
        ["wal-archive", name, ..] if *name != server => Call::OtherServer((*name).to_owned()),
        ["wal-archive", _, path, ..] if path.contains(PATH) => match hides_failure(&words, program) {
            true => Call::Unchecked,
            false => Call::Ours,
        },
        ["wal-archive", ..] => Call::WithoutPath,
        _ => Call::Other,
    }
}

fn is_program(name: &str) -> bool {
    name == "barmanfs" || name.starts_with("barmanfs-") || name.starts_with("barmanfs.")
}

fn is_control(word: &str) -> bool {
    matches!(word, ";" | "|" | "||" | "&" | "&&")
}

/// Whether something after the call determines the exit code. What follows `&&` runs only after success.
fn hides_failure(words: &[String], program: Option<usize>) -> bool {
    let behind = words.iter().skip(program.unwrap_or_default());
    behind
        .clone()
        .any(|word| matches!(word.as_str(), "||" | "|" | "&"))
        // A semicolon at the very end separates nothing, and the end of a block does not change the exit
        // code.
        || behind
            .clone()
            .skip_while(|word| *word != ";")
            .filter(|word| *word != ";")
            .any(|word| !matches!(word.as_str(), "fi" | "}" | "done"))
}

/// Splits into words and control operators, and removes quotes. Quoted text is never an operator.
fn words(command: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = command.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None | Some('"'), '\\') => word.get_or_insert_default().extend(rest.next()),
            // A redirection, as in `2>&1` and `&>file`.
            (None, '&') if rest.peek() == Some(&'>') || word.as_ref().is_some_and(|w| w.ends_with('>')) => {
                word.get_or_insert_default().push(c);
            }
            (None, ';' | '|' | '&' | '\n') => {
                words.extend(word.take());
                let mut operator = if c == '\n' { ';' } else { c }.to_string();
                if rest.peek() == Some(&c) && c != '\n' {
                    operator.extend(rest.next());
                }
                words.push(operator);
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_this_program_for_the_server_is_recognised() {
        for ours in [
            "barmanfs wal-archive main %p",
            "/usr/local/bin/barmanfs wal-archive main %p",
            "/usr/local/bin/barmanfs -c /etc/b.conf --log-level debug -q wal-archive main '%p'",
            "test -d /srv && '/opt/a b/barmanfs' wal-archive main \"/data/%p\" && date > /tmp/last",
            "PGPORT=1 nice -n 5 barmanfs wal-archive main %p 2>>/tmp/log;",
            "barmanfs wal-archive main %p >/tmp/log 2>&1",
            "if test -d /srv; then barmanfs wal-archive main %p; fi",
        ] {
            assert_eq!(read(ours, "main"), Call::Ours, "{ours}");
        }
    }

    #[test]
    fn commands_that_lose_wal_are_distinguished() {
        for (command, expected) in [
            ("/bin/true", Call::Other),
            ("cp %p /archive/%f", Call::Other),
            ("echo barmanfs", Call::Other),
            ("barmanfs get-wal main %f %p", Call::Other),
            (
                "barmanfs wal-archive other %p",
                Call::OtherServer("other".to_owned()),
            ),
            ("barmanfs wal-archive main %p || true", Call::Unchecked),
            ("barmanfs wal-archive main %p; exit 0", Call::Unchecked),
            ("barmanfs wal-archive main %p | logger", Call::Unchecked),
            ("barmanfs wal-archive main %p &", Call::Unchecked),
            ("barmanfs wal-archive main", Call::WithoutPath),
            ("barmanfs wal-archive main %f", Call::WithoutPath),
        ] {
            assert_eq!(read(command, "main"), expected, "{command}");
        }
    }
}
