//! address → bytes of the crashed process.
//!
//! Regions come from the core; where the core left out what a file holds (read-only mappings), the file's bytes
//! stand in. Reads never panic and never cross into what is not known: they fail as a whole.

use crate::crash::le;

/// What may be done with a region, as the process had it mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    pub write: bool,
    pub execute: bool,
}

/// One mapping of the process. `dumped` and `backing` both begin at `start` and may be shorter than the region.
#[derive(Clone, Debug)]
pub struct Region<'a> {
    pub start: u64,
    pub end: u64,
    pub access: Access,
    pub dumped: &'a [u8],
    pub backing: &'a [u8],
}

impl<'a> Region<'a> {
    /// The known bytes from `address` on, without crossing from dumped to backing bytes.
    fn from(&self, address: u64) -> &'a [u8] {
        let skip = address - self.start;
        let dumped = le::slice_up_to(self.dumped, skip, u64::MAX);
        let bytes = if dumped.is_empty() {
            le::slice_up_to(self.backing, skip, u64::MAX)
        } else {
            dumped
        };
        le::slice_up_to(bytes, 0, self.end - address)
    }
}

/// All mappings, sorted and without overlap.
#[derive(Clone, Debug, Default)]
pub struct Memory<'a> {
    regions: Vec<Region<'a>>,
}

impl<'a> Memory<'a> {
    /// Sorts; of overlapping regions the one that begins first keeps the common part.
    pub fn new(mut regions: Vec<Region<'a>>) -> Memory<'a> {
        regions.retain(|r| r.start < r.end);
        regions.sort_by_key(|r| r.start);
        let mut kept: Vec<Region<'a>> = Vec::with_capacity(regions.len());
        for region in regions {
            if kept.last().is_none_or(|last| last.end <= region.start) {
                kept.push(region);
            }
        }
        Memory { regions: kept }
    }

    pub fn regions(&self) -> &[Region<'a>] {
        &self.regions
    }

    pub fn region(&self, address: u64) -> Option<&Region<'a>> {
        let after = self.regions.partition_point(|r| r.start <= address);
        self.regions
            .get(after.checked_sub(1)?)
            .filter(|r| address < r.end)
    }

    /// Lets file bytes stand in for what the core left out of the read-only regions in `start..`.
    /// Writable ones are never filled: the file does not hold what the process wrote.
    pub fn back(&mut self, start: u64, bytes: &'a [u8]) {
        let end = start.saturating_add(bytes.len() as u64);
        let first = self.regions.partition_point(|r| r.end <= start);
        for region in self
            .regions
            .iter_mut()
            .skip(first)
            .take_while(|r| r.start < end)
        {
            if !region.access.write && region.start >= start {
                region.backing =
                    le::slice_up_to(bytes, region.start - start, region.end - region.start);
            }
        }
    }

    /// Fills `out` from `address`; `false`, with `out` undefined, where a byte of it is not known.
    pub fn read(&self, address: u64, out: &mut [u8]) -> bool {
        let mut done = 0;
        while done < out.len() {
            let Some(at) = address.checked_add(done as u64) else {
                return false;
            };
            let known = self.known(at);
            let count = known.len().min(out.len() - done);
            if count == 0 {
                return false;
            }
            if let (Some(to), Some(from)) = (out.get_mut(done..done + count), known.get(..count)) {
                to.copy_from_slice(from);
            }
            done += count;
        }
        true
    }

    /// The known bytes from `address` to the end of its piece; empty where nothing is known.
    pub fn known(&self, address: u64) -> &'a [u8] {
        self.region(address)
            .map(|r| r.from(address))
            .unwrap_or_default()
    }

    pub fn u64(&self, address: u64) -> Option<u64> {
        self.array(address).map(u64::from_le_bytes)
    }

    pub fn u32(&self, address: u64) -> Option<u32> {
        self.array(address).map(u32::from_le_bytes)
    }

    pub fn array<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.read(address, &mut bytes).then_some(bytes)
    }

    /// `len` bytes in one piece, copied.
    pub fn bytes(&self, address: u64, len: usize) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < len {
            let known = self.known(address.checked_add(out.len() as u64)?);
            if known.is_empty() {
                return None;
            }
            out.extend_from_slice(known.get(..known.len().min(len - out.len()))?);
        }
        Some(out)
    }

    /// A C string of at most `limit` bytes, and whether its end was reached.
    pub fn c_string(&self, address: u64, limit: usize) -> Option<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        while out.len() < limit {
            let known = self.known(address.checked_add(out.len() as u64)?);
            let piece = known.get(..known.len().min(limit - out.len()))?;
            if piece.is_empty() {
                return (!out.is_empty()).then_some((out, false));
            }
            if let Some(end) = memchr::memchr(0, piece) {
                out.extend_from_slice(piece.get(..end)?);
                return Some((out, true));
            }
            out.extend_from_slice(piece);
        }
        Some((out, false))
    }

    pub fn is_executable(&self, address: u64) -> bool {
        self.region(address).is_some_and(|r| r.access.execute)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region<'a>(start: u64, end: u64, write: bool, dumped: &'a [u8]) -> Region<'a> {
        Region {
            start,
            end,
            access: Access {
                write,
                execute: false,
            },
            dumped,
            backing: &[],
        }
    }

    #[test]
    fn reads_across_regions_and_into_backing() {
        let mut memory = Memory::new(vec![
            region(4, 8, true, b"efgh"),
            region(0, 4, false, b"ab"),
        ]);
        assert_eq!(memory.array::<4>(0), None);
        memory.back(0, b"ABCDEFGH");
        assert_eq!(memory.array::<4>(0), Some(*b"abCD"));
        assert_eq!(memory.array::<6>(1), Some(*b"bCDefg"));
        assert_eq!(memory.array::<2>(7), None);
        assert_eq!(memory.u64(u64::MAX), None);
    }

    #[test]
    fn overlapping_regions_do_not_confuse_lookups() {
        let memory = Memory::new(vec![
            region(0, 8, false, b"abcdefgh"),
            region(4, 6, false, b"XY"),
            region(8, 9, false, b"i"),
        ]);
        assert_eq!(memory.array::<9>(0), Some(*b"abcdefghi"));
    }

    #[test]
    fn strings_end_at_zero_at_the_limit_or_where_memory_ends() {
        let memory = Memory::new(vec![region(0, 4, false, b"ab\0c")]);
        assert_eq!(memory.c_string(0, 9), Some((b"ab".to_vec(), true)));
        assert_eq!(memory.c_string(0, 1), Some((b"a".to_vec(), false)));
        assert_eq!(memory.c_string(3, 9), Some((b"c".to_vec(), false)));
        assert_eq!(memory.c_string(9, 9), None);
    }
}
