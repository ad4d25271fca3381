//! `.eh_frame_hdr` → where `.eh_frame` is, and the sorted table that finds a function's description in it.
//!
//! Reads the encodings that every linker writes (offsets of 32 bits, LSB 5.0 §10.6.2); with others, or a table that
//! claims more than there is, the caller indexes `.eh_frame` itself. Own code because a damaged count must not overflow.

use crate::crash::le;

const PCREL_SDATA4: u8 = 0x1b;
const UDATA4: u8 = 0x03;
const DATAREL_SDATA4: u8 = 0x3b;

#[derive(Clone, Copy, Debug)]
pub struct SearchTable<'a> {
    /// Link-time address of `.eh_frame`.
    pub eh_frame: u64,
    /// Link-time address of the header, to which the table's offsets are relative.
    address: u64,
    /// Pairs of 32-bit offsets: function, description; sorted by function.
    pairs: &'a [[u8; 8]],
}

impl<'a> SearchTable<'a> {
    /// `bytes` begin at the header and may go on behind it.
    pub fn parse(address: u64, bytes: &'a [u8]) -> Option<SearchTable<'a>> {
        let [1, PCREL_SDATA4, count_encoding, table_encoding] = le::array(bytes, 0)? else {
            return None;
        };
        let eh_frame = offset_from(address.wrapping_add(4), le::u32_at(bytes, 4)?);
        let count = match (count_encoding, table_encoding) {
            (UDATA4, DATAREL_SDATA4) => le::u32_at(bytes, 8)? as usize,
            _ => 0,
        };
        let pairs = bytes
            .get(12..)
            .and_then(|b| b.as_chunks::<8>().0.get(..count))
            .unwrap_or_default();
        Some(SearchTable {
            eh_frame,
            address,
            pairs,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// Link-time address of the description of the last function that begins at or before `address`.
    pub fn look_up(&self, address: u64) -> Option<u64> {
        let part =
            |pair: &[u8; 8], at| offset_from(self.address, le::u32_at(pair, at).unwrap_or(0));
        let after = self.pairs.partition_point(|pair| part(pair, 0) <= address);
        Some(part(self.pairs.get(after.checked_sub(1)?)?, 4))
    }
}

fn offset_from(base: u64, offset: u32) -> u64 {
    base.wrapping_add_signed(i64::from(offset as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(count: u32) -> Vec<u8> {
        let mut bytes = vec![1, PCREL_SDATA4, UDATA4, DATAREL_SDATA4];
        for word in [
            0x100u32,
            count,
            -0x800i32 as u32,
            0x110,
            -0x700i32 as u32,
            0x120,
        ] {
            bytes.extend(word.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn the_nearest_function_before_an_address_is_found() {
        let bytes = header(2);
        let table = SearchTable::parse(0x1000, &bytes).unwrap();
        assert_eq!(table.eh_frame, 0x1104);
        assert_eq!(table.look_up(0x7ff), None);
        assert_eq!(table.look_up(0x800), Some(0x1110));
        assert_eq!(table.look_up(0x8ff), Some(0x1110));
        assert_eq!(table.look_up(0x900), Some(0x1120));
    }

    #[test]
    fn a_count_that_cannot_be_is_no_table() {
        let bytes = header(u32::MAX);
        assert!(SearchTable::parse(0x1000, &bytes).unwrap().is_empty());
        assert!(SearchTable::parse(0x1000, &bytes[..6]).is_none());
    }
}
