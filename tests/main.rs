//! The tests that run the program.
fn main() {}
