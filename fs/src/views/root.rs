//! The root of the tree: the servers, the mount's status in `.barmanfs`, and a README.

use std::sync::Arc;

use super::context::Context;
use super::control_directory::ControlDirectory;
use super::generated;
use super::server::ServerDirectory;
use crate::entry::{Body, Child, Children, Directory, Lifetime};
use crate::error::{NOT_FOUND, Result};

const README: &str = include_str!("readme.txt");
const README_NAME: &str = "README";
const CONTROL_NAME: &str = ".barmanfs";

/// The root directory of a mounted tree.
pub fn root(context: &Arc<Context>) -> Child {
    let attributes = context.own(0o555, context.started);
    generated::directory(
        context,
        "",
        &attributes,
        Arc::new(Root {
            context: Arc::clone(context),
        }),
    )
}

#[derive(Debug)]
struct Root {
    context: Arc<Context>,
}

impl Root {
    fn readme(&self) -> String {
        README.replace("MOUNT", &self.context.options.mount_point.display().to_string())
    }

    fn readme_child(&self) -> Child {
        let attributes = self.context.own(0o444, self.context.started);
        generated::file(
            &self.context,
            README_NAME,
            &attributes,
            self.readme().len() as u64,
            Lifetime::Forever,
        )
    }

    fn control(&self) -> Child {
        let attributes = self.context.own(0o555, self.context.started);
        let control = Arc::new(ControlDirectory::new(Arc::clone(&self.context)));
        generated::directory(&self.context, CONTROL_NAME, &attributes, control)
    }
}

impl Directory for Root {
    fn lookup(&self, name: &[u8]) -> Result<Option<Child>> {
        let Ok(name) = std::str::from_utf8(name) else {
            return Ok(None);
        };
        match name {
            CONTROL_NAME => Ok(Some(self.control())),
            _ => {
                let snapshot = self.context.snapshot()?;
                let server = snapshot.server(name);
                let child = server.map(|server| ServerDirectory::child(&self.context, server));
                Ok(child.or_else(|| (name == README_NAME).then(|| self.readme_child())))
            }
        }
    }

    fn entries(&self) -> Result<Children> {
        let snapshot = self.context.snapshot()?;
        let mut children = vec![self.control()];
        // A server may have the name of the page. Its backups are what counts.
        if snapshot.server(README_NAME).is_none() {
            children.push(self.readme_child());
        }
        children.extend(
            snapshot
                .servers
                .iter()
                .map(|server| ServerDirectory::child(&self.context, server)),
        );
        Ok(Box::new(children.into_iter().map(Ok)))
    }

    fn open(&self, name: &[u8]) -> Result<Body> {
        if name == README_NAME.as_bytes() {
            return Ok(Body::Made(self.readme().into_bytes().into()));
        }
        Err(NOT_FOUND)
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime::UntilNotified
    }
}
