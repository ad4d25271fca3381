//! a type's DIE → its name, its size, what it is without qualifiers.

use crate::crash::values::dies::Die;
use crate::crash::values::show::{MAX_DEPTH, Printer, shorten};

/// Modifiers (`const`, typedefs) around one type.
const MAX_MODIFIERS: usize = 32;

impl<'x, 'a> Printer<'_, 'x, 'a> {
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
                let bounds: String = self
                    .dimensions(kind)
                    .into_iter()
                    .map(|bound| format!("[{}]", bound.map_or(String::new(), |n| n.to_string())))
                    .collect();
                format!("{} {bounds}", inner())
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
    pub(super) fn bare(&self, kind: Die<'x, 'a>) -> Option<Die<'x, 'a>> {
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

    /// Elements of an array, of all its dimensions together.
    pub(super) fn count(&self, kind: Die<'x, 'a>) -> Option<u64> {
        let bounds = self.dimensions(kind).into_iter();
        bounds
            .collect::<Option<Vec<u64>>>()?
            .into_iter()
            .try_fold(1u64, u64::checked_mul)
    }

    /// The length of each dimension, the outermost first; `None` where it is not a constant.
    pub(super) fn dimensions(&self, kind: Die<'x, 'a>) -> Vec<Option<u64>> {
        let ranges = kind
            .children(8)
            .into_iter()
            .filter(|(tag, _)| *tag == gimli::DW_TAG_subrange_type);
        let length = |range: Die<'x, 'a>| {
            let upper = || {
                self.units
                    .number(range, gimli::DW_AT_upper_bound)?
                    .checked_add(1)
            };
            self.units.number(range, gimli::DW_AT_count).or_else(upper)
        };
        ranges.map(|(_, range)| length(range)).collect()
    }
}
