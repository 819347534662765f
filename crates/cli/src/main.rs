//! hindsight
fn main() {}
