//! a DIE's attribute → the DIE it refers to, in whatever unit or file that is.
//!
//! Units are parsed once and kept, so that references are plain copies. Chains of references are bounded.

use crate::crash::unwind::rules::Bytes;
use gimli::{
    AttributeValue, DebugInfoOffset, DebugTypeSignature, Dwarf, UnitOffset, UnitRef, UnitType,
};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use typed_arena::Arena;

pub type Unit<'a> = gimli::Unit<Bytes<'a>>;
pub type Entry<'a> = gimli::DebuggingInformationEntry<Bytes<'a>>;

/// Abstract origins and specifications form short chains; a longer one is a loop.
const MAX_CHAIN: usize = 8;

/// A DIE by its place.
#[derive(Clone, Copy)]
pub struct Die<'x, 'a> {
    pub unit: UnitRef<'x, Bytes<'a>>,
    pub offset: UnitOffset,
}

/// A unit: its file's sections (by address), its offset, whether that is in `.debug_types`.
type Key = (usize, usize, bool);

type Headers<'a> = Vec<gimli::UnitHeader<Bytes<'a>>>;

/// Where units that references lead to are kept.
#[derive(Default)]
pub struct Units<'x, 'a> {
    arena: Arena<Unit<'a>>,
    listed: RefCell<HashMap<usize, Rc<Headers<'a>>>>,
    known: RefCell<HashMap<Key, Option<&'x Unit<'a>>>>,
}

impl<'x, 'a> Units<'x, 'a> {
    /// The DIE that an attribute refers to.
    pub fn follow(
        &'x self,
        unit: UnitRef<'x, Bytes<'a>>,
        value: AttributeValue<Bytes<'a>>,
    ) -> Option<Die<'x, 'a>> {
        match value {
            AttributeValue::UnitRef(offset) => Some(Die { unit, offset }),
            AttributeValue::DebugInfoRef(offset) => self.at(unit.dwarf, offset),
            AttributeValue::DebugInfoRefSup(offset) => self.at(unit.dwarf.sup()?, offset),
            AttributeValue::DebugTypesRef(signature) => self.by_signature(unit.dwarf, signature),
            _ => None,
        }
    }

    fn at(&'x self, dwarf: &'x Dwarf<Bytes<'a>>, offset: DebugInfoOffset) -> Option<Die<'x, 'a>> {
        let headers = self.headers(dwarf);
        let after = headers.partition_point(|h| h.offset().0 <= offset.0);
        let header = *headers.get(after.checked_sub(1)?)?;
        let inside = offset.to_unit_offset(&header)?;
        let unit = self.unit(dwarf, header)?;
        Some(Die {
            unit: UnitRef::new(dwarf, unit),
            offset: inside,
        })
    }

