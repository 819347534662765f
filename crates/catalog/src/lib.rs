//! hindsight-catalog
