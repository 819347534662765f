//! hindsight-mongodb
