//! ELF symbol tables, link-time address → the function symbol there.
//!
//! Searched, not sorted: a report asks for few addresses, and a copy of a big program's table would cost more memory
//! than everything else. Answers are remembered by the caller.

use crate::crash::elf::Elf;
use crate::crash::le;
use std::cmp::Reverse;

const SYMBOL_SIZE: usize = 24;
const STT_NOTYPE: u8 = 0;
const STT_OBJECT: u8 = 1;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
/// A symbol without a size (hand-written assembly) is believed for code this far behind it.
const MAX_SIZELESS: u64 = 64 << 10;

/// One table with its strings.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    symbols: &'a [u8],
    strings: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol<'a> {
    pub name: &'a [u8],
    pub address: u64,
    pub size: u64,
}

/// The tables of a file: `.symtab`, `.dynsym`, or what the dynamic section tells of an image without sections.
///
/// `bias` is that of the running image: in one taken from memory the linker has added it to the dynamic section.
pub fn tables<'a>(elf: &Elf<'a>, bias: u64) -> Vec<Table<'a>> {
    let by_name = |name: &[u8]| {
        let section = elf.section(name)?;
        let strings = elf.sections.get(section.link as usize)?;
        Some(Table {
            symbols: elf.raw_section(section)?,
            strings: elf.raw_section(strings)?,
        })
    };
    let mut tables: Vec<Table<'a>> = [&b".symtab"[..], b".dynsym"]
        .into_iter()
        .filter_map(by_name)
        .collect();
    if tables.is_empty() {
        tables.extend(dynamic_table(elf, bias));
    }
    tables
}

/// Without section headers the table's end is unknown; the string table is usually laid out right behind it.
fn dynamic_table<'a>(elf: &Elf<'a>, bias: u64) -> Option<Table<'a>> {
    const DT_STRTAB: u64 = 5;
    const DT_SYMTAB: u64 = 6;
    const DT_STRSZ: u64 = 10;
    let dynamic = elf.segments_of(crate::crash::elf::PT_DYNAMIC).next()?;
    let bytes = elf.segment_bytes(dynamic);
    let value = |tag: u64| {
        let entry = bytes
            .chunks_exact(16)
            .find(|e| le::u64_at(e, 0) == Some(tag))?;
        le::u64_at(entry, 8)
    };
    let at = |address: u64| {
        elf.at_address(address)
            .or_else(|| elf.at_address(address.wrapping_sub(bias)))
    };
    let (symbols, strings) = (value(DT_SYMTAB)?, value(DT_STRTAB)?);
    let strings_size = usize::try_from(value(DT_STRSZ)?).ok()?;
    let symbol_bytes = at(symbols)?;
    let end = usize::try_from(strings.checked_sub(symbols)?)
        .ok()?
        .min(symbol_bytes.len());
    let string_bytes = at(strings)?;
    Some(Table {
        symbols: symbol_bytes.get(..end)?,
        strings: string_bytes.get(..strings_size.min(string_bytes.len()))?,
    })
}

/// The best function symbol for an address, over several tables.
pub fn find<'a>(tables: &[Table<'a>], address: u64) -> Option<Symbol<'a>> {
    type Names = (Reverse<usize>, u8);
    let mut best: Option<((Rank, Names), Symbol<'a>)> = None;
    for table in tables {
        for entry in table.symbols.as_chunks::<SYMBOL_SIZE>().0 {
            let Some((rank, name_at, start, size)) = candidate(entry, address) else {
                continue;
            };
            if best.as_ref().is_some_and(|((known, _), _)| *known > rank) {
                continue;
            }
            let Some(name) = le::c_string(table.strings, name_at).filter(|n| is_function_name(n))
            else {
                continue;
            };
            // Of several names for one place the one that people call it by: `free`, not `__libc_free`.
            let rank = (rank, (Reverse(underscores(name)), binding_of(entry)));
            if best.as_ref().is_some_and(|(known, _)| *known >= rank) {
                continue;
            }
            best = Some((
                rank,
                Symbol {
                    name,
                    address: start,
                    size,
                },
            ));
        }
    }
    best.map(|(_, symbol)| symbol)
}

/// All function symbols by address, for when many addresses are asked for.
pub struct Index<'a> {
    tables: Vec<Table<'a>>,
    /// Start, table, symbol; sorted.
    starts: Vec<(u64, u16, u32)>,
}

