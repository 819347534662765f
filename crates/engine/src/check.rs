//! Checking what is stored, without a database: what only the engine understands of it.

use hindsight_format::LogSummary;

/// Checks the data of one snapshot. Frames come decoded: those of one object in their order, of several objects at the
/// same time and from several threads. One that cannot be read is left out.
pub trait DataCheck: Send + Sync {
    /// Takes the next frame of `object`, which belongs to the scan `segment`.
    ///
    /// # Errors
    /// What is wrong with it.
    fn frame(&self, object: &str, segment: u32, raw: &[u8]) -> Result<(), String>;

    /// What does not add up, once every frame of the snapshot was given; a line each.
    fn finish(&self) -> Vec<String>;
}

/// Checks one slice of a log. Frames come decoded and in order.
pub trait LogCheck: Send {
    /// Takes the next frame, which belongs to the part `segment` of the log.
    ///
    /// # Errors
    /// What is wrong with it.
    fn frame(&mut self, segment: u32, raw: &[u8]) -> Result<(), String>;

    /// What the records come to, once every frame was given; to be compared with what the slice says of itself.
    ///
    /// # Errors
    /// What is wrong with the slice as a whole.
    fn finish(self: Box<Self>) -> Result<LogSummary, String>;
}
