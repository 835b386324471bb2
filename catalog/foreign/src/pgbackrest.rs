//! What pgBackRest writes.
