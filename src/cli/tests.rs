use super::*;
use insta::assert_snapshot;
use std::collections::BTreeSet;

#[test]
fn the_definition_is_consistent() {
    command().debug_assert();
}

#[test]
fn every_command_is_in_one_group_and_has_examples() {
    let command = command();
    let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| *names).copied().collect();
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let names: BTreeSet<&str> = shown.map(clap::Command::get_name).collect();
    assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), names);
    assert_eq!(grouped.len(), names.len());
    for sub in with_nested(&command) {
        if sub.is_hide_set() {
            continue;
        }
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        assert!(
            after.contains("Examples:\n"),
            "{} has no examples",
            sub.get_name()
        );
    }
}

/// All commands, including nested ones.
fn with_nested(command: &clap::Command) -> Vec<&clap::Command> {
    let mut all: Vec<&clap::Command> = command.get_subcommands().collect();
    all.extend(command.get_subcommands().flat_map(clap::Command::get_subcommands));
    all
}

/// Splits a line as a shell does: text between quotes is one word.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (nth, part) in line.split('\'').enumerate() {
        match nth % 2 {
            0 => words.extend(part.split_whitespace().map(str::to_owned)),
            _ => words.push(part.to_owned()),
        }
    }
    words
}

#[test]
fn every_example_parses() {
    for sub in with_nested(&command()) {
        let after = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
        let examples = after.split("Examples:\n").nth(1).unwrap_or_default();
        let examples = examples.replace("\\\n", "");
        for line in examples.lines() {
            let line = line.split(" > ").next().unwrap_or_default();
            // The value of a setting is quoted as a whole.
            let line = line
                .split_once("= '")
                .map_or(line, |(_, command)| command.trim_end_matches('\''));
            for part in line.split(" && ") {
                let words = words(part)
                    .into_iter()
                    .skip_while(|word| word.rsplit('/').next() != Some("barmanfs"));
                let parsed = command().try_get_matches_from(words);
                assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
            }
        }
    }
}

#[test]
fn every_command_for_users_of_wal_g_parses() {
    let page = include_str!("../../docs/walg.md");
    let commands: Vec<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|text| text.starts_with("barmanfs ") && text.contains(" main"))
        .collect();
    assert!(commands.len() >= 30, "{commands:?}");
    for line in commands {
        let line = line.replace('\n', " ");
        // A number stands for N.
        let words = words(&line)
            .into_iter()
            .map(|word| if word == "N" { "3".to_owned() } else { word });
        let parsed = command().try_get_matches_from(words);
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn the_help_is_grouped() {
    assert_snapshot!(command().render_help(), @"
    PostgreSQL backups and WAL, deduplicated, and shown as directories

    Usage: barmanfs [OPTIONS] <COMMAND>

    Back up and archive:
      backup              Take a base backup over the replication protocol
      receive-wal         Receive WAL as a stream while the server writes it
      wal-archive         Store one WAL file; for archive_command
      put-wal             Store WAL files that another host sends
      archive-wal         Archive the WAL files that were put into a directory
      get-wal             Fetch one WAL file; for restore_command
      wal-restore         Fetch one WAL file from another host; for restore_command
      switch-wal          Make a server close the WAL segment that it is writing

    Inspect:
      list-servers        List the configured servers
      show-servers        Show every key of a server with its value, and what the server says
      status              Show how a server stands, what is recoverable, and what would be lost with it
      replication-status  Show what receives a server's WAL as a stream, and how far behind it is
      list-processes      List the processes that work on a server now
      list-backups        List the backups of a server, or of all
      show-backup         Show all that is known about one backup
      list-files          List the files of a backup
      timeline            Draw a server's timelines, backups and WAL, and what cannot be recovered
      explain             Explain how a point in time would be recovered, or why it cannot be
      stats               Show sizes, and what deduplication and compression save

    Use a backup:
      restore             Write a data directory that recovers to any point in time
      catchup             Update a standby that fell behind, or make one of a failed primary
      patroni             Make members of a Patroni cluster; for its configuration
      mount               Show all backups and WAL as directories
      umount              Unmount a mounted directory
      clone               Make writable copies of backups at once, and run PostgreSQL on them

    Move in and out:
      import              Take over backups and WAL from other tools
      export              Write a backup in the format of another program
      copy                Copy the repository to an object store, or back
      sync                Take over what the primary of a passive server has
      sync-backup         Take over one backup of the primary, whatever the policy says
      sync-wals           Take over the WAL of the primary alone
      sync-info           Show what is known of the last sync

    Check:
      check               Check the server's settings, its archiving and the repository
      check-wal-archive   Check that nothing is archived of a new server
      verify              Read everything back and check it against its checksums
      metrics             Print what the checks have counted, for Prometheus
      diagnose            Print all that is known of this site as JSON, for support; passwords are left out
      config              Show every key of the configuration and what it does

    Maintain:
      cron                Do what is due; once a minute, from cron or a timer
      init                Make a repository, and show what to set on a server
      retention           Show which backups and WAL the policies keep, and what is deleted next
      keep                Keep a backup whatever the policy says
      delete              Delete backups; 'sweep' then frees the space nothing else uses
      sweep               Free the space of deleted and failed backups
      key                 Make, list and change the keys of an encrypted repository
      encrypt             Seal what is still plain in an encrypted repository
      quarantine          Show WAL files that were put aside, accept them or delete them
      rebuild-catalog     Rebuild catalog.sqlite from the packs
      index-wal           Read archived WAL again that an earlier release could not read
      history             Show where a timeline has two histories, and decide which one counts
      config-switch       Switch a server to a model, or back
      config-update       Change settings of servers and models
      terminate-process   End a process that works on a server
      version             Show the version

    Options of every command:
      -c, --config <FILE>      Configuration to read [default: ~/.barmanfs.conf, /etc/barmanfs.conf, or
                               Barman's]
      -q, --quiet              Only report problems; no progress
      -v, --verbose...         Report more; twice for debugging
          --log-level <LEVEL>  error, warning, info, debug or trace; wins over the configuration's
                               log_level
          --format <FORMAT>    Print as Barman does, console or json; before the command, -f is the same
          --color <WHEN>       When to use colours: never, always or auto [default: auto]
      -h, --help               Print help
      -V, --version            Print version

    Recovery needs no command:
      barmanfs mount /mnt/backups
      cp -a /mnt/backups/main/latest $PGDATA && pg_ctl start
    and there is one: barmanfs restore main auto $PGDATA

    Exit codes: 0 done, 1 failed, 2 wrong usage or configuration,
    3 done, and problems found.
    'barmanfs COMMAND --help' says more, with examples.
    ");
}

#[test]
fn barmans_option_names_are_understood() {
    let words = [
        "barmanfs",
        "backup",
        "main",
        "--immediate-checkpoint",
        "--bwlimit",
        "4000",
    ];
    assert!(command().try_get_matches_from(words).is_ok());
    let line = "barmanfs backup main -j 4 --jobs-start-batch-size 10 --jobs-start-batch-period 1 --no-retry -w \
                --keepalive-interval 60 --no-manifest --reuse-backup --incremental latest-full --name a \
                --no-immediate-checkpoint --check-timeout 30 --wait-timeout 9";
    let parsed = command().try_get_matches_from(line.split_whitespace());
    assert!(parsed.is_ok(), "{}", parsed.unwrap_err());
}
