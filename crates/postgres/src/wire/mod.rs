//! A client for the protocol of PostgreSQL: simple queries, base backups and the stream of WAL.
