//! hindsight-repository
