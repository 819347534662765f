//! Servers that are scripted: what the servers at hand do not do.
