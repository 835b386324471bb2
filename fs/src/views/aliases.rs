//! Names whose backup changes over time: `latest`, `oldest`, and the names that a person gave.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

use barmanfs_catalog::{Backup, BackupId, BackupName, ServerName};
use barmanfs_store::sync::lock;

use super::by_name::BY_NAME;
use super::context::Context;
use super::snapshot::{ServerState, Snapshot};
use super::tree::{BackupTree, Style};

/// A name whose backup changes over time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Alias {
    Latest,
    Oldest,
    /// The newest backup that a person gave this name.
    Named(String),
}

impl Alias {
    /// `latest` or `oldest`.
    pub(super) fn of(name: &str) -> Option<Self> {
        match name {
            "latest" => Some(Self::Latest),
            "oldest" => Some(Self::Oldest),
            _ => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Latest => "latest",
            Self::Oldest => "oldest",
            Self::Named(name) => name,
        }
    }

    /// The path of its directory below the mount point.
    fn directory(&self, server: &ServerName) -> Vec<String> {
        let within = matches!(self, Self::Named(_)).then(|| BY_NAME.to_owned());
        std::iter::once(server.to_string()).chain(within).collect()
    }

    /// The name of its view in the server's directory.
    fn view(&self) -> String {
        match self {
            Self::Latest | Self::Oldest => self.name().to_owned(),
            Self::Named(name) => format!("{BY_NAME}/{name}"),
        }
    }

    /// The backup that it should lead to.
    fn target<'a>(&self, server: &'a ServerState) -> Option<&'a Arc<Backup>> {
        match self {
            Self::Latest => server.latest(),
            Self::Oldest => server.oldest(),
            // Not every label can be used as a name.
            Self::Named(name) => server
                .newest_labelled(name)
                .filter(|_| name.parse::<BackupName>().is_ok()),
        }
    }

    /// Whether it may still lead to this backup.
    fn may_stay(&self, server: &ServerState, id: BackupId) -> bool {
        let label = |backup: &Arc<Backup>| match self {
            Self::Latest | Self::Oldest => true,
            Self::Named(name) => backup.label.as_ref() == Some(name),
        };
        server.backup(id).is_some_and(label)
    }
}

/// The names that were looked up, and where they lead.
#[derive(Debug, Default)]
pub(super) struct Aliases {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    standing: HashMap<(ServerName, Alias), Arc<BackupTree>>,
    /// Those that lead elsewhere, or nowhere, since [`moved_aliases`] was called.
    moved: HashSet<(ServerName, Alias)>,
}

impl Context {
    /// The backup of a name; `None` if there is none. It moves on only when nothing uses the previous backup any more:
    /// `cp -a latest X` works with paths and would copy a mixture of both.
    pub(super) fn alias(self: &Arc<Self>, server: &ServerState, alias: &Alias) -> Option<Arc<BackupTree>> {
        let target = alias.target(server);
        let key = (server.name.clone(), alias.clone());
        let mut state = lock(&self.aliases.state);
        let standing = state.standing.get(&key);
        if let (Some(tree), Some(target)) = (standing, target) {
            let id = tree.backup.id;
            if id == target.id || (alias.may_stay(server, id) && tree.usage.is_busy()) {
                return Some(Arc::clone(tree));
            }
        }
        if standing.is_some() {
            state.moved.insert(key.clone());
        }
        let tree = target.map(|target| self.tree(target, Style::Startable, &alias.view()));
        match &tree {
            Some(tree) => state.standing.insert(key, Arc::clone(tree)),
            None => state.standing.remove(&key),
        };
        tree
    }
}

/// The directory and the name of everything that was looked up and leads elsewhere, or nowhere, since the last call. That can
/// happen without a change in the repository: when the last user of the old backup has gone.
pub(crate) fn moved_aliases(context: &Arc<Context>, snapshot: &Snapshot) -> Vec<(Vec<String>, String)> {
    let standing: Vec<(ServerName, Alias)> = lock(&context.aliases.state).standing.keys().cloned().collect();
    for (name, alias) in standing {
        match snapshot.server(name.as_str()) {
            Some(server) => drop(context.alias(server, &alias)),
            // The kernel forgets the server's directory, and all below it.
            None => drop(lock(&context.aliases.state).standing.remove(&(name, alias))),
        }
    }
    let moved = std::mem::take(&mut lock(&context.aliases.state).moved);
    moved
        .into_iter()
        .map(|(server, alias)| (alias.directory(&server), alias.name().to_owned()))
        .collect()
}
