//! Access to a tree by paths.

use std::sync::Arc;

use barmanfs_catalog::Repository;
use barmanfs_fs::namespace::{Found, Ino, Lines, Namespace, Node, Room};
use barmanfs_fs::usage::Caller;
use barmanfs_fs::views::{Context, ViewOptions, root};

/// A caller that cannot be seen from here.
pub const NOBODY: Caller = Caller(0);

/// A tree without a kernel.
pub struct Tree(pub Namespace);

impl Tree {
    pub fn of(repository: &Repository) -> Self {
        Self::at(repository, "/mnt")
    }

    /// Shows the tree as if it were mounted there.
    pub fn at(repository: &Repository, mount_point: &str) -> Self {
        let options = ViewOptions {
            mount_point: mount_point.into(),
            ..ViewOptions::default()
        };
        let context = Context::new(repository.clone(), options);
        Self(Namespace::new(root(&context), context.trees().clone()))
    }

    pub fn find(&self, path: &str) -> Option<Arc<Node>> {
        let mut node = self.0.node(Ino::ROOT).unwrap();
        for name in path.split('/') {
            node = match self.0.lookup(node.ino, name.as_bytes()).unwrap() {
                Found::Node(node, _) => node,
                Found::Absent(_) => return None,
            };
        }
        Some(node)
    }

    pub fn node(&self, path: &str) -> Arc<Node> {
        self.find(path).unwrap_or_else(|| panic!("no {path}"))
    }

    pub fn list(&self, path: &str) -> Vec<String> {
        let node = if path.is_empty() {
            self.0.node(Ino::ROOT).unwrap()
        } else {
            self.node(path)
        };
        let open = self.0.open_directory(node.ino, NOBODY).unwrap();
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            // Two lines at a time: a listing continues where it stopped.
            let mut room = 2;
            self.0
                .read_directory(open.handle, offset, Lines::AsNames, &mut |line| {
                    if room == 0 {
                        return Room::Full;
                    }
                    room -= 1;
                    offset = line.next;
                    names.push(String::from_utf8(line.name.to_vec()).unwrap());
                    Room::Taken
                })
                .unwrap();
            if room == 2 {
                break;
            }
        }
        self.0.close_directory(open.handle);
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }

    pub fn read(&self, path: &str) -> Vec<u8> {
        self.try_read(path).unwrap()
    }

    pub fn try_read(&self, path: &str) -> barmanfs_fs::Result<Vec<u8>> {
        let open = self.0.open(self.node(path).ino, NOBODY)?;
        let mut bytes = Vec::new();
        let result = loop {
            let mut count = 0;
            // Not a divisor of the window size: reads cross from one window into the next.
            let read = self.0.read(open.handle, bytes.len() as u64, 100_000, |part| {
                count = part.len();
                bytes.extend_from_slice(part);
            });
            match read {
                Ok(()) if count > 0 => {}
                other => break other,
            }
        };
        self.0.close(open.handle);
        result.map(|()| bytes)
    }

    pub fn text(&self, path: &str) -> String {
        String::from_utf8(self.read(path)).unwrap()
    }
}
