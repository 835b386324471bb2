//! One test's own place: a directory that is removed at the end, with a configuration, a repository and the program.

use super::PgServer;
use super::postgres::Install;
use super::process::{Run, run};
use super::template;
use super::user::{command, give, own_command};
use serde_json::Value;
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A directory of the database user, with everything that a test makes.
#[derive(Debug)]
pub(crate) struct Site {
    directory: TempDir,
}

thread_local! {
    /// Whether backups of this test read the files of the server. For all tests: `BARMANFS_TEST_METHOD=files`.
    static BY_FILES: Cell<bool> = Cell::new(std::env::var("BARMANFS_TEST_METHOD").is_ok_and(|method| method == "files"));
}

/// A key of nothing but tests, and its recipient.
pub(crate) const TEST_KEY: &str =
    "AGE-SECRET-KEY-1JVAKRC3AE92THY6K6H2J8R4U5TR0EHT2TXYKVPDQ3WG2ETVWQWKQYG9ZNZ";
pub(crate) const TEST_RECIPIENT: &str = "age1nnjuhyec9p245gp4hpr9ula770qv0k62kdm3vwg88ywnw0wk750s3pczy3";

thread_local! {
    /// Whether repositories of this test are encrypted. For all tests: `BARMANFS_TEST_ENCRYPTED=yes`.
    static ENCRYPTED: Cell<bool> = Cell::new(std::env::var_os("BARMANFS_TEST_ENCRYPTED").is_some());
}

/// Runs a test whose repositories are encrypted.
pub(crate) fn encrypted(test: impl FnOnce()) {
    let before = ENCRYPTED.replace(true);
    test();
    ENCRYPTED.set(before);
}

/// Runs a test with `backup_method = files`.
pub(crate) fn by_files(test: impl FnOnce()) {
    let before = BY_FILES.replace(true);
    test();
    BY_FILES.set(before);
}

