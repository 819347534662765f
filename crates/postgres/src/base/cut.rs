//! Where archives are cut into objects.

use super::tar::{TarError, TarEvent, TarReader};

/// Finds the places where an archive is cut: before the first file behind so many bytes.
pub(super) struct Cutter {
    reader: TarReader,
    /// Where the next bytes belong in the archive.
    at: u64,
    /// Where the present object begins.
    begun: u64,
    /// Bytes after which an object is long enough.
    enough: u64,
    /// The end of a file from which on it is.
    boundary: Option<u64>,
}

impl Cutter {
    pub(super) fn new(enough: u64) -> Self {
        Self { reader: TarReader::new(), at: 0, begun: 0, enough, boundary: None }
    }

    /// Takes the next bytes. Gives the first of them that belongs to a new object, if there is one.
    pub(super) fn take(&mut self, data: &[u8]) -> Result<Option<usize>, TarError> {
        let Self { begun, enough, boundary: found, .. } = self;
        self.reader.feed(data, &mut |event| {
            if let TarEvent::End { boundary } = event
                && found.is_none()
                && boundary - *begun >= *enough
            {
                *found = Some(boundary);
            }
        })?;
        let from = self.at;
        self.at += data.len() as u64;
        let Some(boundary) = self.boundary.filter(|boundary| *boundary < self.at) else { return Ok(None) };
        self.boundary = None;
        // Where data are of one message this is no more than its length.
        let at = (boundary - from) as usize;
        // A path never begins with zero: this is the end of the archive, which needs no object of its own.
        if data.get(at) == Some(&0) {
            return Ok(None);
        }
        self.begun = boundary;
        Ok(Some(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::tar::BLOCK;
    use super::super::tar::tests::file;
    use super::*;

    /// Cuts an archive that comes in pieces.
    fn cut(archive: &[u8], piece: usize, enough: u64) -> Vec<Vec<u8>> {
        let (mut cutter, mut objects) = (Cutter::new(enough), vec![Vec::new()]);
        for piece in archive.chunks(piece) {
            let (before, after) = match cutter.take(piece).unwrap() {
                Some(at) => piece.split_at(at),
                None => (piece, &piece[piece.len()..]),
            };
            objects.last_mut().unwrap().extend_from_slice(before);
            if !after.is_empty() {
                objects.push(after.to_vec());
            }
        }
        objects
    }

    proptest! {
        #[test]
        fn objects_begin_with_files_and_are_long_enough(
            sizes in prop::collection::vec(0_usize..3000, 0..30), piece in 1_usize..1500, enough in 1_u64..6000,
        ) {
            let files: Vec<_> = sizes.iter().enumerate().map(|(n, size)| file(&format!("f{n}"), &vec![7; *size])).collect();
            let archive = [files.concat(), vec![0; 2 * BLOCK]].concat();
            let objects = cut(&archive, piece, enough);
            prop_assert_eq!(&objects.concat(), &archive);
            let (mut found, last) = (0, objects.len() - 1);
            for (number, object) in objects.iter().enumerate() {
                prop_assert!(number == last || object.len() as u64 >= enough);
                let mut reader = TarReader::new();
                reader.feed(object, &mut |event| found += usize::from(matches!(event, TarEvent::File(_)))).unwrap();
                // The zeros that end an archive are never alone.
                prop_assert!(object[0] != 0 || sizes.is_empty());
                prop_assert_eq!(reader.finish().unwrap(), number == last);
            }
            prop_assert_eq!(found, sizes.len());
            // No object goes on for longer than it has to, where pieces are short.
            if piece < BLOCK {
                for (number, object) in objects.iter().enumerate().take(last) {
                    let end: usize = objects[..=number].iter().map(Vec::len).sum();
                    let (mut at, mut before) = (0, 0);
                    for file in files.iter().take_while(|file| { at += file.len(); at <= end }) {
                        before = file.len();
                    }
                    prop_assert!(((object.len() - before) as u64) < enough);
                }
            }
        }
    }

    #[test]
    fn an_archive_that_is_none_is_refused() {
        assert_eq!(Cutter::new(1000).take(&[1; 1024]).unwrap_err().at, 0);
    }
}
