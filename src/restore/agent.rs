//! Restores with barmanfs on both hosts: `barmanfs agent` over there writes, and this side, which has the repository, answers.
//!
//! What the agent runs is a local restore ([`engine`]): only the tree that it walks and the bytes that it lacks come over
//! connections ([`far`]). So it compares, continues, removes and marks as one here does. This side starts it, says what to
//! restore ([`control`]), and gives what it asks for ([`serve`]).
//!
//! The first connection is for control. Others, as many as the restore has threads, bring requests of the agent: each is an
//! `agent --join` of its own, which passes bytes between its connection and the first process.
//!
//! Both sides check what they read ([`wire`]): frames have a length of at most [`wire::MAX_FRAME_BYTES`], names are names of
//! one directory, and the bytes of a window have the id that was announced.

pub(super) mod control;
pub(crate) mod engine;
pub(super) mod far;
pub(super) mod serve;
pub(crate) mod wire;
