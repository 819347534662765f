//! hindsight-jobs
