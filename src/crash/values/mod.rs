//! a frame's function → its arguments and locals, for itself and each inlined call, with their values as text.
//!
//! Only scopes that contain the frame's address count. Bounded in number, depth and length; a value that cannot be
//! had says why and disturbs no other.

mod contents;
pub mod dies;
mod entry_values;
pub mod locate;
pub mod show;
pub mod tail_calls;
mod type_dies;

use crate::crash::report::Variable;
use crate::crash::unwind::rules::Bytes;
use dies::{Die, Entry};
use gimli::UnitRef;
use locate::View;

/// Entries looked at in one function.
const MAX_ENTRIES: usize = 200_000;
/// Variables of one function; generated code may have thousands.
const MAX_VARIABLES: usize = 64;

/// What one function, inlined or not, has.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    pub arguments: Vec<Variable>,
    pub locals: Vec<Variable>,
}

/// Which variables are wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    ArgumentsOnly,
    All,
}

/// For each level of inlining, the physical function first, its variables.
pub fn variables<'x, 'a>(view: &View<'_, 'x, 'a>, wanted: Wanted) -> Vec<Variables> {
    let mut levels = vec![Variables::default()];
    for (level, die, is_argument) in in_scope(view) {
        while levels.len() <= level {
            levels.push(Variables::default());
        }
        let Some(variables) = levels.get_mut(level) else {
            continue;
        };
        let list = if is_argument {
            &mut variables.arguments
        } else {
            &mut variables.locals
        };
        if list.len() < MAX_VARIABLES && (is_argument || wanted == Wanted::All) {
            list.extend(variable(view, die));
        }
    }
    levels
}

fn variable<'x, 'a>(view: &View<'_, 'x, 'a>, die: Die<'x, 'a>) -> Option<Variable> {
    let name = view.units.name(die)?;
    let kind = view.units.type_of(die);
    let printer = show::Printer::new(view);
    let type_name = kind.map(|k| printer.type_name(k));
    let size = kind.and_then(|k| printer.size(k)).unwrap_or(8);
    let value = match (kind, view.object(die, size)) {
        (Some(kind), Ok(object)) => printer.show(kind, &object),
        (None, Ok(_)) => "<unknown type>".to_owned(),
        (_, Err(absent)) => absent.to_string(),
    };
    Some(Variable {
        name,
        type_name,
        value,
    })
}

/// Variables and parameters that are in scope: level of inlining, DIE, whether it is a parameter.
fn in_scope<'x, 'a>(view: &View<'_, 'x, 'a>) -> Vec<(usize, Die<'x, 'a>, bool)> {
    let mut found = Vec::new();
    let Ok(mut entries) = view.unit.entries_at_offset(view.function) else {
        return found;
    };
    // Depths of the inlined calls that are open, and that below which nothing is in scope.
    let mut open: Vec<isize> = Vec::new();
    let mut closed: Option<isize> = None;
    for visited in 0..MAX_ENTRIES {
        let Ok(Some(entry)) = entries.next_dfs() else {
            break;
        };
        let depth = entry.depth();
        if visited == 0 {
            continue;
        }
        if depth <= 0 {
            break;
        }
        if closed.is_some_and(|at| depth > at) {
            continue;
        }
        closed = None;
        while open.last().is_some_and(|at| depth <= *at) {
            open.pop();
        }
        let die = Die {
            unit: view.unit,
            offset: entry.offset(),
        };
        match entry.tag() {
            gimli::DW_TAG_formal_parameter => found.push((open.len(), die, true)),
            gimli::DW_TAG_variable if entry.has_attr(gimli::DW_AT_artificial) => {}
            gimli::DW_TAG_variable => found.push((open.len(), die, false)),
            gimli::DW_TAG_lexical_block if contains(view.unit, entry, view.address) => {}
            gimli::DW_TAG_inlined_subroutine if contains(view.unit, entry, view.address) => {
                open.push(depth)
            }
            _ => closed = Some(depth),
        }
    }
    found
}

/// A block without addresses of its own belongs to what is around it.
fn contains<'a>(unit: UnitRef<'_, Bytes<'a>>, entry: &Entry<'a>, address: u64) -> bool {
    let Ok(mut ranges) = unit.die_ranges(entry) else {
        return false;
    };
    let mut any = false;
    while let Ok(Some(range)) = ranges.next() {
        any = true;
        if range.begin <= address && address < range.end {
            return true;
        }
    }
    !any && entry.tag() == gimli::DW_TAG_lexical_block
}
