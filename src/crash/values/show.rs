//! a type's DIE, the bytes of an object → text, in the notation of gdb.
//!
//! C strings, `std::string`, `&str`, `String`, slices and `Vec` show their contents, Rust enums the variant that is
//! there; all else is shown as laid out. Length, depth and elements are bounded: the value may be garbage.

use crate::crash::memory::Memory;
use crate::crash::values::dies::{Die, Units};
use crate::crash::values::locate::{Object, View};
use gimli::AttributeValue;
use std::fmt::Write as _;

/// Characters of one value; what is longer ends in `…`.
const MAX_TEXT: usize = 400;
/// Characters of one string.
pub(super) const MAX_STRING: usize = 200;
const MAX_ELEMENTS: u64 = 10;
pub(super) const MAX_DEPTH: usize = 6;
pub(super) const MAX_MEMBERS: usize = 64;

pub struct Printer<'v, 'x, 'a> {
    pub(super) units: &'x Units<'x, 'a>,
    pub(super) memory: &'v Memory<'a>,
}

impl<'v, 'x, 'a> Printer<'v, 'x, 'a> {
    pub fn new(view: &View<'v, 'x, 'a>) -> Printer<'v, 'x, 'a> {
        Printer {
            units: view.units,
            memory: view.memory,
        }
    }

    pub fn show(&self, kind: Die<'x, 'a>, object: &Object) -> String {
        let mut out = String::new();
        self.value(&mut out, kind, &object.bytes, MAX_DEPTH);
        shorten(out)
    }

    pub(super) fn value(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) {
        if out.len() > MAX_TEXT {
            return;
        }
        let Some(kind) = self.bare(kind) else {
            out.push_str("<unknown type>");
            return;
        };
        match kind.tag() {
            Some(gimli::DW_TAG_base_type) => out.push_str(&self.base(kind, bytes)),
            Some(
                gimli::DW_TAG_pointer_type
                | gimli::DW_TAG_reference_type
                | gimli::DW_TAG_rvalue_reference_type,
            ) => self.pointer(out, kind, number(bytes)),
            Some(gimli::DW_TAG_enumeration_type) => self.enumeration(out, kind, bytes),
            Some(gimli::DW_TAG_array_type) => self.array(out, kind, bytes, depth),
            Some(
                gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type | gimli::DW_TAG_union_type,
            ) => {
                self.structure(out, kind, bytes, depth);
            }
            _ => {
                let _ = write!(out, "{:#x}", number(bytes));
            }
        }
    }

    fn base(&self, kind: Die<'x, 'a>, bytes: &[u8]) -> String {
        let encoding = match self
            .units
            .attribute(kind, gimli::DW_AT_encoding)
            .map(|(_, v)| v)
        {
            Some(AttributeValue::Encoding(encoding)) => encoding,
            _ => gimli::DW_ATE_unsigned,
        };
        let signed = sign_extend(bytes);
        match encoding {
            gimli::DW_ATE_boolean => match number(bytes) {
                0 => "false".to_owned(),
                1 => "true".to_owned(),
                n => n.to_string(),
            },
            gimli::DW_ATE_float => float(bytes),
            gimli::DW_ATE_signed => signed.to_string(),
            gimli::DW_ATE_signed_char => character(signed, number(bytes)),
            gimli::DW_ATE_unsigned_char => character(i128::from(number(bytes)), number(bytes)),
            gimli::DW_ATE_UTF => match char::from_u32(number(bytes) as u32) {
                Some(c) => format!("{c:?}"),
                None => format!("{:#x}", number(bytes)),
            },
            _ if bytes.len() == 16 => wide(bytes).to_string(),
            _ => number(bytes).to_string(),
        }
    }

    fn is_character(&self, kind: Die<'x, 'a>) -> bool {
        let Some(kind) = self.bare(kind) else {
            return false;
        };
        let encoding = self
            .units
            .attribute(kind, gimli::DW_AT_encoding)
            .map(|(_, v)| v);
        let of_text = matches!(
            encoding,
            Some(AttributeValue::Encoding(
                gimli::DW_ATE_signed_char | gimli::DW_ATE_unsigned_char
            ))
        );
        of_text
            && self.size(kind) == Some(1)
            && self.units.name(kind).is_some_and(|n| n.contains("char"))
    }

    fn pointer(&self, out: &mut String, kind: Die<'x, 'a>, address: u64) {
        let _ = write!(out, "{address:#x}");
        let Some(target) = self.units.type_of(kind) else {
            return;
        };
        if address != 0 && self.is_character(target) {
            match self.memory.c_string(address, MAX_STRING) {
                Some((text, ended)) => {
                    let _ = write!(out, " {}{}", quoted(&text), if ended { "" } else { "…" });
                }
                None => out.push_str(" <not in core>"),
            }
        }
    }

    fn enumeration(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8]) {
        let (signed, unsigned) = (sign_extend(bytes), number(bytes));
        let named = kind.children(1024).into_iter().find(|(tag, die)| {
            let value = || match self.units.attribute(*die, gimli::DW_AT_const_value)?.1 {
                AttributeValue::Sdata(n) => Some(i128::from(n)),
                value => value.udata_value().map(i128::from),
            };
            *tag == gimli::DW_TAG_enumerator
                && value().is_some_and(|v| v == signed || v == i128::from(unsigned))
        });
        match named.and_then(|(_, die)| self.units.name(die)) {
            Some(name) => out.push_str(&name),
            None => {
                let _ = write!(out, "{signed}");
            }
        }
    }

