//! a frame, its caller → the functions between them that left the stack by jumping.
//!
//! A function whose last act is a call may be left by a jump: it has no frame, yet belongs to the story. The caller's
//! call site says what was called (DWARF 5 §3.4); if that is not the function of the frame, tail calls lead from one to
//! the other. Told only where exactly one way is known, and the search is bounded.

use crate::crash::unwind::rules::Bytes;
use crate::crash::values::dies::{Die, Entry, Units};
use crate::crash::values::locate::View;
use gimli::{AttributeValue, UnitRef};

/// Functions that were left by a jump, one after the other.
const MAX_CHAIN: usize = 4;
/// Functions looked at in one search.
const MAX_FUNCTIONS: usize = 40;
const MAX_ENTRIES: usize = 50_000;

/// What the search asks of the module's symbols.
pub trait Functions<'x, 'a> {
    /// The function that begins at a link-time address.
    fn at(&self, address: u64) -> Option<Die<'x, 'a>>;
    /// The link-time address of a function by its linkage name.
    fn named(&self, name: &str) -> Option<u64>;
}

/// A call by jump: where it leads, and the address behind the jump.
struct Jump {
    target: u64,
    after: u64,
}

/// Link-time addresses behind the jumps, innermost first; empty where the frame was called by its caller itself, or
/// where that is not known.
pub fn between<'x, 'a>(
    frame: &View<'_, 'x, 'a>,
    caller: &View<'_, 'x, 'a>,
    functions: &impl Functions<'x, 'a>,
) -> Vec<u64> {
    let search = || {
        let wanted = frame.entry_point()?.wrapping_sub(frame.bias);
        let called = called(frame, caller, wanted, functions)?;
        let mut ways = Vec::new();
        let mut left = MAX_FUNCTIONS;
        follow(
            frame.units,
            functions,
            called,
            wanted,
            &mut Vec::new(),
            &mut ways,
            &mut left,
        );
        match ways.as_mut_slice() {
            [only] if left > 0 => Some(std::mem::take(only)),
            _ => None,
        }
    };
    search().unwrap_or_default()
}

/// The link-time address of what the caller's call site calls, if it is not the frame's own function.
fn called<'x, 'a>(
    frame: &View<'_, 'x, 'a>,
    caller: &View<'_, 'x, 'a>,
    wanted: u64,
    functions: &impl Functions<'x, 'a>,
) -> Option<u64> {
    let mut target = None;
    call_sites(caller.unit, caller.function, |site| {
        let returns_to = site
            .attr_value(gimli::DW_AT_call_return_pc)
            .or_else(|| site.attr_value(gimli::DW_AT_low_pc));
        let address = returns_to.and_then(|v| caller.unit.attr_address(v).ok().flatten());
        if address == Some(caller.pc) {
            target = origin(site);
        }
        target.is_none()
    });
    let callee = caller.units.follow(caller.unit, target?)?;
    // The usual case needs no search for addresses.
    let own = Die {
        unit: frame.unit,
        offset: frame.function,
    };
    if linkage_name(frame.units, callee) == linkage_name(frame.units, own) {
        return None;
    }
    // Known by address only within one module; across modules by name.
    let address = address_of(frame.units, callee).filter(|_| caller.bias == frame.bias);
    let address = address.or_else(|| functions.named(&linkage_name(frame.units, callee)?))?;
    (address != wanted).then_some(address)
}

fn follow<'x, 'a>(
    units: &'x Units<'x, 'a>,
    functions: &impl Functions<'x, 'a>,
    from: u64,
    wanted: u64,
    way: &mut Vec<u64>,
    ways: &mut Vec<Vec<u64>>,
    left: &mut usize,
) {
    if way.len() >= MAX_CHAIN || *left == 0 {
        return;
    }
    *left -= 1;
    let Some(function) = functions.at(from) else {
        return;
    };
    for jump in jumps(units, functions, function) {
        way.push(jump.after);
        if jump.target == wanted {
            // Outermost first on the way out, innermost first in a backtrace.
            ways.push(way.iter().rev().copied().collect());
        } else if jump.target != from {
            follow(units, functions, jump.target, wanted, way, ways, left);
        }
        way.pop();
    }
}

fn jumps<'x, 'a>(
    units: &'x Units<'x, 'a>,
    functions: &impl Functions<'x, 'a>,
    function: Die<'x, 'a>,
) -> Vec<Jump> {
    const MAX_JUMPS: usize = 32;
    let mut found = Vec::new();
    call_sites(function.unit, function.offset, |site| {
        let is_jump = [gimli::DW_AT_call_tail_call, gimli::DW_AT_GNU_tail_call]
            .into_iter()
            .any(|name| matches!(site.attr_value(name), Some(AttributeValue::Flag(true))));
        if is_jump {
            found.extend(jump(units, functions, function.unit, site));
        }
        found.len() < MAX_JUMPS
    });
    found
}

fn jump<'x, 'a>(
    units: &'x Units<'x, 'a>,
    functions: &impl Functions<'x, 'a>,
    unit: UnitRef<'x, Bytes<'a>>,
    site: &Entry<'a>,
) -> Option<Jump> {
    let after = [
        gimli::DW_AT_call_return_pc,
        gimli::DW_AT_low_pc,
        gimli::DW_AT_call_pc,
    ]
    .into_iter()
    .find_map(|name| unit.attr_address(site.attr_value(name)?).ok()?)?;
    let callee = units.follow(unit, origin(site)?)?;
    let target =
        address_of(units, callee).or_else(|| functions.named(&linkage_name(units, callee)?))?;
    Some(Jump { target, after })
}

fn origin<'a>(site: &Entry<'a>) -> Option<AttributeValue<Bytes<'a>>> {
    site.attr_value(gimli::DW_AT_call_origin)
        .or_else(|| site.attr_value(gimli::DW_AT_abstract_origin))
}

fn address_of<'x, 'a>(units: &'x Units<'x, 'a>, function: Die<'x, 'a>) -> Option<u64> {
    let (unit, low) = units.attribute(function, gimli::DW_AT_low_pc)?;
    unit.attr_address(low).ok()?
}

fn linkage_name<'x, 'a>(units: &'x Units<'x, 'a>, function: Die<'x, 'a>) -> Option<String> {
    let names = [
        gimli::DW_AT_linkage_name,
        gimli::DW_AT_MIPS_linkage_name,
        gimli::DW_AT_name,
    ];
    let (unit, value) = names
        .into_iter()
        .find_map(|name| units.attribute(function, name))?;
    Some(unit.attr_string(value).ok()?.to_string_lossy().into_owned())
}

/// Visits the call sites of a function until the visitor says `false`.
fn call_sites<'a>(
    unit: UnitRef<'_, Bytes<'a>>,
    function: gimli::UnitOffset,
    mut visit: impl FnMut(&Entry<'a>) -> bool,
) {
    let Ok(mut entries) = unit.entries_at_offset(function) else {
        return;
    };
    for visited in 0..MAX_ENTRIES {
        let Ok(Some(entry)) = entries.next_dfs() else {
            return;
        };
        if visited > 0 && entry.depth() <= 0 {
            return;
        }
        let is_site = matches!(
            entry.tag(),
            gimli::DW_TAG_call_site | gimli::DW_TAG_GNU_call_site
        );
        if is_site && !visit(entry) {
            return;
        }
    }
}