impl<'a> Index<'a> {
    pub fn new(tables: &[Table<'a>]) -> Index<'a> {
        let mut starts = Vec::new();
        for (table, number) in tables.iter().zip(0u16..) {
            for (entry, symbol) in table
                .symbols
                .as_chunks::<SYMBOL_SIZE>()
                .0
                .iter()
                .zip(0u32..)
            {
                // A symbol is a candidate at its own start, or never.
                let start = le::u64_at(entry, 8).unwrap_or(0);
                if candidate(entry, start).is_some() {
                    starts.push((start, number, symbol));
                }
            }
        }
        starts.sort_unstable();
        Index {
            tables: tables.to_vec(),
            starts,
        }
    }

    /// As `find`; looks at the nearest symbols before the address only.
    pub fn find(&self, address: u64) -> Option<Symbol<'a>> {
        /// Labels and aliases that may stand inside one function.
        const NEAREST: usize = 256;
        let end = self
            .starts
            .partition_point(|(start, _, _)| *start <= address);
        let near = self.starts.get(end.saturating_sub(NEAREST)..end)?;
        let entries = near.iter().filter_map(|(_, number, symbol)| {
            let table = self.tables.get(usize::from(*number))?;
            let at = *symbol as usize * SYMBOL_SIZE;
            Some(Table {
                symbols: table.symbols.get(at..at + SYMBOL_SIZE)?,
                strings: table.strings,
            })
        });
        find(&entries.collect::<Vec<_>>(), address)
    }
}

/// The address of a variable or function by name.
pub fn by_name<'a>(tables: &[Table<'a>], name: &'a [u8]) -> Option<Symbol<'a>> {
    tables.iter().find_map(|table| {
        table
            .symbols
            .as_chunks::<SYMBOL_SIZE>()
            .0
            .iter()
            .find_map(|entry| {
                let strings = table.strings.get(le::u32_at(entry, 0)? as usize..)?;
                let rest = strings.strip_prefix(name)?;
                let address = le::u64_at(entry, 8)?;
                let matches = matches!(rest.first(), Some(0 | b'@')) && le::u16_at(entry, 6)? != 0;
                matches.then_some(Symbol {
                    name,
                    address,
                    size: le::u64_at(entry, 16)?,
                })
            })
    })
}

/// Symbols that contain the address beat those before it; then the nearer start, functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    contains: bool,
    start: u64,
    function: bool,
}

/// Global names before weak ones before local ones.
fn binding_of(entry: &[u8; SYMBOL_SIZE]) -> u8 {
    match entry[4] >> 4 {
        1 => 2,
        2 => 1,
        _ => 0,
    }
}

/// At the beginning of a name, by which C libraries tell what is theirs. Mangled names begin with one.
fn underscores(name: &[u8]) -> usize {
    let leading = name.iter().take_while(|byte| **byte == b'_').count();
    leading - usize::from(name.starts_with(b"_Z") || name.starts_with(b"_R"))
}

fn candidate(entry: &[u8; SYMBOL_SIZE], address: u64) -> Option<(Rank, usize, u64, u64)> {
    let (start, size) = (le::u64_at(entry, 8)?, le::u64_at(entry, 16)?);
    if start > address || start == 0 || le::u16_at(entry, 6)? == 0 {
        return None;
    }
    let contains = address - start < size;
    if !contains && (size != 0 || address - start > MAX_SIZELESS) {
        return None;
    }
    let kind = entry[4] & 0xf;
    // Who jumped into data is best told whose data it is.
    let is_data = contains && kind == STT_OBJECT;
    let is_function = matches!(kind, STT_FUNC | STT_GNU_IFUNC);
    if !is_data && !is_function && kind != STT_NOTYPE {
        return None;
    }
    let rank = Rank {
        contains,
        start,
        function: is_function,
    };
    Some((rank, le::u32_at(entry, 0)? as usize, start, size))
}

/// `$x` and `$d` mark code and data on aarch64; they are no functions.
fn is_function_name(name: &[u8]) -> bool {
    !name.is_empty() && !matches!(name, [b'$', b'x' | b'd', ..]) && !name.starts_with(b".L")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn symbol(name: u32, info: u8, address: u64, size: u64) -> Vec<u8> {
        let mut bytes = name.to_le_bytes().to_vec();
        bytes.extend([info, 0, 1, 0]);
        bytes.extend(address.to_le_bytes());
        bytes.extend(size.to_le_bytes());
        bytes
    }

    #[test]
    fn the_containing_function_wins() {
        let strings = b"\0outer\0inner\0label\0$x\0datum\0__free\0_Zwide\0";
        let symbols: Vec<u8> = [
            symbol(1, 0x12, 0x1000, 0x100),
            symbol(7, 0x02, 0x1040, 0x10),
            symbol(13, 0x00, 0x2000, 0),
            symbol(19, 0x00, 0x2004, 0),
            symbol(22, 0x11, 0x2020, 0x10),
            symbol(28, 0x12, 0x3000, 0x10),
            symbol(30, 0x22, 0x3000, 0x10),
            symbol(35, 0x12, 0x4000, 0x10),
            symbol(37, 0x22, 0x4000, 0x10),
        ]
        .concat();
        let tables = [Table {
            symbols: &symbols,
            strings,
        }];
        let name = |address| find(&tables, address).map(|s| s.name);
        assert_eq!(name(0x1000), Some(&b"outer"[..]));
        assert_eq!(name(0x1044), Some(&b"inner"[..]));
        assert_eq!(name(0x1050), Some(&b"outer"[..]));
        assert_eq!(name(0x1100), None);
        assert_eq!(name(0x2008), Some(&b"label"[..]));
        // Two names each: without underscores; then the stronger binding.
        assert_eq!(name(0x3001), Some(&b"free"[..]));
        assert_eq!(name(0x4001), Some(&b"_Zwide"[..]));
        assert_eq!(name(0x202f), Some(&b"datum"[..]));
        assert_eq!(name(0x2030), Some(&b"label"[..]));
        assert_eq!(name(0x9_0000), None);
        assert_eq!(by_name(&tables, b"inner").map(|s| s.address), Some(0x1040));
        assert_eq!(by_name(&tables, b"inne"), None);
        let index = Index::new(&tables);
        for address in (0xff0..0x2100).chain([0x3001, 0x4001, 0x9_0000]) {
            assert_eq!(index.find(address), find(&tables, address), "{address:x}");
        }
    }
}
