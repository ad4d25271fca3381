//! well-known types of C++ and Rust, the bytes of an object → their contents as text.
//!
//! Strings, vectors, slices and enums are shown as what they mean. Known by name and members as the standard libraries
//! lay them out (libstdc++, Rust's core and alloc); another layout is shown member by member instead.

use crate::crash::values::dies::Die;
use crate::crash::values::show::{
    MAX_DEPTH, MAX_MEMBERS, MAX_STRING, Printer, number, quoted, truncate,
};
use std::fmt::Write as _;

impl<'x, 'a> Printer<'_, 'x, 'a> {
    /// A Rust enum: the discriminant chooses the variant; the one without a value is for all others.
    pub(super) fn variant(
        &self,
        out: &mut String,
        kind: Die<'x, 'a>,
        part: Die<'x, 'a>,
        bytes: &[u8],
        depth: usize,
    ) {
        let tag = || {
            let (unit, value) = self.units.attribute(part, gimli::DW_AT_discr)?;
            let member = self.units.follow(unit, value)?;
            let size = self.size(self.units.type_of(member)?)?;
            let at = self.offset(member, kind)?;
            Some((number(bytes.get(at..at.checked_add(size)?)?), size))
        };
        let tag = tag();
        let variants = part
            .children(1024)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_variant);
        let mut chosen = None;
        for (_, variant) in variants {
            let value = self.units.number(variant, gimli::DW_AT_discr_value);
            let matches = match (value, tag) {
                (Some(value), Some((tag, size))) => truncate(value, size) == tag,
                (None, _) => {
                    chosen = chosen.or(Some(variant));
                    continue;
                }
                (Some(_), None) => false,
            };
            if matches {
                chosen = Some(variant);
                break;
            }
        }
        let members = chosen.map(|v| v.children(4)).unwrap_or_default();
        let Some((_, member)) = members
            .into_iter()
            .find(|(tag, _)| *tag == gimli::DW_TAG_member)
        else {
            out.push_str("<unknown variant>");
            return;
        };
        let _ = write!(out, "{}", self.units.name(member).unwrap_or_default());
        let Some(of) = self.units.type_of(member) else {
            return;
        };
        let has_fields = self
            .bare(of)
            .is_some_and(|s| s.members(2).iter().any(|(t, _)| *t == gimli::DW_TAG_member));
        if has_fields {
            let before = out.len();
            out.push(' ');
            self.member(
                out,
                member,
                of,
                self.offset(member, kind).unwrap_or(0),
                bytes,
                depth,
            );
            // `Busy {load = 7}`, but `Some(7)`.
            if out[before..].starts_with(" (") {
                out.remove(before);
            }
        }
    }

    /// `&str`, `String` and `std::string` as text. `false` where the type is none of these.
    pub(super) fn text_like(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8]) -> bool {
        let Some(name) = self.units.name(kind) else {
            return false;
        };
        let of = |what: &str| name.strip_prefix(what).and_then(unit_of);
        let (string, view) = (of("basic_string<"), of("basic_string_view<"));
        let (start, len) = match name.as_str() {
            "&str" | "&mut str" => (
                self.word(kind, bytes, "data_ptr"),
                self.word(kind, bytes, "length"),
            ),
            "String" => (
                self.first_pointer(kind, bytes, MAX_DEPTH),
                self.nested(kind, bytes, &["vec", "len"]),
            ),
            _ if string.is_some() => (
                self.nested(kind, bytes, &["_M_dataplus", "_M_p"]),
                self.word(kind, bytes, "_M_string_length"),
            ),
            _ if view.is_some() => (
                self.word(kind, bytes, "_M_str"),
                self.word(kind, bytes, "_M_len"),
            ),
            _ => return false,
        };
        let (Some(start), Some(len)) = (start, len) else {
            return false;
        };
        let unit = string.or(view).unwrap_or(1);
        let shown = usize::try_from(len).unwrap_or(usize::MAX).min(MAX_STRING);
        match self.memory.bytes(start, shown * unit) {
            Some(text) => {
                let text = narrow(&text, unit);
                let rest = if len > shown as u64 { "…" } else { "" };
                let _ = write!(out, "{}{rest}", quoted(&text));
            }
            None => {
                let _ = write!(out, "<{len} bytes at {start:#x}, not in core>");
            }
        }
        true
    }

    /// Slices and `Vec` as their elements.
    pub(super) fn sequence(
        &self,
        out: &mut String,
        kind: Die<'x, 'a>,
        bytes: &[u8],
        depth: usize,
    ) -> bool {
        let Some(name) = self.units.name(kind) else {
            return false;
        };
        if name.starts_with("vector<")
            && let Some((start, len, element)) = self.std_vector(kind, bytes)
        {
            self.elements(out, element, len, depth, |at, size| {
                self.memory.bytes(start.checked_add(at as u64)?, size)
            });
            return true;
        }
        let (start, len, element) = if name.starts_with("&[") || name.starts_with("&mut [") {
            let pointer = self
                .find_member(kind, "data_ptr")
                .and_then(|m| self.units.type_of(m));
            let element = pointer.and_then(|p| self.units.type_of(p));
            (
                self.word(kind, bytes, "data_ptr"),
                self.word(kind, bytes, "length"),
                element,
            )
        } else if name.starts_with("Vec<") {
            let parameter = kind.children(MAX_MEMBERS).into_iter().find(|(tag, die)| {
                *tag == gimli::DW_TAG_template_type_parameter
                    && self.units.name(*die).as_deref() == Some("T")
            });
            let element = parameter.and_then(|(_, die)| self.units.type_of(die));
            (
                self.first_pointer(kind, bytes, MAX_DEPTH),
                self.word(kind, bytes, "len"),
                element,
            )
        } else {
            return false;
        };
        let (Some(start), Some(len), Some(element)) = (start, len, element) else {
            return false;
        };
        self.elements(out, element, len, depth, |at, size| {
            self.memory.bytes(start.checked_add(at as u64)?, size)
        });
        true
    }

    fn find_member(&self, kind: Die<'x, 'a>, name: &str) -> Option<Die<'x, 'a>> {
        let members = kind
            .members(MAX_MEMBERS)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_member);
        members
            .map(|(_, die)| die)
            .find(|die| self.units.name(*die).as_deref() == Some(name))
    }

    /// A member, also of base classes; with its offset in the whole.
    fn inherited(
        &self,
        kind: Die<'x, 'a>,
        name: &str,
        depth: usize,
    ) -> Option<(Die<'x, 'a>, usize)> {
        if let Some(member) = self.find_member(kind, name) {
            return Some((member, self.offset(member, kind)?));
        }
        let depth = depth.checked_sub(1)?;
        let bases = kind
            .members(MAX_MEMBERS)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_inheritance);
        bases.map(|(_, base)| base).find_map(|base| {
            let (member, inner) =
                self.inherited(self.bare(self.units.type_of(base)?)?, name, depth)?;
            Some((member, self.offset(base, kind)?.checked_add(inner)?))
        })
    }

    /// `std::vector`: start, number of elements, and their type.
    fn std_vector(&self, kind: Die<'x, 'a>, bytes: &[u8]) -> Option<(u64, u64, Die<'x, 'a>)> {
        let implementation = self.inherited(kind, "_M_impl", MAX_DEPTH)?.0;
        let implementation = self.bare(self.units.type_of(implementation)?)?;
        let start = self.inherited(implementation, "_M_start", MAX_DEPTH)?.0;
        let element = self.units.type_of(self.bare(self.units.type_of(start)?)?)?;
        let first = self.nested(kind, bytes, &["_M_impl", "_M_start"])?;
        let end = self.nested(kind, bytes, &["_M_impl", "_M_finish"])?;
        let size = self.size(element).filter(|s| *s > 0)? as u64;
        Some((first, end.checked_sub(first)? / size, element))
    }

    fn word(&self, kind: Die<'x, 'a>, bytes: &[u8], name: &str) -> Option<u64> {
        self.nested(kind, bytes, &[name])
    }

    /// A word-sized member of a member.
    fn nested(&self, kind: Die<'x, 'a>, bytes: &[u8], path: &[&str]) -> Option<u64> {
        let mut kind = kind;
        let mut at = 0usize;
        for name in path {
            let (member, offset) = self.inherited(kind, name, MAX_DEPTH)?;
            at = at.checked_add(offset)?;
            kind = self.bare(self.units.type_of(member)?)?;
        }
        Some(number(bytes.get(at..at.checked_add(8)?)?))
    }

    /// The first pointer inside an object: where `Vec` and `String` keep their elements, however deep.
    fn first_pointer(&self, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) -> Option<u64> {
        let depth = depth.checked_sub(1)?;
        kind.members(MAX_MEMBERS)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_member)
            .find_map(|(_, member)| {
                let at = self.offset(member, kind)?;
                let of = self.bare(self.units.type_of(member)?)?;
                match of.tag()? {
                    gimli::DW_TAG_pointer_type => Some(number(bytes.get(at..at.checked_add(8)?)?)),
                    gimli::DW_TAG_structure_type => self.first_pointer(of, bytes.get(at..)?, depth),
                    _ => None,
                }
            })
    }
}

/// Bytes of one character, by the first of a template's arguments.
fn unit_of(arguments: &str) -> Option<usize> {
    match arguments.split([',', '>']).next()?.trim_end() {
        "char" | "char8_t" => Some(1),
        "char16_t" => Some(2),
        "char32_t" | "wchar_t" => Some(4),
        _ => None,
    }
}

/// UTF-16 and UTF-32 as UTF-8.
pub(super) fn narrow(text: &[u8], unit: usize) -> Vec<u8> {
    let plain: String = match unit {
        2 => {
            let units = text.as_chunks::<2>().0.iter();
            let units: Vec<u16> = units.map(|two| u16::from_le_bytes(*two)).collect();
            String::from_utf16_lossy(&units)
        }
        4 => {
            let units = text.as_chunks::<4>().0.iter();
            units
                .map(|four| char::from_u32(u32::from_le_bytes(*four)).unwrap_or('\u{fffd}'))
                .collect()
        }
        _ => return text.to_vec(),
    };
    plain.into_bytes()
}
