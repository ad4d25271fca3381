//! bytes, offset → little-endian integers, or `None` past the end.
//!
//! Both machines that are read here are little-endian, so one family of functions is enough. Nothing panics:
//! an offset that overflows or lies outside the bytes is `None`.

/// `len` bytes from `offset`.
pub fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

/// As many of `len` bytes from `offset` as there are: a truncated file keeps what it has.
pub fn slice_up_to(bytes: &[u8], offset: u64, len: u64) -> &[u8] {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(bytes.len());
    let room = bytes.len() - start;
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(room);
    bytes.get(start..start + len).unwrap_or_default()
}

pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(array(bytes, offset)?))
}

pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(array(bytes, offset)?))
}

pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(array(bytes, offset)?))
}

/// `N` bytes from `offset` as an array.
pub fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

/// The bytes from `offset` up to the next zero byte, or to the end where there is none.
pub fn c_string(bytes: &[u8], offset: usize) -> Option<&[u8]> {
    let rest = bytes.get(offset..)?;
    let end = memchr::memchr(0, rest).unwrap_or(rest.len());
    rest.get(..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn past_the_end_is_none() {
        assert_eq!(u64_at(&[1, 0, 0, 0, 0, 0, 0, 0], 0), Some(1));
        assert_eq!(u64_at(&[0; 7], 0), None);
        assert_eq!(u32_at(&[0; 8], usize::MAX), None);
        assert_eq!(slice(&[0; 8], u64::MAX, u64::MAX), None);
        assert_eq!(slice_up_to(&[1, 2, 3], 1, u64::MAX), &[2, 3]);
        assert_eq!(slice_up_to(&[1, 2, 3], u64::MAX, 1), &[] as &[u8]);
    }

    #[test]
    fn a_string_ends_at_zero_or_at_the_end() {
        assert_eq!(c_string(b"ab\0c", 0), Some(&b"ab"[..]));
        assert_eq!(c_string(b"ab\0c", 3), Some(&b"c"[..]));
        assert_eq!(c_string(b"ab", 3), None);
    }
}
