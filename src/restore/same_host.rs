//! Whether the primary of a standby is on the standby's own host, where the standby can damage it.
//!
//! WAL from the archive has tablespaces that stay in the copy. WAL that is streamed is as the primary wrote it: replay of
//! CREATE TABLESPACE makes a link to the location that the primary has, and PostgreSQL has nothing against two servers
//! there.

use std::net::{IpAddr, ToSocketAddrs, UdpSocket};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::postgres::Conninfo;
use barmanfs_store::threads;

/// How long the name of a host is looked up. A note is not worth more.
const LOOK_UP: Duration = Duration::from_secs(3);

/// What a person should know before the standby is started. `is_here` is whether the standby is on this host; of another
/// host only those names are known that each host has for itself.
pub(crate) fn note(primary_conninfo: &str, is_here: bool) -> Option<String> {
    let hosts = Conninfo::hosts_of(primary_conninfo);
    hosts.iter().any(|host| is_own(host, is_here)).then(|| {
        "Its primary is on the same host: a tablespace that the primary makes from now on is streamed with its location, \
         and the standby then works in the directory of the primary, which damages both. Make tablespaces with \
         LOCATION '' and allow_in_place_tablespaces there, or leave primary_conninfo out: WAL of the archive keeps \
         tablespaces in the standby"
            .to_owned()
    })
}

/// Whether a host of a connection string is the host on which that is used. Without one it is a socket.
fn is_own(host: &str, is_here: bool) -> bool {
    if host.is_empty() || host.starts_with(['/', '@']) {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return address.is_loopback() || is_here && is_of_this_host(address);
    }
    let first = host.split('.').next().unwrap_or_default();
    first.starts_with("localhost") || is_here && looked_up(host).into_iter().any(is_of_this_host)
}

/// Only an address of its own can be bound.
fn is_of_this_host(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

fn looked_up(host: &str) -> Vec<IpAddr> {
    let (sender, found) = channel();
    let host = host.to_owned();
    let started = threads::start("resolver", move || {
        let found = (host.as_str(), 0).to_socket_addrs();
        // Nobody listens if that took too long.
        let _ = sender.send(found.map(|found| found.map(|found| found.ip()).collect()));
    });
    match started.map(|_| found.recv_timeout(LOOK_UP)) {
        Ok(Ok(Ok(found))) => found,
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_on_the_same_host_is_noted() {
        let own = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        for (conninfo, here, elsewhere) in [
            ("user=replicator", true, true),
            ("host=/run/postgresql port=5433", true, true),
            ("host=localhost", true, true),
            ("postgresql://r@127.0.0.1:5433/", true, true),
            ("host=db.invalid hostaddr=::1", true, true),
            ("host=db.invalid,localhost", true, true),
            ("host=192.0.2.7 user=replicator", false, false),
            ("host=db.invalid", false, false),
            ("not a string", false, false),
        ] {
            assert_eq!(note(conninfo, true).is_some(), here, "{conninfo}");
            assert_eq!(note(conninfo, false).is_some(), elsewhere, "{conninfo}");
        }
        // This host's own name leads to an address of it, if it leads anywhere.
        let own = own.trim();
        assert_eq!(is_own(own, true), !looked_up(own).is_empty(), "{own}");
    }
}
