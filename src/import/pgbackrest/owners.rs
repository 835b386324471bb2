//! Users and groups: pgBackRest records names, a backup here has numbers.
//!
//! A name that this host knows becomes its number here. Any other becomes the owner of the repository, who on most hosts is the
//! user that runs PostgreSQL. A restore gives files to its own user unless root runs it.

use std::collections::HashMap;

use nix::unistd::{Group, User};

/// Numbers of names that were looked up.
#[derive(Debug, Default)]
pub(super) struct Owners {
    users: HashMap<String, Option<u32>>,
    groups: HashMap<String, Option<u32>>,
    /// User and group of the repository.
    fallback: (u32, u32),
}

impl Owners {
    pub(super) fn new(fallback: (u32, u32)) -> Self {
        Self {
            fallback,
            ..Self::default()
        }
    }

    pub(super) fn user(&mut self, name: Option<&str>) -> u32 {
        let of = |name: &str| User::from_name(name).ok().flatten().map(|user| user.uid.as_raw());
        look_up(&mut self.users, name, of).unwrap_or(self.fallback.0)
    }

    pub(super) fn group(&mut self, name: Option<&str>) -> u32 {
        let of = |name: &str| {
            Group::from_name(name)
                .ok()
                .flatten()
                .map(|group| group.gid.as_raw())
        };
        look_up(&mut self.groups, name, of).unwrap_or(self.fallback.1)
    }
}

fn look_up(
    known: &mut HashMap<String, Option<u32>>,
    name: Option<&str>,
    of: impl FnOnce(&str) -> Option<u32>,
) -> Option<u32> {
    let name = name?;
    if let Some(number) = known.get(name) {
        return *number;
    }
    let number = of(name);
    known.insert(name.to_owned(), number);
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_of_this_host_has_its_number_and_any_other_that_of_the_repository() {
        let mut owners = Owners::new((77, 78));
        for _ in 0..2 {
            assert_eq!((owners.user(Some("root")), owners.group(Some("root"))), (0, 0));
            assert_eq!(owners.user(Some("no such user, surely")), 77);
            assert_eq!((owners.user(None), owners.group(None)), (77, 78));
        }
    }
}