impl Site {
    /// Without a server.
    pub(crate) fn new() -> Self {
        // Short, because of the paths of sockets below it.
        let mut directory = tempfile::Builder::new()
            .prefix("bfs")
            .tempdir()
            .expect("Cannot make a temporary directory");
        directory.disable_cleanup(std::env::var_os("BARMANFS_TEST_KEEP").is_some());
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))
            .expect("Cannot set permissions");
        give(directory.path());
        let site = Self { directory };
        fs::hard_link(template::program(), site.program()).expect("Cannot link the program");
        site.write_config(&[]);
        site
    }

    /// With a running server `main` that archives its WAL here.
    pub(crate) fn with_server(install: &'static Install) -> (Self, PgServer) {
        Self::with_initdb_options(install, &[])
    }

    /// Without a server, but with a repository.
    pub(crate) fn with_repository() -> Self {
        let site = Self::new();
        let config = format!(
            "[barmanfs]\nrepository = {}\n[main]\n",
            site.repository().display()
        );
        let nobody = "conninfo = host=/nowhere\nstreaming_conninfo = host=/nowhere\n";
        site.write_file("barmanfs.conf", (config + nobody).as_bytes());
        site.init();
        assert_eq!(site.backup_ids(), [""; 0]);
        site
    }

    /// Creates the repository if there is none: without a terminal, no other command does.
    pub(crate) fn init(&self) {
        if !self.repository().join("repository.json").exists() {
            match ENCRYPTED.get() {
                false => self.ok(&["-q", "init"]),
                true => self.ok(&["-q", "init", "--encrypt"]),
            };
        }
    }

    /// The key of encrypted repositories in tests, as `age-keygen` writes it.
    pub(crate) fn key_file(&self) -> PathBuf {
        let path = self.path("test.key");
        if !path.exists() {
            fs::write(&path, format!("# for tests\n{TEST_KEY}\n")).expect("Cannot write a key");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("Cannot protect a key");
            give(&path);
        }
        path
    }

    /// A configuration that names the key.
    fn with_key(&self, config: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(config).into_owned();
        if text.contains("key_file") {
            return text.into_bytes();
        }
        let line = format!("[barmanfs]\nkey_file = {}\n", self.key_file().display());
        text.replacen("[barmanfs]\n", &line, 1).into_bytes()
    }

    /// The same as `with_server`, but created with these options of initdb.
    pub(crate) fn with_initdb_options(install: &'static Install, options: &[&str]) -> (Self, PgServer) {
        let site = Self::with_repository();
        let mut server = PgServer::init(install, &site.path("main"), options);
        server.configure(&format!(
            "archive_mode = on\narchive_command = '{}'",
            site.archive_command()
        ));
        site.write_config(&[("main", &server)]);
        server.start();
        (site, server)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path("barmanfs")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.path("barmanfs.conf")
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// The command for archive_command.
    pub(crate) fn archive_command(&self) -> String {
        format!(
            "{} -c {} wal-archive main %p",
            self.program().display(),
            self.config().display()
        )
    }

    /// Replaces the configuration, with these servers.
    pub(crate) fn write_config(&self, servers: &[(&str, &PgServer)]) {
        let servers: Vec<_> = servers
            .iter()
            .map(|(name, server)| (*name, server.conninfo()))
            .collect();
        let servers: Vec<_> = servers
            .iter()
            .map(|(name, conninfo)| (*name, conninfo.as_str()))
            .collect();
        self.write_config_with(&servers);
    }

    /// The same, with their connection strings.
    pub(crate) fn write_config_with(&self, servers: &[(&str, &str)]) {
        let mut text = format!("[barmanfs]\nrepository = {}\n", self.repository().display());
        for (name, conninfo) in servers {
            text += &format!(
                "\n[{name}]\ndescription = Test\nconninfo = {conninfo}\nstreaming_conninfo = {conninfo}\n"
            );
            if BY_FILES.get() {
                text += "backup_method = files\n";
            }
        }
        self.write_file("barmanfs.conf", text.as_bytes());
    }

    /// Replaces the configuration, with this server as `main` and further lines in its section.
    pub(crate) fn write_config_of(&self, server: &PgServer, lines: &str) {
        self.write_config(&[("main", server)]);
        let text = fs::read_to_string(self.config()).expect("Cannot read the configuration");
        self.write_file("barmanfs.conf", (text + lines).as_bytes());
    }

    /// Makes this the site of a passive node that follows `primary`, with further lines in the section of the server.
    pub(crate) fn follow(&self, primary: &Self, lines: &str) {
        let config = format!(
            "[barmanfs]\nrepository = {}\n[main]\nprimary_repository = {}\n{lines}\n",
            self.repository().display(),
            primary.repository().display()
        );
        self.write_file("barmanfs.conf", config.as_bytes());
    }

    /// Writes a file that belongs to the database user.
    pub(crate) fn write_file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        let with_key = name == "barmanfs.conf" && ENCRYPTED.get();
        let with_key = with_key.then(|| self.with_key(bytes));
        let bytes = with_key.as_deref().unwrap_or(bytes);
        fs::write(&path, bytes).unwrap_or_else(|error| panic!("Cannot write {}: {error}", path.display()));
        give(&path);
        path
    }

    pub(crate) fn make_directory(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(&path).unwrap_or_else(|error| panic!("Cannot make {}: {error}", path.display()));
        give(&path);
        path
    }

    /// The program with this site's configuration, as the database user.
    pub(crate) fn barmanfs_command(&self, arguments: &[&str]) -> Command {
        let mut program = command(self.program(), self.directory.path());
        program.arg("-c").arg(self.config()).args(arguments);
        program
    }

    /// The same as the user of the tests, who may be root.
    pub(crate) fn own_barmanfs_command(&self, arguments: &[&str]) -> Command {
        let mut program = own_command(self.program(), self.directory.path());
        program.arg("-c").arg(self.config()).args(arguments);
        program
    }

    pub(crate) fn barmanfs(&self, arguments: &[&str]) -> Run {
        run(&mut self.barmanfs_command(arguments))
    }

    #[track_caller]
    pub(crate) fn ok(&self, arguments: &[&str]) -> String {
        self.barmanfs(arguments).ok().text()
    }

    /// The program in the background, to be killed or waited for.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.barmanfs_command(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("Cannot run barmanfs")
    }

    #[track_caller]
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let run = self.barmanfs(&[arguments, &["--json"]].concat()).ok();
        serde_json::from_slice(&run.stdout).unwrap_or_else(|error| panic!("Not JSON ({error}): {run}"))
    }

    /// Takes a backup of `main`. Returns its id.
    #[track_caller]
    pub(crate) fn backup(&self) -> String {
        self.init();
        self.ok(&["backup", "main", "--fast-checkpoint"]);
        let newest = self
            .backups()
            .pop()
            .expect("list-backups shows the backup just taken");
        assert_eq!(
            newest["status"], "DONE",
            "The newest backup is not the one just taken: {newest}"
        );
        newest["id"].as_str().expect("an id").to_owned()
    }

    /// The backups of `main` in `list-backups --json`, oldest first.
    #[track_caller]
    pub(crate) fn backups(&self) -> Vec<Value> {
        let mut backups = self.json(&["list-backups", "main"])["backups"]
            .as_array()
            .expect("a list of backups")
            .clone();
        backups.sort_by_key(|backup| backup["id"].as_str().map(str::to_owned));
        backups
    }

    #[track_caller]
    pub(crate) fn backup_ids(&self) -> Vec<String> {
        self.backups()
            .iter()
            .map(|backup| backup["id"].as_str().expect("an id").to_owned())
            .collect()
    }

    /// Runs a shell command as the database user, who can read mounts.
    pub(crate) fn sh(&self, script: &str) -> Run {
        run(&mut self.sh_command(script))
    }

    /// The same, to run in the background.
    pub(crate) fn sh_command(&self, script: &str) -> Command {
        let mut shell = command("/bin/sh", self.directory.path());
        shell.arg("-c").arg(script);
        shell
    }

    /// `cp -a`, as the database user.
    #[track_caller]
    pub(crate) fn copy(&self, from: &Path, name: &str) -> PathBuf {
        let to = self.path(name);
        self.sh(&format!("cp -a '{}' '{}'", from.display(), to.display()))
            .ok();
        to
    }

    /// The names in a directory, sorted, as the database user sees them.
    #[track_caller]
    pub(crate) fn list(&self, directory: &Path) -> Vec<String> {
        let names = self
            .sh(&format!("LC_ALL=C ls -1A '{}'", directory.display()))
            .ok()
            .text();
        names.lines().map(str::to_owned).collect()
    }

    /// Every file under a directory with its hash, sorted by path.
    #[track_caller]
    pub(crate) fn checksums(&self, directory: &Path) -> String {
        let script = "find . -type f -print0 | LC_ALL=C sort -z | xargs -0 -r b2sum";
        self.sh(&format!("cd '{}' && {script}", directory.display()))
            .ok()
            .text()
    }

    /// The size of the repository: packs and index.
    pub(crate) fn stored_bytes(&self) -> u64 {
        bytes_under(&self.repository())
    }

    /// Runs the program with its clock this many days ahead; the server's clock is unchanged.
    pub(crate) fn in_days(&self, days: u32, words: &str) -> Run {
        self.sh(&format!(
            "faketime -f +{days}d '{}' -c '{}' {words}",
            self.program().display(),
            self.config().display()
        ))
    }

    /// The largest pack except these.
    pub(crate) fn largest_pack(&self, but: &[PathBuf]) -> PathBuf {
        self.packs()
            .into_iter()
            .filter(|pack| !but.contains(pack))
            .max_by_key(|pack| pack.metadata().map_or(0, |found| found.len()))
            .expect("there is such a pack")
    }

    /// The pack files.
    pub(crate) fn packs(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        files_under(&self.repository().join("packs"), &mut files);
        files.sort();
        files
    }
}

/// One line in the output of `check main --json`.
#[track_caller]
pub(crate) fn check_line(checked: &Run, name: &str) -> Value {
    let report: Value =
        serde_json::from_slice(&checked.stdout).unwrap_or_else(|error| panic!("{error}: {checked}"));
    let of = |what: &Value| what["checks"].as_array().expect("checks").clone();
    let lines = [of(&report["repository"]), of(&report["servers"][0])].concat();
    let line = lines.iter().find(|line| line["name"] == name);
    line.unwrap_or_else(|| panic!("No line '{name}': {checked}"))
        .clone()
}

/// The sizes of all files below a directory; a file that is removed meanwhile does not count.
pub(crate) fn bytes_under(directory: &Path) -> u64 {
    let mut files = Vec::new();
    files_under(directory, &mut files);
    files
        .iter()
        .filter_map(|file| fs::symlink_metadata(file).ok())
        .map(|metadata| metadata.len())
        .sum()
}

fn files_under(directory: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(directory) else {
        return;
    };
    for entry in entries.flatten() {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_under(&entry.path(), files),
            Ok(_) => files.push(entry.path()),
            Err(_) => {}
        }
    }
}
