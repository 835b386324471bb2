//! A real sshd on this host, for the database user alone, and an `ssh` that knows it. Its hosts `db2` and `backup` are this
//! host; `bare` is, too, and finds no barmanfs in its PATH.

use super::Site;
use super::network::Network;
use super::process::{children_of, run, until};
use super::user::{command, database_user, give, own_command};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};

/// Where it is installed: it wants to be called by an absolute path, and not every user has that in the PATH.
const SSHD: [&str; 2] = ["/usr/sbin/sshd", "/usr/bin/sshd"];

/// A running sshd.
#[derive(Debug)]
pub(crate) struct Sshd {
    directory: PathBuf,
    daemon: Child,
}

impl Sshd {
    /// Starts it. In its sessions, `barmanfs` is the site's.
    pub(crate) fn start(site: &Site) -> Self {
        Self::start_at(site, "127.0.0.1", &[])
    }

    /// Starts it on another host.
    pub(crate) fn behind(site: &Site, network: &Network) -> Self {
        Self::start_at(site, &network.address, &network.on_the_other_host())
    }

    /// `prefix` stands before its command, for root.
    fn start_at(site: &Site, address: &str, prefix: &[&str]) -> Self {
        let directory = site.make_directory("sshd");
        for key in ["host", "user"] {
            let path = directory.join(key);
            run(command("ssh-keygen", &directory)
                .args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"])
                .arg(path))
            .ok();
        }
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let text = |name: &str| fs::read_to_string(directory.join(name)).unwrap();
        let place = directory.display();
        site.write_file("sshd/known_hosts", format!("* {}", text("host.pub")).as_bytes());
        site.write_file("sshd/authorized_keys", text("user.pub").as_bytes());
        let daemon = format!(
            "Port {port}\nListenAddress {address}\nHostKey {place}/host\nPidFile none\nStrictModes no\nUsePAM no\n\
             AuthorizedKeysFile {place}/authorized_keys\nPasswordAuthentication no\nMaxStartups 100\n\
             SetEnv PATH={place}/bin:/usr/bin:/bin\n"
        );
        let client = format!(
            "Host *\nHostName {address}\nPort {port}\nUser {}\nIdentityFile {place}/user\nIdentitiesOnly yes\n\
             UserKnownHostsFile {place}/known_hosts\nGlobalKnownHostsFile /dev/null\nBatchMode yes\nLogLevel ERROR\n",
            user_name()
        );
        let daemon_file = site.write_file("sshd/sshd_config", daemon.as_bytes());
        site.write_file("sshd/ssh_config", client.as_bytes());
        for (name, lines) in [
            (
                "bin/barmanfs",
                format!("exec '{}' \"$@\"", site.program().display()),
            ),
            (
                "client/ssh",
                format!("exec /usr/bin/ssh -F {place}/ssh_config \"$@\""),
            ),
        ] {
            let path = directory.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            let path = site.write_file(
                &format!("sshd/{name}"),
                format!("#!/bin/sh\n{lines}\n").as_bytes(),
            );
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            give(path.parent().unwrap());
        }
        let program = SSHD.into_iter().find(|path| PathBuf::from(path).exists());
        let program = program.expect("There is no sshd: install openssh-server, as scripts/test.sh does");
        let log = directory.join("log");
        let mut command = match prefix {
            [] => command(program, &directory),
            [first, rest @ ..] => {
                let user = database_user();
                let mut command = own_command(first, &directory);
                command.args(rest).arg("setpriv");
                command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
                command.args(["--clear-groups", "--", program]);
                command
            }
        };
        let daemon = command
            .args(["-D", "-f"])
            .arg(daemon_file)
            .arg("-E")
            .arg(&log)
            .stdin(Stdio::null())
            .spawn()
            .expect("Cannot run sshd");
        let sshd = Self { directory, daemon };
        until("sshd answers", || TcpStream::connect((address, port)).is_ok());
        sshd
    }

    /// The command that reaches it.
    pub(crate) fn command(&self) -> String {
        format!("{}/client/ssh db2", self.directory.display())
    }

    /// The same, without barmanfs over there.
    pub(crate) fn bare(&self) -> String {
        format!("{} env PATH=/usr/bin:/bin", self.command())
    }

    /// The PATH of a server over there: it has barmanfs, and ssh to here.
    pub(crate) fn path(&self) -> String {
        let place = self.directory.display();
        format!("PATH={place}/client:{place}/bin:/usr/bin:/bin")
    }

    /// Cuts all connections.
    pub(crate) fn cut(&self) {
        for session in children_of(&self.daemon.id().to_string()) {
            let below = children_of(&session);
            for process in std::iter::once(&session).chain(&below) {
                run(own_command("kill", &self.directory).args(["-9", process]));
            }
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// The user whom it lets in.
pub(crate) fn user_name() -> String {
    let uid = database_user().uid.to_string();
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let mut users = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let user = users.find(|fields| fields.get(2) == Some(&uid.as_str()));
    user.expect("a user of this host")[0].to_owned()
}
