//! The captured history of a cluster: slices, epochs and gaps.

use hindsight_format::{
    Ancestry, Branch, EpochCause, EpochRecord, GapRecord, ObjectKind, SliceName, StoredGap, StoredSlice, check_name,
};
use jiff::Timestamp;

use crate::cluster::{ClusterRepository, Listed};
use crate::error::{Error, Result};
use crate::reader::ObjectReader;
use crate::store::Entry;

/// The log of a cluster, as listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SliceListing {
    /// The slices, by stream, epoch, start and end.
    pub slices: Vec<StoredSlice>,
    /// Keys among them that are no slices' names.
    pub foreign: Vec<String>,
}

impl ClusterRepository {
    /// All captured slices, by stream, epoch, start and end.
    pub async fn slices(&self) -> Result<Vec<StoredSlice>> {
        Ok(self.slice_listing().await?.slices)
    }

    /// All captured slices, and what else lies among them.
    pub async fn slice_listing(&self) -> Result<SliceListing> {
        Ok(self.sort_slices(self.repository().store().list(&self.keys().log()).await?))
    }

    /// The slices of one stream and epoch; with `after`, only those whose names sort after it.
    pub async fn slices_from(&self, stream: &str, epoch: u64, after: Option<&SliceName>) -> Result<Vec<StoredSlice>> {
        check_name(stream, "stream name")?;
        let folder = self.keys().slices(stream, epoch);
        let store = self.repository().store();
        let entries = match after {
            Some(name) => store.list_after(&folder, &self.stored_key(&self.keys().slice(stream, epoch, name))).await?,
            None => store.list(&folder).await?,
        };
        Ok(self.sort_slices(entries).slices)
    }

    /// The slices of a stream that count for an epoch: its own, and of those that it branches off what lies before that.
    pub async fn slices_of(&self, stream: &str, epoch: u64) -> Result<Vec<StoredSlice>> {
        let mut slices = self.slices_from(stream, epoch, None).await?;
        let epochs = self.list_epochs().await?.records;
        for part in Ancestry::new(&epochs).of(epoch).iter().filter(|part| part.stream == stream) {
            let older = self.slices_from(stream, part.epoch, None).await?;
            slices.extend(older.into_iter().filter(|slice| part.has_slice(slice)));
        }
        Ok(slices)
    }

    fn sort_slices(&self, entries: Vec<Entry>) -> SliceListing {
        let mut listing = SliceListing::default();
        for Entry { key, size } in entries {
            match self.parse_slice(&key, size) {
                Some(slice) => listing.slices.push(slice),
                None => listing.foreign.push(key),
            }
        }
        listing.slices.sort_by(|a, b| {
            let order = |slice: &StoredSlice| {
                let SliceName { start, end, fence } = slice.name.clone();
                (slice.epoch, start.position.order().to_owned(), end.position.order().to_owned(), fence)
            };
            a.stream.cmp(&b.stream).then_with(|| order(a).cmp(&order(b)))
        });
        listing
    }

