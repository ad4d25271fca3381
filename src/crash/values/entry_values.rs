//! a register at a function's entry, the caller's frame → its value (DWARF 5 §3.4, call site parameters).
//!
//! Optimized code overwrites its arguments early; the caller's debug information often still tells them. Believed only
//! if the call site calls this very function: after a tail call it describes the arguments of another.

use crate::crash::unwind::rules::Bytes;
use crate::crash::values::dies::Entry;
use crate::crash::values::locate::{Absent, View};
use gimli::{AttributeValue, Expression, Location, Piece, UnitRef};

impl<'x, 'a> View<'_, 'x, 'a> {
    /// What a register held when the function was entered, if its caller's debug information says how to know.
    pub(super) fn entry_value(
        &self,
        expression: &Expression<Bytes<'a>>,
        callers: usize,
    ) -> Result<u64, Absent> {
        let remaining = callers.checked_sub(1).ok_or(Absent::OptimizedOut)?;
        let caller = self.caller.ok_or(Absent::OptimizedOut)?;
        let wanted = only_register(self.unit, expression).ok_or(Absent::Unknown)?;
        let function = self.entry_point().ok_or(Absent::OptimizedOut)?;
        let (unit, value) = caller
            .argument(wanted, function, remaining)
            .ok_or(Absent::OptimizedOut)?;
        match caller.evaluate(unit, value, remaining)?.as_slice() {
            [
                Piece {
                    location: Location::Address { address },
                    ..
                },
            ] => Ok(*address),
            [
                Piece {
                    location: Location::Value { value },
                    ..
                },
            ] => value.to_u64(!0).map_err(|_| Absent::Unknown),
            [
                Piece {
                    location: Location::Register { register },
                    ..
                },
            ] => caller.registers.get(register.0).ok_or(Absent::OptimizedOut),
            _ => Err(Absent::OptimizedOut),
        }
    }

    /// Run-time address at which this frame's function begins.
    pub(super) fn entry_point(&self) -> Option<u64> {
        let entry = self.unit.entry(self.function).ok()?;
        let low = entry
            .attr_value(gimli::DW_AT_low_pc)
            .or_else(|| entry.attr_value(gimli::DW_AT_entry_pc))?;
        Some(self.unit.attr_address(low).ok()??.wrapping_add(self.bias))
    }

    /// Whether a call site calls `function`. If not, a tail call stands between, and what the call passed was
    /// overwritten since.
    fn calls(&self, site: &Entry<'a>, function: u64, callers: usize) -> Option<bool> {
        if let Some(origin) = site
            .attr_value(gimli::DW_AT_call_origin)
            .or_else(|| site.attr_value(gimli::DW_AT_abstract_origin))
        {
            let callee = self.units.follow(self.unit, origin)?;
            let (unit, low) = self.units.attribute(callee, gimli::DW_AT_low_pc)?;
            return Some(unit.attr_address(low).ok()??.wrapping_add(self.bias) == function);
        }
        let target = site
            .attr_value(gimli::DW_AT_call_target)
            .or_else(|| site.attr_value(gimli::DW_AT_GNU_call_site_target))?;
        let AttributeValue::Exprloc(target) = target else {
            return None;
        };
        match self.evaluate(self.unit, target, callers).ok()?.as_slice() {
            [
                Piece {
                    location: Location::Address { address },
                    ..
                },
            ] => Some(*address == function),
            [
                Piece {
                    location: Location::Value { value },
                    ..
                },
            ] => Some(value.to_u64(!0).ok()? == function),
            [
                Piece {
                    location: Location::Register { register },
                    ..
                },
            ] => Some(self.registers.get(register.0)? == function),
            _ => None,
        }
    }

    /// The value that this frame's call of `function` passed in a register: `DW_TAG_call_site_parameter` of the call that returns
    /// to its pc.
    fn argument(
        &self,
        register: u16,
        function: u64,
        callers: usize,
    ) -> Option<(UnitRef<'x, Bytes<'a>>, Expression<Bytes<'a>>)> {
        const MAX_ENTRIES: usize = 100_000;
        let mut entries = self.unit.entries_at_offset(self.function).ok()?;
        let mut in_call: Option<isize> = None;
        for visited in 0..MAX_ENTRIES {
            let entry = entries.next_dfs().ok()??;
            if visited > 0 && entry.depth() <= 0 {
                return None;
            }
            if in_call.is_some_and(|depth| entry.depth() <= depth) {
                return None;
            }
            match entry.tag() {
                gimli::DW_TAG_call_site | gimli::DW_TAG_GNU_call_site => {
                    let returns_to = entry
                        .attr_value(gimli::DW_AT_call_return_pc)
                        .or_else(|| entry.attr_value(gimli::DW_AT_low_pc))?;
                    if self.unit.attr_address(returns_to).ok().flatten() == Some(self.pc) {
                        if self.calls(entry, function, callers) != Some(true) {
                            return None;
                        }
                        in_call = Some(entry.depth());
                    }
                }
                gimli::DW_TAG_call_site_parameter | gimli::DW_TAG_GNU_call_site_parameter
                    if in_call.is_some() =>
                {
                    let value = entry
                        .attr_value(gimli::DW_AT_call_value)
                        .or_else(|| entry.attr_value(gimli::DW_AT_GNU_call_site_value));
                    let location = entry.attr_value(gimli::DW_AT_location);
                    if let (
                        Some(AttributeValue::Exprloc(value)),
                        Some(AttributeValue::Exprloc(place)),
                    ) = (value, location)
                        && only_register(self.unit, &place) == Some(register)
                    {
                        return Some((self.unit, value));
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The register of an expression that names one and does nothing else.
fn only_register(unit: UnitRef<'_, Bytes<'_>>, expression: &Expression<Bytes<'_>>) -> Option<u16> {
    let mut operations = (*expression).operations(unit.encoding());
    match (operations.next().ok()??, operations.next().ok()?) {
        (gimli::Operation::Register { register }, None) => Some(register.0),
        _ => None,
    }
}