    /// All units of a file, by offset; listed once, since link-time optimized programs refer across units all the time.
    fn headers(&self, dwarf: &Dwarf<Bytes<'a>>) -> Rc<Headers<'a>> {
        let key = std::ptr::from_ref(dwarf) as usize;
        let mut listed = self.listed.borrow_mut();
        let headers = listed.entry(key).or_insert_with(|| {
            let mut units = dwarf.units();
            Rc::new(std::iter::from_fn(|| units.next().ok().flatten()).collect())
        });
        headers.clone()
    }

    fn by_signature(
        &'x self,
        dwarf: &'x Dwarf<Bytes<'a>>,
        wanted: DebugTypeSignature,
    ) -> Option<Die<'x, 'a>> {
        let mut of_types = dwarf.type_units();
        let mut of_info = dwarf.units();
        let next = || {
            of_types
                .next()
                .ok()
                .flatten()
                .or_else(|| of_info.next().ok().flatten())
        };
        std::iter::from_fn(next).find_map(|header| match header.type_() {
            UnitType::Type {
                type_signature,
                type_offset,
            }
            | UnitType::SplitType {
                type_signature,
                type_offset,
            } if type_signature == wanted => {
                let unit = self.unit(dwarf, header)?;
                Some(Die {
                    unit: UnitRef::new(dwarf, unit),
                    offset: type_offset,
                })
            }
            _ => None,
        })
    }

    fn unit(
        &'x self,
        dwarf: &'x Dwarf<Bytes<'a>>,
        header: gimli::UnitHeader<Bytes<'a>>,
    ) -> Option<&'x Unit<'a>> {
        let is_types = header.section() == gimli::SectionId::DebugTypes;
        let key = (
            std::ptr::from_ref(dwarf) as usize,
            header.offset().0,
            is_types,
        );
        if let Some(known) = self.known.borrow().get(&key) {
            return *known;
        }
        let unit = dwarf.unit(header).ok().map(|unit| &*self.arena.alloc(unit));
        self.known.borrow_mut().insert(key, unit);
        unit
    }

    /// An attribute of a DIE or of what it is an instance of; with the unit that the value belongs to.
    pub fn attribute(
        &'x self,
        die: Die<'x, 'a>,
        name: gimli::DwAt,
    ) -> Option<(UnitRef<'x, Bytes<'a>>, AttributeValue<Bytes<'a>>)> {
        let mut die = die;
        for _ in 0..MAX_CHAIN {
            let entry = die.unit.entry(die.offset).ok()?;
            if let Some(value) = entry.attr_value(name) {
                return Some((die.unit, value));
            }
            let origin = entry
                .attr_value(gimli::DW_AT_abstract_origin)
                .or_else(|| entry.attr_value(gimli::DW_AT_specification))
                .or_else(|| entry.attr_value(gimli::DW_AT_signature))?;
            die = self.follow(die.unit, origin)?;
        }
        None
    }

    pub fn name(&'x self, die: Die<'x, 'a>) -> Option<String> {
        let (unit, value) = self.attribute(die, gimli::DW_AT_name)?;
        Some(unit.attr_string(value).ok()?.to_string_lossy().into_owned())
    }

    pub fn type_of(&'x self, die: Die<'x, 'a>) -> Option<Die<'x, 'a>> {
        let (unit, value) = self.attribute(die, gimli::DW_AT_type)?;
        self.follow(unit, value)
    }

    /// An attribute that is a plain number.
    pub fn number(&'x self, die: Die<'x, 'a>, name: gimli::DwAt) -> Option<u64> {
        match self.attribute(die, name)?.1 {
            AttributeValue::Sdata(n) => Some(n as u64),
            value => value.udata_value(),
        }
    }
}

impl<'x, 'a> Die<'x, 'a> {
    pub fn tag(self) -> Option<gimli::DwTag> {
        Some(self.unit.entry(self.offset).ok()?.tag())
    }

    /// Direct children, at most `limit`.
    pub fn children(self, limit: usize) -> Vec<(gimli::DwTag, Die<'x, 'a>)> {
        self.children_that(limit, |_| true)
    }

    /// What makes up an object, at most `limit`: a class may have hundreds of functions and types beside it.
    pub fn members(self, limit: usize) -> Vec<(gimli::DwTag, Die<'x, 'a>)> {
        self.children_that(limit, |tag| {
            matches!(
                tag,
                gimli::DW_TAG_member | gimli::DW_TAG_inheritance | gimli::DW_TAG_variant_part
            )
        })
    }

    fn children_that(
        self,
        limit: usize,
        is_wanted: impl Fn(gimli::DwTag) -> bool,
    ) -> Vec<(gimli::DwTag, Die<'x, 'a>)> {
        let mut found = Vec::new();
        let Ok(mut tree) = self.unit.entries_tree(Some(self.offset)) else {
            return found;
        };
        let Ok(root) = tree.root() else { return found };
        let mut children = root.children();
        while let Ok(Some(child)) = children.next() {
            if found.len() >= limit {
                break;
            }
            let entry = child.entry();
            if !is_wanted(entry.tag()) {
                continue;
            }
            found.push((
                entry.tag(),
                Die {
                    unit: self.unit,
                    offset: entry.offset(),
                },
            ));
        }
        found
    }
}
