//! counts ↔ the file `counts`: what Redis may not have.
//!
//! A frame with the number of the next batch, then a frame for each count with the number
//! of its batch, 0 for those that have none yet. The file is replaced as a whole; one that is
//! damaged all the same is worth what is whole at its beginning.

use std::sync::Arc;

use super::segment::{Reader, frame, next_frame, revived};
use crate::record::{Count, CountKind, Streams};

const HEAD: u8 = 1;
const INCREMENT: u8 = 2;
const SET: u8 = 3;

pub fn head(out: &mut Vec<u8>, next: u64) {
    frame(out, HEAD, |out| out.extend_from_slice(&next.to_le_bytes()));
}

pub fn count(out: &mut Vec<u8>, batch: u64, count: &Count) {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        out.extend_from_slice(text.as_bytes());
    };
    let rest = |out: &mut Vec<u8>| {
        out.extend_from_slice(&batch.to_le_bytes());
        out.extend_from_slice(&count.streams.trim.max_len.to_le_bytes());
        text(out, count.streams.name());
        text(out, &count.key);
    };
    match &count.what {
        CountKind::Increment(by) => frame(out, INCREMENT, |out| {
            rest(out);
            out.extend_from_slice(&by.to_le_bytes());
        }),
        CountKind::Set(digits) => frame(out, SET, |out| {
            rest(out);
            text(out, digits);
        }),
    }
}

/// The number of the next batch, and the counts with the numbers of theirs.
pub fn read(mut bytes: &[u8]) -> Option<(u64, Vec<(u64, Count)>)> {
    let (payload, length) = next_frame(bytes)?;
    let mut reader = Reader(payload);
    if reader.u8()? != HEAD {
        return None;
    }
    let next = reader.u64()?;
    let mut counts: Vec<(u64, Count)> = Vec::new();
    bytes = bytes.get(length..)?;
    while let Some((payload, length)) = next_frame(bytes) {
        let known = counts.last().map(|(_, count)| &count.streams);
        let Some(found) = one(payload, known) else {
            break;
        };
        counts.push(found);
        bytes = bytes.get(length..).unwrap_or_default();
    }
    Some((next, counts))
}

fn one(payload: &[u8], known: Option<&Arc<Streams>>) -> Option<(u64, Count)> {
    let mut reader = Reader(payload);
    let kind = reader.u8()?;
    let (batch, max_len) = (reader.u64()?, reader.u64()?);
    let name = std::str::from_utf8(reader.text()?).ok()?;
    let key = std::str::from_utf8(reader.text()?).ok()?.to_owned();
    let what = match kind {
        INCREMENT => CountKind::Increment(reader.u64()?),
        SET => CountKind::Set(std::str::from_utf8(reader.text()?).ok()?.to_owned()),
        _ => return None,
    };
    let streams = match known {
        Some(known) if **known.name() == *name => Arc::clone(known),
        _ => revived(name, max_len),
    };
    Some((batch, Count { streams, key, what }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_damage_costs_the_end_only() {
        let streams = revived("cam", 9);
        let mut bytes = Vec::new();
        head(&mut bytes, 42);
        for (batch, what) in [
            (41, CountKind::Increment(7)),
            (0, CountKind::Set("007".to_owned())),
        ] {
            let one = Count {
                streams: Arc::clone(&streams),
                key: "frames".to_owned(),
                what,
            };
            count(&mut bytes, batch, &one);
        }
        let (next, counts) = read(&bytes).unwrap();
        assert_eq!((next, counts.len()), (42, 2));
        assert_eq!(counts[0].0, 41);
        assert_eq!(counts[0].1.what, CountKind::Increment(7));
        assert_eq!(counts[1].1.what, CountKind::Set("007".to_owned()));
        assert_eq!(&**counts[1].1.streams.name(), "cam");
        for cut in 0..bytes.len() {
            if let Some((next, counts)) = read(&bytes[..cut]) {
                assert!(next == 42 && counts.len() < 2);
            }
        }
    }
}