    fn array(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) {
        let Some(element) = self.units.type_of(kind) else {
            return;
        };
        if self.is_character(element) {
            let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
            let shown = text.get(..text.len().min(MAX_STRING)).unwrap_or(text);
            let _ = write!(
                out,
                "{}{}",
                quoted(shown),
                if shown.len() < text.len() { "…" } else { "" }
            );
            return;
        }
        let count = self.count(kind).unwrap_or(0);
        self.elements(out, element, count, depth, |at, size| {
            bytes.get(at..at + size).map(<[u8]>::to_vec)
        });
    }

    pub(super) fn elements(
        &self,
        out: &mut String,
        element: Die<'x, 'a>,
        count: u64,
        depth: usize,
        read: impl Fn(usize, usize) -> Option<Vec<u8>>,
    ) {
        let (Some(size), Some(depth)) = (self.size(element), depth.checked_sub(1)) else {
            out.push_str("{…}");
            return;
        };
        out.push('{');
        for index in 0..count.min(MAX_ELEMENTS) {
            if index > 0 {
                out.push_str(", ");
            }
            match (index as usize)
                .checked_mul(size)
                .and_then(|at| read(at, size))
            {
                Some(bytes) => self.value(out, element, &bytes, depth),
                None => {
                    out.push_str("<not in core>");
                    break;
                }
            }
        }
        if count > MAX_ELEMENTS {
            let _ = write!(out, ", … {count} in all");
        }
        out.push('}');
    }

    fn structure(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) {
        if self.text_like(out, kind, bytes) {
            return;
        }
        let Some(depth) = depth.checked_sub(1) else {
            out.push_str("{…}");
            return;
        };
        let children = kind.children(MAX_MEMBERS);
        if let Some((_, part)) = children
            .iter()
            .find(|(tag, _)| *tag == gimli::DW_TAG_variant_part)
        {
            self.variant(out, kind, *part, bytes, depth);
            return;
        }
        if self.sequence(out, kind, bytes, depth) {
            return;
        }
        // Rust's tuples have members `__0`, `__1`, ….
        let is_tuple = children.iter().any(|(tag, member)| {
            *tag == gimli::DW_TAG_member && self.units.name(*member).as_deref() == Some("__0")
        });
        out.push(if is_tuple { '(' } else { '{' });
        let mut first = true;
        for (tag, member) in children {
            if !matches!(tag, gimli::DW_TAG_member | gimli::DW_TAG_inheritance) {
                continue;
            }
            // Static members are declared among the others but are not in the object.
            let Some(offset) = self.offset(member, kind) else {
                continue;
            };
            let Some(of) = self.units.type_of(member) else {
                continue;
            };
            if !first {
                out.push_str(", ");
            }
            first = false;
            match (tag, self.units.name(member)) {
                (gimli::DW_TAG_inheritance, _) => {
                    let _ = write!(out, "<{}> = ", self.type_name(of));
                }
                (_, Some(name)) if !is_tuple => {
                    let _ = write!(out, "{name} = ");
                }
                (_, Some(_) | None) => {}
            }
            self.member(out, member, of, offset, bytes, depth);
            if out.len() > MAX_TEXT {
                break;
            }
        }
        out.push(if is_tuple { ')' } else { '}' });
    }

