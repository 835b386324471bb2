//! Tests of clones as a whole.
