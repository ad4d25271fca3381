//! a type's DIE, the bytes of an object → text, in the notation of gdb.
//!
//! C strings, `std::string`, `&str`, `String`, slices and `Vec` show their contents, Rust enums the variant that is
//! there; all else is shown as laid out. Length, depth and elements are bounded: the value may be garbage.

use crate::crash::machine::Machine;
use crate::crash::memory::Memory;
use crate::crash::values::contents::narrow;
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
/// Bytes of what a reference refers to.
const MAX_REFERRED: usize = 64 << 10;

pub struct Printer<'v, 'x, 'a> {
    pub(super) units: &'x Units<'x, 'a>,
    pub(super) memory: &'v Memory<'a>,
    machine: Machine,
}

impl<'v, 'x, 'a> Printer<'v, 'x, 'a> {
    pub fn new(view: &View<'v, 'x, 'a>) -> Printer<'v, 'x, 'a> {
        Printer {
            units: view.units,
            memory: view.memory,
            machine: view.registers.machine,
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
            Some(gimli::DW_TAG_reference_type | gimli::DW_TAG_rvalue_reference_type) => {
                self.reference(out, kind, number(bytes), depth);
            }
            Some(gimli::DW_TAG_pointer_type) => self.pointer(out, kind, number(bytes)),
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
            gimli::DW_ATE_float => float(bytes, self.machine),
            gimli::DW_ATE_complex_float => {
                let (real, imaginary) = bytes.split_at(bytes.len() / 2);
                format!(
                    "{} + {}i",
                    float(real, self.machine),
                    float(imaginary, self.machine)
                )
            }
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

    /// Bytes of a character of UTF-16, UTF-32 or `wchar_t`.
    fn wide_unit(&self, kind: Die<'x, 'a>) -> Option<usize> {
        let kind = self.bare(kind)?;
        let name = self.units.name(kind)?;
        let size = self.size(kind)?;
        (["char16_t", "char32_t", "wchar_t"].contains(&name.as_str()) && matches!(size, 2 | 4))
            .then_some(size)
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

    /// What it refers to; for all but texts also where that is.
    fn reference(&self, out: &mut String, kind: Die<'x, 'a>, address: u64, depth: usize) {
        let target = self.units.type_of(kind);
        let object = target.and_then(|target| {
            let size = self.size(target).filter(|size| *size <= MAX_REFERRED)?;
            Some((
                target,
                depth.checked_sub(1)?,
                self.memory.bytes(address, size)?,
            ))
        });
        let Some((target, depth, bytes)) = object else {
            let _ = write!(out, "{address:#x}");
            return;
        };
        let mut value = String::new();
        self.value(&mut value, target, &bytes, depth);
        if !value.starts_with('"') {
            let _ = write!(out, "@{address:#x}: ");
        }
        out.push_str(&value);
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
        if let (true, Some(unit)) = (address != 0, self.wide_unit(target)) {
            let text = (0..MAX_STRING as u64).map_while(|index| {
                let at = address.checked_add(index * unit as u64)?;
                let character = self.memory.bytes(at, unit)?;
                character.iter().any(|byte| *byte != 0).then_some(character)
            });
            let text: Vec<u8> = text.flat_map(|character| character.to_vec()).collect();
            let _ = write!(out, " {}", quoted(&narrow(&text, unit)));
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
        let dimensions = self.dimensions(kind);
        let Some(dimensions) = dimensions.into_iter().collect::<Option<Vec<u64>>>() else {
            // Its length is known at run time only.
            out.push_str("{…}");
            return;
        };
        self.rows(out, element, &dimensions, bytes, depth);
    }

    /// An array of arrays, whose elements lie one behind the other.
    fn rows(
        &self,
        out: &mut String,
        element: Die<'x, 'a>,
        dimensions: &[u64],
        bytes: &[u8],
        depth: usize,
    ) {
        let Some((count, inner)) = dimensions.split_first() else {
            return;
        };
        let text = inner
            .is_empty()
            .then(|| self.text_of(element, bytes))
            .flatten();
        if let Some(text) = text {
            out.push_str(&text);
            return;
        }
        if inner.is_empty() {
            self.elements(out, element, *count, depth, |at, size| {
                bytes.get(at..at.checked_add(size)?).map(<[u8]>::to_vec)
            });
            return;
        }
        let row = inner
            .iter()
            .try_fold(self.size(element).unwrap_or(0), |size, n| {
                size.checked_mul(usize::try_from(*n).ok()?)
            });
        let (Some(row), Some(depth)) = (row.filter(|row| *row > 0), depth.checked_sub(1)) else {
            out.push_str("{…}");
            return;
        };
        out.push('{');
        for (index, row) in bytes.chunks(row).take(MAX_ELEMENTS as usize).enumerate() {
            if index > 0 {
                out.push_str(", ");
            }
            self.rows(out, element, inner, row, depth);
        }
        if *count > MAX_ELEMENTS {
            let _ = write!(out, ", … {count} in all");
        }
        out.push('}');
    }

    /// An array of characters as text. What stands behind the end of a C string is of no interest; bytes that are no
    /// such string are shown whole.
    fn text_of(&self, element: Die<'x, 'a>, bytes: &[u8]) -> Option<String> {
        if let Some(unit) = self.wide_unit(element) {
            let ends = |character: &&[u8]| character.iter().any(|byte| *byte != 0);
            let text: Vec<u8> = bytes
                .chunks(unit)
                .take_while(ends)
                .flatten()
                .copied()
                .collect();
            let shown = text.get(..MAX_STRING).unwrap_or(&text);
            return Some(quoted(&narrow(shown, unit)));
        }
        if !self.is_character(element) {
            return None;
        }
        let first = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let is_text = self.units.name(self.bare(element)?)?.as_str() == "char"
            && !first.is_empty()
            && std::str::from_utf8(first).is_ok_and(|text| !text.contains(is_odd));
        let end = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |at| at + 1);
        let text = if is_text { first } else { bytes.get(..end)? };
        let shown = text.get(..MAX_STRING).unwrap_or(text);
        let rest = if shown.len() < text.len() { "…" } else { "" };
        Some(format!("{}{rest}", quoted(shown)))
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
        let children = kind.members(MAX_MEMBERS);
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

    /// Also of an enumeration, by what it is made of.
    fn is_signed(&self, kind: Die<'x, 'a>) -> bool {
        let Some(kind) = self.bare(kind) else {
            return false;
        };
        if kind.tag() == Some(gimli::DW_TAG_enumeration_type) {
            let of = self.units.type_of(kind).and_then(|of| self.bare(of));
            return of.is_some_and(|of| self.has_sign(of));
        }
        self.has_sign(kind)
    }

    fn has_sign(&self, kind: Die<'x, 'a>) -> bool {
        let encoding = self.units.attribute(kind, gimli::DW_AT_encoding);
        matches!(
            encoding,
            Some((
                _,
                AttributeValue::Encoding(gimli::DW_ATE_signed | gimli::DW_ATE_signed_char)
            ))
        )
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
            let unused = 128u64.saturating_sub(size.min(64)) as u32;
            // To the top and back: with its sign where it has one.
            let word = wide(bytes.get(first..).unwrap_or_default()) >> (at % 8) << unused;
            let word = match self.is_signed(of) {
                true => (word as i128 >> unused) as u128,
                false => word >> unused,
            };
            let whole = word.to_le_bytes();
            let length = self.size(of).unwrap_or(8).min(whole.len());
            self.value(out, of, whole.get(..length).unwrap_or_default(), depth);
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

fn float(bytes: &[u8], machine: Machine) -> String {
    if let Ok(eight) = <[u8; 8]>::try_from(bytes) {
        return format!("{:?}", f64::from_le_bytes(eight));
    }
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return format!("{:?}", f32::from_le_bytes(four));
    }
    // (bits of the exponent, bits of the fraction)
    let (exponent, fraction) = match (bytes.len(), machine) {
        (2, _) => (5, 10),
        // The x87's, in ten of the sixteen bytes: its leading one is written down.
        (16, Machine::X86_64) => (15, 64),
        (16, Machine::Aarch64) => (15, 112),
        (length, _) => return format!("<{length} bytes>"),
    };
    let word = wide(bytes);
    let has_one = fraction == 64;
    let power = (word >> fraction) as i32 & ((1 << exponent) - 1);
    let bias = (1 << (exponent - 1)) - 1;
    let digits = (word & ((1 << fraction) - 1)) as f64 / 2f64.powi(fraction - i32::from(has_one));
    let sign = match word >> (fraction + exponent) & 1 {
        0 => 1.0,
        _ => -1.0,
    };
    let (lead, power) = match power {
        0 => (0.0, 1),
        power => (if has_one { 0.0 } else { 1.0 }, power),
    };
    if power == (1 << exponent) - 1 {
        let rest = if has_one { digits - 1.0 } else { digits };
        return format!(
            "{:?}",
            if rest == 0.0 {
                sign * f64::INFINITY
            } else {
                f64::NAN
            }
        );
    }
    format!("{:?}", sign * (lead + digits) * 2f64.powi(power - bias))
}

fn character(value: i128, byte: u64) -> String {
    match u8::try_from(byte) {
        Ok(byte) => format!("{value} '{}'", byte.escape_ascii()),
        Err(_) => value.to_string(),
    }
}

/// Texts stay readable, bytes that are none too.
pub(super) fn quoted(text: &[u8]) -> String {
    let mut out = String::from('"');
    for chunk in text.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' => out.push('\''),
                odd if is_odd(odd) && odd.is_ascii() => {
                    let _ = write!(out, "\\x{:02x}", u32::from(odd));
                }
                character => out.extend(character.escape_debug()),
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out.push('"');
    out
}

/// A control character that no text has.
fn is_odd(character: char) -> bool {
    character.is_control() && !['\n', '\r', '\t', '\u{1b}'].contains(&character)
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
        assert_eq!(quoted(b"\0A\xff\xc3\xa9'"), "\"\\x00A\\xffé'\"");
        assert_eq!(float(&2.5f64.to_le_bytes(), Machine::X86_64), "2.5");
        let extended = [
            0, 0, 0, 0, 0, 0, 0, 0xa0, 0xff, 0x3f, 0x33, 0x83, 5, 0, 0, 0,
        ];
        assert_eq!(float(&extended, Machine::X86_64), "1.25");
        let quad = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x40, 0xff, 0xbf];
        assert_eq!(float(&quad, Machine::Aarch64), "-1.25");
        assert_eq!(float(&0x3e00u16.to_le_bytes(), Machine::X86_64), "1.5");
        assert_eq!(float(&0xfc00u16.to_le_bytes(), Machine::X86_64), "-inf");
        assert_eq!(float(&[0; 16], Machine::X86_64), "0.0");
    }
}
