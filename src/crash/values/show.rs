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
const MAX_STRING: usize = 200;
const MAX_ELEMENTS: u64 = 10;
const MAX_DEPTH: usize = 6;
const MAX_MEMBERS: usize = 64;
/// Modifiers (`const`, typedefs) around one type.
const MAX_MODIFIERS: usize = 32;

pub struct Printer<'v, 'x, 'a> {
    units: &'x Units<'x, 'a>,
    memory: &'v Memory<'a>,
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

    /// The name as the language writes it, as far as simple types go.
    pub fn type_name(&self, kind: Die<'x, 'a>) -> String {
        shorten(self.name(kind, MAX_DEPTH))
    }

    fn name(&self, kind: Die<'x, 'a>, depth: usize) -> String {
        let inner = || match (self.units.type_of(kind), depth.checked_sub(1)) {
            (Some(inner), Some(depth)) => self.name(inner, depth),
            (Some(_), None) => "…".to_owned(),
            (None, _) => "void".to_owned(),
        };
        let own = self.units.name(kind);
        match (own, kind.tag()) {
            (Some(name), _) => name,
            (None, Some(gimli::DW_TAG_pointer_type)) => format!("{} *", inner()),
            (None, Some(gimli::DW_TAG_reference_type)) => format!("{} &", inner()),
            (None, Some(gimli::DW_TAG_rvalue_reference_type)) => format!("{} &&", inner()),
            (None, Some(gimli::DW_TAG_const_type)) => format!("const {}", inner()),
            (None, Some(gimli::DW_TAG_volatile_type)) => format!("volatile {}", inner()),
            (None, Some(gimli::DW_TAG_restrict_type | gimli::DW_TAG_atomic_type)) => inner(),
            (None, Some(gimli::DW_TAG_array_type)) => {
                let count = self.count(kind).map_or_else(String::new, |c| c.to_string());
                format!("{} [{count}]", inner())
            }
            (None, Some(gimli::DW_TAG_subroutine_type)) => format!("{} ()", inner()),
            (None, Some(gimli::DW_TAG_structure_type | gimli::DW_TAG_class_type)) => {
                "struct {…}".to_owned()
            }
            (None, Some(gimli::DW_TAG_union_type)) => "union {…}".to_owned(),
            (None, Some(gimli::DW_TAG_enumeration_type)) => "enum {…}".to_owned(),
            (None, _) => "?".to_owned(),
        }
    }

    /// Bytes of an object of this type.
    pub fn size(&self, kind: Die<'x, 'a>) -> Option<usize> {
        let kind = self.bare(kind)?;
        if let Some(size) = self.units.number(kind, gimli::DW_AT_byte_size) {
            return usize::try_from(size).ok();
        }
        match kind.tag()? {
            gimli::DW_TAG_pointer_type
            | gimli::DW_TAG_reference_type
            | gimli::DW_TAG_rvalue_reference_type => Some(8),
            gimli::DW_TAG_array_type => {
                let element = self.size(self.units.type_of(kind)?)?;
                element.checked_mul(usize::try_from(self.count(kind)?).ok()?)
            }
            gimli::DW_TAG_enumeration_type => self.size(self.units.type_of(kind)?),
            _ => None,
        }
    }

    /// Without typedefs and qualifiers, and the definition where this is a declaration with a signature.
    fn bare(&self, kind: Die<'x, 'a>) -> Option<Die<'x, 'a>> {
        let mut kind = kind;
        for _ in 0..MAX_MODIFIERS {
            match kind.tag()? {
                gimli::DW_TAG_typedef
                | gimli::DW_TAG_const_type
                | gimli::DW_TAG_volatile_type
                | gimli::DW_TAG_restrict_type
                | gimli::DW_TAG_atomic_type
                | gimli::DW_TAG_immutable_type => kind = self.units.type_of(kind)?,
                gimli::DW_TAG_structure_type
                | gimli::DW_TAG_class_type
                | gimli::DW_TAG_union_type => {
                    let signature = kind
                        .unit
                        .entry(kind.offset)
                        .ok()?
                        .attr_value(gimli::DW_AT_signature);
                    return match signature {
                        Some(signature) => self.units.follow(kind.unit, signature),
                        None => Some(kind),
                    };
                }
                _ => return Some(kind),
            }
        }
        None
    }

    fn value(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) {
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

    /// Elements of an array, from its bounds.
    fn count(&self, kind: Die<'x, 'a>) -> Option<u64> {
        let ranges = kind
            .children(8)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_subrange_type);
        let counts = ranges.map(|(_, range)| {
            let upper = || {
                self.units
                    .number(range, gimli::DW_AT_upper_bound)?
                    .checked_add(1)
            };
            self.units.number(range, gimli::DW_AT_count).or_else(upper)
        });
        counts
            .collect::<Option<Vec<u64>>>()?
            .into_iter()
            .try_fold(1u64, u64::checked_mul)
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

    fn elements(
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
        out.push('{');
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
                (_, Some(name)) => {
                    let _ = write!(out, "{name} = ");
                }
                (_, None) => {}
            }
            self.member(out, member, of, offset, bytes, depth);
            if out.len() > MAX_TEXT {
                break;
            }
        }
        out.push('}');
    }

    fn offset(&self, member: Die<'x, 'a>, parent: Die<'x, 'a>) -> Option<usize> {
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

    fn member(
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

    /// A Rust enum: the discriminant chooses the variant; the one without a value is for all others.
    fn variant(
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
        let has_fields = self.bare(of).is_some_and(|s| {
            s.children(2)
                .iter()
                .any(|(t, _)| *t == gimli::DW_TAG_member)
        });
        if has_fields {
            out.push(' ');
            self.member(
                out,
                member,
                of,
                self.offset(member, kind).unwrap_or(0),
                bytes,
                depth,
            );
        }
    }

    /// `&str`, `String` and `std::string` as text. `false` where the type is none of these.
    fn text_like(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8]) -> bool {
        let Some(name) = self.units.name(kind) else {
            return false;
        };
        let is_std =
            name.starts_with("basic_string<char") && !name.starts_with("basic_string_view");
        let is_view = name.starts_with("basic_string_view<char");
        let (start, len) = match name.as_str() {
            "&str" | "&mut str" => (
                self.word(kind, bytes, "data_ptr"),
                self.word(kind, bytes, "length"),
            ),
            "String" => (
                self.first_pointer(kind, bytes, MAX_DEPTH),
                self.nested(kind, bytes, &["vec", "len"]),
            ),
            _ if is_std => (
                self.nested(kind, bytes, &["_M_dataplus", "_M_p"]),
                self.word(kind, bytes, "_M_string_length"),
            ),
            _ if is_view => (
                self.word(kind, bytes, "_M_str"),
                self.word(kind, bytes, "_M_len"),
            ),
            _ => return false,
        };
        let (Some(start), Some(len)) = (start, len) else {
            return false;
        };
        let shown = usize::try_from(len).unwrap_or(usize::MAX).min(MAX_STRING);
        match self.memory.bytes(start, shown) {
            Some(text) => {
                let _ = write!(
                    out,
                    "{}{}",
                    quoted(&text),
                    if len > shown as u64 { "…" } else { "" }
                );
            }
            None => {
                let _ = write!(out, "<{len} bytes at {start:#x}, not in core>");
            }
        }
        true
    }

    /// Slices and `Vec` as their elements.
    fn sequence(&self, out: &mut String, kind: Die<'x, 'a>, bytes: &[u8], depth: usize) -> bool {
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
            .children(MAX_MEMBERS)
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
            .children(MAX_MEMBERS)
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
        kind.children(MAX_MEMBERS)
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

/// The first eight bytes as a number.
fn number(bytes: &[u8]) -> u64 {
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

fn truncate(value: u64, size: usize) -> u64 {
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

fn quoted(text: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(text))
}

fn shorten(mut text: String) -> String {
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
