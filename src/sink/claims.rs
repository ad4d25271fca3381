//! claims, oldest first → under which ID each entry was sent last.
//!
//! An entry may be claimed several times: a refused one gets a new ID. The last claim counts.

use std::collections::BTreeMap;
use std::ops::Range;

use super::id::EntryId;
use super::segment::{Claim, Tag};

/// The claims of one stream: no two overlap.
#[derive(Clone, Debug, Default)]
pub struct Claims {
    /// First order → how many, and the first one's ID.
    runs: BTreeMap<u64, (u64, EntryId)>,
}

impl Claims {
    pub fn add(&mut self, order: u64, count: u64, id: EntryId) {
        let end = order.saturating_add(count);
        let touched: Vec<u64> = self
            .runs
            .range(..end)
            .rev()
            .take_while(|(start, (count, _))| *start + count > order)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            let Some((length, first)) = self.runs.remove(&start) else {
                continue;
            };
            if start < order {
                self.runs.insert(start, (order - start, first));
            }
            if start + length > end {
                let rest = start + length - end;
                self.runs
                    .insert(end, (rest, first.nth((end - start) as usize)));
            }
        }
        if count > 0 {
            self.runs.insert(order, (count, id));
        }
    }

    /// Everything below `floor` is delivered.
    pub fn forget_below(&mut self, floor: u64) {
        while let Some((start, (count, _))) = self.runs.first_key_value()
            && start + count <= floor
        {
            self.runs.pop_first();
        }
    }

    /// Cuts a range where claims begin and end: each piece has one claim or none.
    pub fn pieces(&self, range: Range<u64>) -> Vec<(Range<u64>, Option<EntryId>)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let covering = self
                .runs
                .range(..=at)
                .next_back()
                .filter(|(start, (count, _))| **start + count > at);
            let (end, id) = match covering {
                Some((start, (count, id))) => (start + count, Some(id.nth((at - start) as usize))),
                None => {
                    let next = self.runs.range(at..).next().map(|(start, _)| *start);
                    (next.unwrap_or(range.end), None)
                }
            };
            let end = end.min(range.end);
            pieces.push((at..end, id));
            at = end;
        }
        pieces
    }

    pub fn all(&self, tag: Tag) -> impl Iterator<Item = Claim> + '_ {
        self.runs.iter().map(move |(order, (count, id))| Claim {
            tag,
            order: *order,
            count: *count,
            id: *id,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::id::STEP;
    use super::*;

    #[test]
    fn the_last_claim_counts() {
        // Against a table of every order's last claim.
        let mut seed = 7u64;
        let mut random = |below: u64| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed % below
        };
        for _ in 0..300 {
            let mut claims = Claims::default();
            let mut table = [None; 64];
            for round in 1..12 {
                let (order, count) = (random(50), random(14));
                let id = EntryId {
                    ms: round,
                    seq: STEP,
                };
                claims.add(order, count, id);
                for at in order..order + count {
                    table[at as usize] = Some(id.nth((at - order) as usize));
                }
            }
            let mut at = 0;
            for (range, id) in claims.pieces(0..64) {
                assert_eq!(range.start, at);
                for order in range.clone() {
                    let wanted = id.map(|id| id.nth((order - range.start) as usize));
                    assert_eq!(table[order as usize], wanted, "order {order}");
                }
                at = range.end;
            }
            assert_eq!(at, 64);
        }
    }
}
