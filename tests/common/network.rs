//! Another host, reached by a cable: a network namespace of its own, and a pair of devices, one at each end (ip-netns(8)).
//! Only root can make one.

use super::process::run;
use super::user::own_command;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Networks that this process has made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// See the module. It is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Network {
    namespace: String,
    /// Its device.
    device: String,
    /// The address of the host behind it.
    pub(crate) address: String,
}

impl Network {
    /// Makes it; `None` where that is not possible, as in many containers.
    pub(crate) fn new() -> Option<Self> {
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let (near, far) = (format!("bfn{process}.{number}"), format!("bff{process}.{number}"));
        let block = format!("10.{}.{}", 190 + number % 10, process % 250);
        let network = Self {
            namespace: format!("barmanfs-{process}.{number}"),
            device: far.clone(),
            address: format!("{block}.2"),
        };
        let made = ip(&["netns", "add", &network.namespace]);
        if !made {
            eprintln!("No network namespace can be made here: nothing is cut");
            return None;
        }
        for words in [
            &[
                "link",
                "add",
                &near,
                "type",
                "veth",
                "peer",
                "name",
                &far,
                "netns",
                &network.namespace,
            ][..],
            &["addr", "add", &format!("{block}.1/30"), "dev", &near],
            &["link", "set", &near, "up"],
            &[
                "-n",
                &network.namespace,
                "addr",
                "add",
                &format!("{block}.2/30"),
                "dev",
                &far,
            ],
            &["-n", &network.namespace, "link", "set", &far, "up"],
        ] {
            assert!(ip(words), "{words:?}");
        }
        Some(network)
    }

    /// What stands before a command of the other host.
    pub(crate) fn on_the_other_host(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespace]
    }

    /// Pulls the cable.
    pub(crate) fn cut(&self) {
        assert!(ip(&["-n", &self.namespace, "link", "set", &self.device, "down"]));
    }

    /// Puts it back.
    pub(crate) fn mend(&self) {
        assert!(ip(&["-n", &self.namespace, "link", "set", &self.device, "up"]));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // The devices go with it.
        ip(&["netns", "delete", &self.namespace]);
    }
}

fn ip(words: &[&str]) -> bool {
    run(own_command("ip", Path::new("/")).args(words)).code() == Some(0)
}
