//! The write-ahead log, from bytes to records. No I/O.
