//! The command line of `barmanfs key` and `barmanfs encrypt`, and of the encryption in `barmanfs init`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::JsonOption;

/// Ends `barmanfs key --help`.
pub(super) const KEY_HELP: &str = "\
Packs of an encrypted repository are sealed by a key, which is wrapped for each recipient in a file of its own, keys/ID/N.age. These
are ordinary files of the tool age: who has a recipient's secret key gets at the key with age alone. Who has lost all of them has
lost the repository. 'age-keygen -o FILE' makes a key. key_file, key_command and passphrase_file in [barmanfs] say what this host
opens it with.

Examples:
  barmanfs key init
  barmanfs key add --recipient age1...
  barmanfs key list
  barmanfs key check";

/// Ends `barmanfs encrypt --help`.
pub(super) const ENCRYPT_HELP: &str = "\
For a repository that was plain before 'barmanfs key init'. Backups and archiving go on meanwhile; it can be ended at any time, and
goes on when it is run again. Start what runs all the time again before: it opened the repository without the key.

Examples:
  barmanfs key init && barmanfs encrypt
  barmanfs encrypt --json";

/// `key`
#[derive(Debug, Args)]
#[command(disable_help_subcommand = true)]
pub(crate) struct KeyArgs {
    #[command(subcommand)]
    pub(crate) command: KeyCommand,
}

/// What to do with the keys.
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Seal what comes into the repository from now on
    #[command(after_help = "\
Without a recipient, the ones are taken that belong to key_file, key_command or passphrase_file.

Examples:
  barmanfs key init
  barmanfs key init --recipient age1... --recipients-file /etc/barmanfs.recipients")]
    Init(RecipientArgs),

    /// Let one more recipient open the repository
    #[command(after_help = "\
Examples:
  barmanfs key add --recipient age1...
  barmanfs key add --passphrase-file /root/passphrase")]
    Add(RecipientArgs),

    /// Remove a recipient. Who could open the repository once may have kept the key
    #[command(after_help = "\
What was sealed before stays readable for who kept the key, or a copy of keys/: 'barmanfs key rotate' makes a new key for what
comes from now on.

Examples:
  barmanfs key remove age1...
  barmanfs key remove 0123456789abcdef0123456789abcdef:2")]
    Remove(RemoveArgs),

    /// List the keys, and for whom they are wrapped. Needs no key
    #[command(after_help = "Examples:\n  barmanfs key list\n  barmanfs key list --json")]
    List(JsonOption),

    /// Make a new key for what comes from now on, for the same recipients
    #[command(after_help = "\
The keys before stay: what they seal is read with them. Start what runs all the time again afterwards.

Examples:
  barmanfs key rotate
  barmanfs key rotate --passphrase-file /root/passphrase")]
    Rotate(RotateArgs),

    /// Say which keys this host can open
    #[command(after_help = "Examples:\n  barmanfs key check\n  barmanfs key check --json")]
    Check(JsonOption),
}

/// For whom a key is wrapped.
#[derive(Debug, Args)]
pub(crate) struct RecipientArgs {
    /// Who has the secret key that belongs to this public one
    // Not parsed here: a secret key that is given by mistake would be in the message.
    #[arg(long = "recipient", value_name = "AGE1...")]
    pub(crate) recipients: Vec<String>,
    /// Those in a file, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) recipients_file: Option<PathBuf>,
    /// Who knows the passphrase in the first line of a file
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

/// `key remove`
#[derive(Debug, Args)]
pub(crate) struct RemoveArgs {
    /// The recipient, in all keys, or KEY:NUMBER for one file
    #[arg(value_name = "RECIPIENT")]
    pub(crate) which: String,
}

/// `key rotate`
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    /// The passphrase, if a recipient is one
    #[arg(long, value_name = "FILE")]
    pub(crate) passphrase_file: Option<PathBuf>,
}
