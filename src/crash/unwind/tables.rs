//! a module's unwind sections, link-time address → the unwind row in force there.
//!
//! `.eh_frame` first, through the sorted table of `.eh_frame_hdr` where there is one, then `.debug_frame`. Sections
//! without a sorted table are indexed once. A damaged section answers `None`.

use crate::crash::elf::{Elf, PT_GNU_EH_FRAME, SHT_NOBITS};
use crate::crash::machine::Machine;
use crate::crash::unwind::rules::{Bytes, Cfa, Row, Rule};
use crate::crash::unwind::search_table::SearchTable;
use gimli::{
    BaseAddresses, CfaRule, CieOrFde, DebugFrame, EhFrame, FrameDescriptionEntry, LittleEndian,
    RegisterRule, UnwindContext, UnwindExpression, UnwindSection, Vendor,
};
use std::cell::OnceCell;

/// More frame descriptions than any real module has; an index of hostile bytes stops here.
const MAX_ENTRIES: usize = 4_000_000;

/// Where a function's description stands.
#[derive(Clone, Copy)]
struct Entry {
    start: u64,
    end: u64,
    offset: usize,
}

struct EhTables<'a> {
    section: EhFrame<Bytes<'a>>,
    table: Option<SearchTable<'a>>,
    bases: BaseAddresses,
    index: OnceCell<Vec<Entry>>,
}

struct DebugTables<'a> {
    section: DebugFrame<Bytes<'a>>,
    index: OnceCell<Vec<Entry>>,
}

/// The unwind tables of one module.
pub struct Tables<'a> {
    bias: u64,
    eh: Option<EhTables<'a>>,
    debug: Vec<DebugTables<'a>>,
}

impl<'a> Tables<'a> {
    /// `elf` is the module's image; `debug_frames` the contents of its `.debug_frame` sections, its own or those of
    /// its separate debug files.
    pub fn new(
        machine: Machine,
        bias: u64,
        elf: Option<&Elf<'a>>,
        debug_frames: &[&'a [u8]],
    ) -> Tables<'a> {
        let debug = debug_frames.iter().map(|bytes| {
            let mut section = DebugFrame::new(bytes, LittleEndian);
            section.set_address_size(8);
            section.set_vendor(vendor(machine));
            DebugTables {
                section,
                index: OnceCell::new(),
            }
        });
        Tables {
            bias,
            eh: elf.and_then(|e| EhTables::new(machine, e)),
            debug: debug.collect(),
        }
    }

    /// The row for a run-time address.
    pub fn row(&self, address: u64) -> Option<Row<'a>> {
        let address = address.wrapping_sub(self.bias);
        let from_eh = self.eh.as_ref().and_then(|eh| {
            let entry = eh.entry(address)?;
            self.row_of(&eh.section, &eh.bases, &entry, address)
        });
        from_eh.or_else(|| {
            self.debug.iter().find_map(|debug| {
                let bases = BaseAddresses::default();
                let index = debug.index.get_or_init(|| index(&debug.section, &bases));
                let at = look_up(index, address)?;
                let entry = debug
                    .section
                    .fde_from_offset(&bases, at.into(), DebugFrame::cie_from_offset)
                    .ok()?;
                self.row_of(&debug.section, &bases, &entry, address)
            })
        })
    }

    fn row_of<S: UnwindSection<Bytes<'a>>>(
        &self,
        section: &S,
        bases: &BaseAddresses,
        entry: &FrameDescriptionEntry<Bytes<'a>>,
        address: u64,
    ) -> Option<Row<'a>> {
        let mut context = UnwindContext::new();
        let row = entry
            .unwind_info_for_address(section, bases, &mut context, address)
            .ok()?;
        let expression = |e: &UnwindExpression<usize>| e.get(section).ok();
        let cfa = match row.cfa() {
            CfaRule::RegisterAndOffset { register, offset } => Cfa::Register(register.0, *offset),
            CfaRule::Expression(e) => Cfa::Expression(expression(e)?),
        };
        let rules = row.registers().filter_map(|(register, rule)| {
            let rule = match rule {
                RegisterRule::Undefined => Rule::Undefined,
                RegisterRule::SameValue => Rule::SameValue,
                RegisterRule::Offset(n) => Rule::Offset(*n),
                RegisterRule::ValOffset(n) => Rule::ValOffset(*n),
                RegisterRule::Register(other) => Rule::Register(other.0),
                RegisterRule::Expression(e) => Rule::Expression(expression(e)?),
                RegisterRule::ValExpression(e) => Rule::ValExpression(expression(e)?),
                RegisterRule::Constant(value) => Rule::Constant(*value),
                _ => return None,
            };
            Some((register.0, rule))
        });
        Some(Row {
            cfa,
            rules: rules.collect(),
            return_register: entry.cie().return_address_register().0,
            signal: entry.is_signal_trampoline(),
            encoding: entry.cie().encoding(),
            bias: self.bias,
        })
    }
}

