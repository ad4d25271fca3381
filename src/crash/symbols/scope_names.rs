//! a function's DIE → its name with the namespaces and types around it.
//!
//! Needed where debug information has no linkage name: inlined lambdas, local functions, C++ of some compilers.

use crate::crash::unwind::rules::Bytes;
use gimli::{AttributeValue, DebugInfoOffset, UnitOffset, UnitRef};

/// Chains of abstract origins and specifications are short; a longer one is a loop.
const MAX_CHAIN: usize = 16;
/// Entries looked at to find what encloses one.
const MAX_ENTRIES: usize = 2_000_000;

/// `outer::Class::name`; `None` where the DIE has no name of its own.
pub fn qualified_name(unit: &UnitRef<'_, Bytes<'_>>, entry: UnitOffset) -> Option<String> {
    if !scopes_matter(unit) {
        return None;
    }
    let declared = declaration(unit, entry, MAX_CHAIN)?;
    match declared {
        Declared::Here(offset) => scoped(unit, offset),
        Declared::Elsewhere(offset) => {
            let (header, offset) = unit_of(unit, offset)?;
            let other = unit.dwarf.unit(header).ok()?;
            let other = UnitRef::new(unit.dwarf, &other);
            match declaration(&other, offset, MAX_CHAIN)? {
                Declared::Here(offset) => scoped(&other, offset),
                Declared::Elsewhere(_) => None,
            }
        }
    }
}

/// The line on which a function's declaration begins.
pub fn declared_line(unit: &UnitRef<'_, Bytes<'_>>, entry: UnitOffset) -> Option<u32> {
    match line_of(unit, entry)? {
        Declared::Here(line) => Some(line),
        Declared::Elsewhere(offset) => {
            let (header, offset) = unit_of(unit, offset)?;
            let other = unit.dwarf.unit(header).ok()?;
            match line_of(&UnitRef::new(unit.dwarf, &other), offset)? {
                Declared::Here(line) => Some(line),
                Declared::Elsewhere(_) => None,
            }
        }
    }
}

fn line_of(unit: &UnitRef<'_, Bytes<'_>>, entry: UnitOffset) -> Option<Declared<u32>> {
    let mut entry = entry;
    for _ in 0..MAX_CHAIN {
        let die = unit.entry(entry).ok()?;
        if let Some(line) = die.attr_value(gimli::DW_AT_decl_line) {
            return Some(Declared::Here(u32::try_from(line.udata_value()?).ok()?));
        }
        let next = die
            .attr_value(gimli::DW_AT_abstract_origin)
            .or_else(|| die.attr_value(gimli::DW_AT_specification));
        match next? {
            AttributeValue::UnitRef(offset) => entry = offset,
            AttributeValue::DebugInfoRef(offset) => return Some(Declared::Elsewhere(offset)),
            _ => return None,
        }
    }
    None
}

enum Declared<T = UnitOffset> {
    Here(T),
    Elsewhere(DebugInfoOffset),
}

/// C has no scopes, and its units can be big.
fn scopes_matter(unit: &UnitRef<'_, Bytes<'_>>) -> bool {
    let language = unit
        .entry(unit.header.root_offset())
        .ok()
        .and_then(|root| root.attr_value(gimli::DW_AT_language));
    !matches!(
        language,
        Some(AttributeValue::Language(
            gimli::DW_LANG_C
                | gimli::DW_LANG_C89
                | gimli::DW_LANG_C99
                | gimli::DW_LANG_C11
                | gimli::DW_LANG_Mips_Assembler
                | gimli::DW_LANG_Go
        ))
    )
}

/// Follows inlined call → abstract instance → declaration inside its class.
fn declaration(unit: &UnitRef<'_, Bytes<'_>>, entry: UnitOffset, chain: usize) -> Option<Declared> {
    let die = unit.entry(entry).ok()?;
    let next = die
        .attr_value(gimli::DW_AT_abstract_origin)
        .or_else(|| die.attr_value(gimli::DW_AT_specification));
    match next {
        None => Some(Declared::Here(entry)),
        Some(AttributeValue::UnitRef(offset)) if chain > 0 => declaration(unit, offset, chain - 1),
        Some(AttributeValue::DebugInfoRef(offset)) => Some(Declared::Elsewhere(offset)),
        Some(_) => None,
    }
}

/// The unit that an offset of `.debug_info` lies in.
pub fn unit_of<'a>(
    unit: &UnitRef<'_, Bytes<'a>>,
    offset: DebugInfoOffset,
) -> Option<(gimli::UnitHeader<Bytes<'a>>, UnitOffset)> {
    let mut headers = unit.dwarf.units();
    while let Ok(Some(header)) = headers.next() {
        if let Some(inside) = offset.to_unit_offset(&header) {
            return Some((header, inside));
        }
    }
    None
}

fn scoped(unit: &UnitRef<'_, Bytes<'_>>, entry: UnitOffset) -> Option<String> {
    let mut names = enclosing(unit, entry).unwrap_or_default();
    let die = unit.entry(entry).ok()?;
    names.push(
        unit.attr_string(die.attr_value(gimli::DW_AT_name)?)
            .ok()?
            .to_string_lossy()
            .into_owned(),
    );
    Some(names.join("::"))
}

/// Names of the scopes around an entry, outermost first. Walks the unit from its root, past whole subtrees where
/// siblings are given.
fn enclosing(unit: &UnitRef<'_, Bytes<'_>>, wanted: UnitOffset) -> Option<Vec<String>> {
    let mut entries = unit.entries_raw(None).ok()?;
    let mut open: Vec<(isize, Option<String>)> = Vec::new();
    for _ in 0..MAX_ENTRIES {
        let offset = entries.next_offset();
        let depth = entries.next_depth();
        open.retain(|(d, _)| *d < depth);
        if offset >= wanted {
            return (offset == wanted)
                .then(|| open.into_iter().filter_map(|(_, name)| name).collect());
        }
        let Some(abbreviation) = entries.read_abbreviation().ok()? else {
            continue;
        };
        let mut name = None;
        let mut sibling = None;
        for specification in abbreviation.attributes() {
            let attribute = entries.read_attribute(*specification).ok()?;
            match attribute.name() {
                gimli::DW_AT_name => name = Some(attribute.value()),
                gimli::DW_AT_sibling => sibling = Some(attribute.value()),
                _ => {}
            }
        }
        if let Some(AttributeValue::UnitRef(next)) = sibling
            && next <= wanted
            && next > offset
        {
            let base = depth;
            entries = unit.entries_raw(Some(next)).ok()?;
            // Depths begin at zero again: those of the open scopes are made relative to the new start.
            open.retain_mut(|(d, _)| {
                *d -= base;
                *d < 0
            });
            continue;
        }
        if abbreviation.has_children() {
            open.push((depth, scope_name(unit, abbreviation.tag(), name)));
        }
    }
    None
}

fn scope_name<'a>(
    unit: &UnitRef<'_, Bytes<'a>>,
    tag: gimli::DwTag,
    name: Option<AttributeValue<Bytes<'a>>>,
) -> Option<String> {
    let named = || Some(unit.attr_string(name?).ok()?.to_string_lossy().into_owned());
    match tag {
        gimli::DW_TAG_namespace => named().or_else(|| Some("(anonymous namespace)".to_owned())),
        gimli::DW_TAG_class_type
        | gimli::DW_TAG_structure_type
        | gimli::DW_TAG_union_type
        | gimli::DW_TAG_enumeration_type
        | gimli::DW_TAG_interface_type
        | gimli::DW_TAG_module
        | gimli::DW_TAG_subprogram => named(),
        _ => None,
    }
}