    pub(super) fn offset(&self, member: Die<'x, 'a>, parent: Die<'x, 'a>) -> Option<usize> {
        let entry = member.unit.entry(member.offset).ok()?;
        if entry.has_attr(gimli::DW_AT_external) {
            return None;
        }
        let given = entry.attr_value(gimli::DW_AT_data_member_location);
        let is_union = parent.tag() == Some(gimli::DW_TAG_union_type);
        match given {
            Some(value) => usize::try_from(value.udata_value()?).ok(),
            None if entry.has_attr(gimli::DW_AT_data_bit_offset) || is_union => Some(0),
            None => (entry.tag() == gimli::DW_TAG_member).then_some(0),
        }
    }

    pub(super) fn member(
        &self,
        out: &mut String,
        member: Die<'x, 'a>,
        of: Die<'x, 'a>,
        offset: usize,
        bytes: &[u8],
        depth: usize,
    ) {
        if let (Some(size), Some(at)) = (
            self.units.number(member, gimli::DW_AT_bit_size),
            self.units.number(member, gimli::DW_AT_data_bit_offset),
        ) {
            let first = (at / 8) as usize;
            let word = number(bytes.get(first..).unwrap_or_default()) >> (at % 8);
            let mask = if size >= 64 {
                u64::MAX
            } else {
                (1 << size) - 1
            };
            let _ = write!(out, "{}", word & mask);
            return;
        }
        let size = self.size(of).unwrap_or(0);
        match offset
            .checked_add(size)
            .and_then(|end| bytes.get(offset..end))
        {
            Some(part) => self.value(out, of, part, depth),
            None => out.push_str("<not in core>"),
        }
    }
}

/// The first eight bytes as a number.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .take(8)
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte))
}

fn wide(bytes: &[u8]) -> u128 {
    bytes
        .iter()
        .take(16)
        .rev()
        .fold(0, |n, byte| n << 8 | u128::from(*byte))
}

fn sign_extend(bytes: &[u8]) -> i128 {
    let bits = bytes.len().min(16) * 8;
    let value = wide(bytes);
    if bits == 0 || bits == 128 {
        return value as i128;
    }
    let shift = 128 - bits;
    ((value << shift) as i128) >> shift
}

pub(super) fn truncate(value: u64, size: usize) -> u64 {
    if size >= 8 {
        value
    } else {
        value & ((1 << (size * 8)) - 1)
    }
}

fn float(bytes: &[u8]) -> String {
    if let Ok(eight) = <[u8; 8]>::try_from(bytes) {
        return format!("{:?}", f64::from_le_bytes(eight));
    }
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return format!("{:?}", f32::from_le_bytes(four));
    }
    format!("{:#x}", wide(bytes))
}

fn character(value: i128, byte: u64) -> String {
    match u8::try_from(byte) {
        Ok(byte) => format!("{value} '{}'", byte.escape_ascii()),
        Err(_) => value.to_string(),
    }
}

pub(super) fn quoted(text: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(text))
}

pub(super) fn shorten(mut text: String) -> String {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_their_sign_and_width() {
        assert_eq!(sign_extend(&[0xff]), -1);
        assert_eq!(sign_extend(&[0xff, 0x7f]), 32767);
        assert_eq!(sign_extend(&(-5i64).to_le_bytes()), -5);
        assert_eq!(sign_extend(&[0xff; 16]), -1);
        assert_eq!(number(&[1, 2]), 0x201);
        assert_eq!(truncate(u64::MAX, 1), 0xff);
    }

    #[test]
    fn text_is_quoted_and_bounded() {
        assert_eq!(quoted(b"a\n\"b\""), r#""a\n\"b\"""#);
        assert_eq!(character(-1, 0xff), r"-1 '\xff'");
        assert!(shorten("é".repeat(1000)).ends_with('…'));
        assert_eq!(float(&2.5f64.to_le_bytes()), "2.5");
    }
}