    fn parse_slice(&self, key: &str, stored_bytes: u64) -> Option<StoredSlice> {
        let key = self.repository().unsealed_key(key)?;
        let mut parts = key.strip_prefix(&self.keys().log())?.split('/');
        let (stream, epoch, name) =
            (parts.next()?.to_owned(), parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
        let slice = StoredSlice { stream, epoch, name, stored_bytes };
        let spelled_so = parts.next().is_none() && self.slice_key(&slice) == key;
        spelled_so.then_some(slice)
    }

    /// The key of a slice, without the ending that a sealed one has in the store.
    pub fn slice_key(&self, slice: &StoredSlice) -> String {
        self.keys().slice(&slice.stream, slice.epoch, &slice.name)
    }

    /// Removes a slice; one that is gone already is fine.
    pub async fn delete_slice(&self, slice: &StoredSlice) -> Result<()> {
        let key = self.stored_key(&self.slice_key(slice));
        self.repository().store().delete(&key).await?;
        self.repository().forget(&key);
        Ok(())
    }

    /// Whether a slice can be read, and so be merged: in a sealed repository only with an identity, or by
    /// who captured it since the repository was opened.
    pub fn can_read(&self, slice: &StoredSlice) -> bool {
        self.repository().can_open(&self.stored_key(&self.slice_key(slice)))
    }

    /// Opens a captured slice, and checks that it holds what its name promises.
    pub async fn slice_reader(&self, slice: &StoredSlice) -> Result<ObjectReader> {
        self.open_slice(&self.slice_key(slice), &slice.name, Some(slice.stored_bytes)).await
    }

    /// Opens a slice that belongs to a snapshot, and checks that it holds what its name promises.
    pub async fn snapshot_slice_reader(&self, id: &str, stream: &str, name: &SliceName) -> Result<ObjectReader> {
        let key = self.keys().snapshot_object(id, &format!("{stream}/{name}"));
        self.open_slice(&key, name, None).await
    }

    async fn open_slice(&self, key: &str, name: &SliceName, size: Option<u64>) -> Result<ObjectReader> {
        let reader = ObjectReader::open(self.repository(), key, None, size).await?;
        let footer = reader.footer();
        match &footer.log {
            Some(log) if footer.kind == ObjectKind::Slice => {
                if (&log.start, &log.end) == (&name.start, &name.end) {
                    return Ok(reader);
                }
                let why =
                    format!("its footer says that it covers {} to {}, its name says otherwise", log.start, log.end);
                Err(Error::damaged(reader.key(), why))
            }
            _ => Err(Error::damaged(reader.key(), "it is not a slice of a log")),
        }
    }

    /// The epochs that restores began, by number. Epoch 1 has no record.
    pub async fn list_epochs(&self) -> Result<Listed<EpochRecord>> {
        self.listed(self.each_epoch().await?)
    }

    /// The same; one that cannot be read is an error that names it.
    pub async fn epochs(&self) -> Result<Vec<EpochRecord>> {
        self.each_epoch().await?.into_iter().map(|(_, read)| read).collect()
    }

    async fn each_epoch(&self) -> Result<Vec<(String, Result<EpochRecord>)>> {
        let numbers = self.numbers(&self.keys().epochs(), |number| self.keys().epoch(number)).await?;
        let keys = numbers.into_iter().map(|number| self.keys().epoch(number)).collect();
        let found = self.repository().read_each::<EpochRecord>(keys).await?;
        let checked = found.into_iter().map(|(key, read)| {
            let checked = read.and_then(|record| match self.keys().epoch(record.number) == key {
                true => Ok(record),
                false => Err(Error::damaged(&key, format!("it is the record of epoch {}", record.number))),
            });
            (key, checked)
        });
        Ok(checked.collect())
    }

    /// The number of the current epoch: that of the newest record, or 1.
    pub async fn current_epoch(&self) -> Result<u64> {
        Ok(self.numbers(&self.keys().epochs(), |number| self.keys().epoch(number)).await?.last().copied().unwrap_or(1))
    }

    /// Begins the next epoch, which may branch off an older one. When the newest one has the same cause, and branches off there too,
    /// it is that one: whoever does the same work again after a crash begins no second epoch. (Where its record cannot be read it may
    /// have been the same: an epoch that nothing was captured in does no harm.)
    pub async fn begin_epoch(&self, cause: EpochCause, branch: Option<Branch>) -> Result<EpochRecord> {
        loop {
            let newest = self.current_epoch().await?;
            let known = self.repository().read_each::<EpochRecord>(vec![self.keys().epoch(newest)]).await?.pop();
            if let Some((_, Ok(same))) = known
                && (&same.cause, &same.branch) == (&cause, &branch)
                && same.number == newest
            {
                return Ok(same);
            }
            let (cause, branch) = (cause.clone(), branch.clone());
            let record = EpochRecord { number: newest + 1, started_at: Timestamp::now(), cause, branch };
            if self.repository().create_record(&self.keys().epoch(record.number), &record).await? {
                return Ok(record);
            }
        }
    }

    /// All recorded gaps, by stream, epoch and time. One that cannot be read is left out: it explains a gap, it does
    /// not make one.
    pub async fn gaps(&self) -> Result<Vec<StoredGap>> {
        let folder = self.keys().gaps();
        let entries = self.repository().store().list(&folder).await?;
        let keys = entries.into_iter().map(|entry| entry.key).filter(|key| key.ends_with(".json")).collect();
        let found = self.repository().read_readable::<GapRecord>(keys).await?;
        let gap = |(key, record): (String, GapRecord)| {
            let mut parts = key.strip_prefix(&folder)?.split('/');
            let (stream, epoch) = (parts.next()?.to_owned(), parts.next()?.parse().ok()?);
            let spelled_so = self.keys().gap(&stream, epoch, &record.end) == key;
            spelled_so.then_some(StoredGap { stream, epoch, record })
        };
        Ok(found.into_iter().filter_map(gap).collect())
    }

    /// Records why the log is not complete before `gap.end`. The first explanation stays.
    pub async fn put_gap(&self, stream: &str, epoch: u64, gap: &GapRecord) -> Result<()> {
        check_name(stream, "stream name")?;
        self.repository().create_record(&self.keys().gap(stream, epoch, &gap.end), gap).await.map(drop)
    }

    /// Removes the record of a gap, with the log around it.
    pub async fn delete_gap(&self, gap: &StoredGap) -> Result<()> {
        self.repository().store().delete(&self.keys().gap(&gap.stream, gap.epoch, &gap.record.end)).await
    }
}
