//! Segments on the disk → what a former agent left, and what is read back for delivery.

use std::fs::{self, OpenOptions};
use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::{Journal, UNSYNCED_RUNS, extent, scan};
use crate::record::RunMark;
use crate::sink::orders::{Left, ReadBack, Recovered};
use crate::sink::runs::Runs;
use crate::sink::segment::{self, Item, MAGIC, Tag};
use crate::sink::stream::Parcel;

impl Journal {
    /// The newest note of open runs that is whole.
    pub(super) fn noted_runs(&self) -> Vec<u8> {
        let unsynced = fs::read(self.settings.folder.join(UNSYNCED_RUNS)).unwrap_or_default();
        if Runs::is_whole(&unsynced) {
            return unsynced;
        }
        fs::read(self.settings.folder.join("runs")).unwrap_or_default()
    }

    /// Reads every segment that is there, oldest first.
    pub(super) fn recover(&mut self) -> io::Result<Recovered> {
        let mut numbers: Vec<u64> = Vec::new();
        for entry in fs::read_dir(&self.settings.folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".seg"));
            numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let mut marks = Vec::new();
        for number in numbers {
            self.number = number + 1;
            self.recover_segment(number, &mut marks)?;
        }
        for number in self.ledger.dead() {
            self.delete(number);
        }
        let mut recovered = Recovered::default();
        for (tag, (streams, kind)) in &self.streams {
            let (entries, _) = self.ledger.holds(*tag);
            recovered.streams.push(Left {
                tag: *tag,
                streams: Arc::clone(streams),
                kind: *kind,
                floor: self.ledger.floor(*tag),
                end: self.ledger.end(*tag),
                entries,
                span: self.ledger.span(*tag),
            });
        }
        recovered.streams.sort_by_key(|left| left.tag);
        recovered.marks = marks
            .into_iter()
            .filter(|(tag, order, _)| *order >= self.ledger.floor(*tag))
            .collect();
        Ok(recovered)
    }

    pub(super) fn recover_segment(
        &mut self,
        number: u64,
        marks: &mut Vec<(Tag, u64, RunMark)>,
    ) -> io::Result<()> {
        let path = self.path(number);
        let bytes = fs::read(&path)?;
        let whole = scan(&bytes, |item, length| {
            self.take_in(number, &item, length as u64, marks);
        });
        if whole < bytes.len() {
            let cut = bytes.len() - whole;
            tracing::warn!("{}: {cut} damaged bytes cut off", path.display());
            match OpenOptions::new().write(true).open(&path) {
                Ok(file) => file.set_len(whole as u64)?,
                Err(error) => tracing::warn!("cannot cut {}: {error}", path.display()),
            }
        }
        self.ledger.resized(number, whole as u64);
        Ok(())
    }

    /// One item of an earlier life.
    pub(super) fn take_in(
        &mut self,
        number: u64,
        item: &Item<'_>,
        length: u64,
        marks: &mut Vec<(Tag, u64, RunMark)>,
    ) {
        match item {
            Item::Stream {
                tag,
                kind,
                max_len,
                name,
            } => {
                self.ledger.add_stream(*tag, *kind);
                self.streams
                    .entry(*tag)
                    .or_insert_with(|| (segment::revived(name, *max_len), *kind));
            }
            Item::Parcel {
                tag,
                order,
                at_ms,
                entries,
                body,
                shape,
            } => {
                if !self.ledger.knows(*tag) {
                    return;
                }
                let wrote = extent(*order, *entries, length, *at_ms);
                self.ledger.wrote(number, *tag, wrote);
                // Only entries of their own can be marks; they are few.
                if *shape == segment::Shape::Entry
                    && let Some((streams, kind)) = self.streams.get(tag)
                    && let Some(body) = segment::body(streams, *kind, *at_ms, *shape, body)
                    && let Some(mark) = body.run_mark()
                {
                    marks.push((*tag, *order, mark));
                }
            }
            Item::Claim(claim) => {
                self.claims
                    .entry(claim.tag)
                    .or_default()
                    .add(claim.order, claim.count, claim.id);
            }
            Item::Done { tag, below } => {
                self.ledger.done(*tag, *below);
            }
        }
    }

    /// The entries of a stream from an order on, of one segment at most.
    pub(super) fn read(
        &mut self,
        tag: Tag,
        from: u64,
        enough: usize,
    ) -> (Vec<Parcel>, u64, ReadBack) {
        let Some(number) = self.ledger.from(tag, from) else {
            return (Vec::new(), u64::MAX, ReadBack::Whole);
        };
        if self
            .cache
            .as_ref()
            .is_none_or(|(cached, _)| *cached != number)
            || self.head.as_ref().is_some_and(|head| head.number == number)
        {
            match fs::read(self.path(number)) {
                Ok(bytes) => self.cache = Some((number, bytes)),
                Err(error) => {
                    tracing::error!("a part of the journal cannot be read: {error}");
                    let upto = self.ledger.behind(number, tag);
                    return (Vec::new(), upto, ReadBack::Damaged);
                }
            }
        }
        let bytes = match &self.cache {
            Some((_, bytes)) => bytes.as_slice(),
            None => &[],
        };
        let Some((streams, kind)) = self.streams.get(&tag) else {
            return (Vec::new(), u64::MAX, ReadBack::Whole);
        };
        let claims = self.claims.get(&tag).cloned().unwrap_or_default();
        let now = Instant::now();
        let mut parcels: Vec<Parcel> = Vec::new();
        let mut read = 0;
        let mut whole_read = ReadBack::Whole;
        let mut at = MAGIC.len();
        while read < enough
            && let Some((payload, length)) = segment::glance(bytes.get(at..).unwrap_or_default())
        {
            at += length;
            // Other streams' entries are passed over without a look at their checksum.
            if segment::parcel_of(payload) != Some(tag) {
                continue;
            }
            let Some((item, _)) = segment::next(bytes.get(at - length..).unwrap_or_default())
            else {
                tracing::error!("segment {number} of the journal is damaged at byte {at}");
                whole_read = ReadBack::Damaged;
                break;
            };
            let Item::Parcel {
                order,
                at_ms,
                entries,
                body,
                shape,
                ..
            } = item
            else {
                continue;
            };
            if order + entries <= from {
                continue;
            }
            let Some(body) = segment::body(streams, *kind, at_ms, shape, body) else {
                continue;
            };
            read += length;
            let whole = Parcel::revived(body, order, at_ms, now);
            for (range, claim) in claims.pieces(order.max(from)..order + entries) {
                let part = (range.start - order) as usize..(range.end - order) as usize;
                parcels.push(whole.part(part).claimed(claim));
            }
        }
        let upto = match parcels.last() {
            Some(last) if read >= enough => last.order() + last.len() as u64,
            Some(_) | None => self.ledger.behind(number, tag),
        };
        (parcels, upto, whole_read)
    }
}
