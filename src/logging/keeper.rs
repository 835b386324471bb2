//! Warnings and errors are kept besides being logged, where the output has a place for them: Barman's JSON.

use std::fmt;
use std::sync::Mutex;

use barmanfs_store::sync::lock;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::output::Kept;

/// Maximum number of lines of each kind. More of them are in the log only.
const MAX_KEPT: usize = 1000;

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    warnings: Vec::new(),
    errors: Vec::new(),
});

/// The layer that keeps them.
#[derive(Debug)]
pub(super) struct Keeper;

impl<S: Subscriber> Layer<S> for Keeper {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut kept = lock(&KEPT);
        let texts = match *event.metadata().level() {
            Level::ERROR => &mut kept.errors,
            Level::WARN => &mut kept.warnings,
            _ => return,
        };
        if texts.len() < MAX_KEPT {
            let mut message = Message::default();
            event.record(&mut message);
            texts.push(message.0);
        }
    }
}

/// What has been kept until now. It is kept no longer.
pub(crate) fn take_kept() -> Kept {
    std::mem::take(&mut *lock(&KEPT))
}

/// The text of an event.
#[derive(Debug, Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
