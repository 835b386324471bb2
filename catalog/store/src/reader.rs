//! Reading chunks: every reader's way from an id to its bytes.