impl<'a> EhTables<'a> {
    fn new(machine: Machine, elf: &Elf<'a>) -> Option<EhTables<'a>> {
        let header = header_bytes(elf)
            .and_then(|(address, bytes)| Some((address, SearchTable::parse(address, bytes)?)));
        let section = elf.section(b".eh_frame").filter(|s| s.kind != SHT_NOBITS);
        let (address, bytes) = match (section, &header) {
            (Some(section), _) => (section.address, elf.raw_section(section)?),
            (None, Some((_, table))) => (table.eh_frame, elf.at_address(table.eh_frame)?),
            (None, None) => return None,
        };
        let mut bases = BaseAddresses::default().set_eh_frame(address);
        if let Some((address, _)) = &header {
            bases = bases.set_eh_frame_hdr(*address);
        }
        for (name, set) in [
            (
                &b".text"[..],
                BaseAddresses::set_text as fn(BaseAddresses, u64) -> BaseAddresses,
            ),
            (b".got", BaseAddresses::set_got),
        ] {
            if let Some(section) = elf.section(name) {
                bases = set(bases, section.address);
            }
        }
        let mut eh_frame = EhFrame::new(bytes, LittleEndian);
        eh_frame.set_address_size(8);
        eh_frame.set_vendor(vendor(machine));
        Some(EhTables {
            section: eh_frame,
            table: header.map(|(_, table)| table).filter(|t| !t.is_empty()),
            bases,
            index: OnceCell::new(),
        })
    }

    fn entry(&self, address: u64) -> Option<FrameDescriptionEntry<Bytes<'a>>> {
        if let Some(table) = &self.table {
            let described = table.look_up(address)?;
            // The entry that the table names may lie anywhere if the table is damaged.
            let section = self.bases.eh_frame.section;
            let offset = usize::try_from(described.checked_sub(section?)?).ok()?;
            let entry = self
                .section
                .fde_from_offset(&self.bases, offset.into(), EhFrame::cie_from_offset)
                .ok()?;
            return entry.contains(address).then_some(entry);
        }
        let index = self.index.get_or_init(|| index(&self.section, &self.bases));
        let at = look_up(index, address)?;
        self.section
            .fde_from_offset(&self.bases, at.into(), EhFrame::cie_from_offset)
            .ok()
    }
}

fn header_bytes<'a>(elf: &Elf<'a>) -> Option<(u64, &'a [u8])> {
    let segment = elf.segments_of(PT_GNU_EH_FRAME).next();
    let from_segment = segment
        .map(|s| (s.address, elf.segment_bytes(s)))
        .filter(|(_, b)| !b.is_empty());
    from_segment.or_else(|| {
        let section = elf.section(b".eh_frame_hdr")?;
        Some((section.address, elf.raw_section(section)?))
    })
}

fn vendor(machine: Machine) -> Vendor {
    match machine {
        Machine::X86_64 => Vendor::Default,
        // Without it gimli refuses the instruction that toggles return address signing.
        Machine::Aarch64 => Vendor::AArch64,
    }
}

fn index<'a, S: UnwindSection<Bytes<'a>>>(section: &S, bases: &BaseAddresses) -> Vec<Entry> {
    let mut entries = section.entries(bases);
    let mut found = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        let CieOrFde::Fde(partial) = entry else {
            continue;
        };
        let Ok(fde) = partial.parse(S::cie_from_offset) else {
            continue;
        };
        if fde.len() > 0 && found.len() < MAX_ENTRIES {
            found.push(Entry {
                start: fde.initial_address(),
                end: fde.end_address(),
                offset: fde.offset(),
            });
        }
    }
    found.sort_by_key(|e| e.start);
    found
}

fn look_up(index: &[Entry], address: u64) -> Option<usize> {
    let after = index.partition_point(|e| e.start <= address);
    let entry = index.get(after.checked_sub(1)?)?;
    (address < entry.end).then_some(entry.offset)
}
