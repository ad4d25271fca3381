//! debug sections, link-time address → source places with inlined calls, innermost first.
//!
//! addr2line finds unit, function, inlined calls and line; here stand what it leaves to its user: loading sections,
//! split units (`.dwo`, `.dwp`), supplementary files, and readable names. Damaged DWARF gives fewer places, never an
//! end of the analysis.

use crate::crash::elf::Elf;
use crate::crash::files::Files;
use crate::crash::symbols::demangle;
use crate::crash::symbols::find::Found;
use crate::crash::symbols::scope_names::{declared_line, qualified_name};
use crate::crash::unwind::rules::Bytes;
use addr2line::{Context, LookupContinuation, LookupResult, SplitDwarfLoad};
use gimli::{Dwarf, DwarfPackage, LittleEndian, SectionId, UnitRef};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Deeper inlining than this is broken debug information.
const MAX_INLINED: usize = 200;

/// A function and a line in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub function: Option<String>,
    pub file: Option<String>,
    pub line: Option<u32>,
    pub column: Option<u32>,
    pub inlined: bool,
    /// The line on which the function's declaration begins.
    pub declared: Option<u32>,
    /// The DIE of the function or inlined call, in the unit of the address.
    pub entry: Option<gimli::UnitOffset>,
}

/// The debug information of one module.
pub struct Debug<'a> {
    context: Context<Bytes<'a>>,
    package: OnceCell<Option<DwarfPackage<Bytes<'a>>>>,
    /// The module's file and its debug file: split units lie next to them.
    beside: Vec<PathBuf>,
    extra_dirs: Vec<PathBuf>,
}

impl<'a> Debug<'a> {
    pub fn new(
        debug: &Elf<'a>,
        supplementary: Option<&Elf<'a>>,
        beside: Vec<PathBuf>,
        extra_dirs: Vec<PathBuf>,
        files: &impl Files<'a>,
    ) -> Option<Debug<'a>> {
        let mut dwarf = load(debug, |id| id.name(), files);
        if let Some(elf) = supplementary {
            dwarf.set_sup(load(elf, |id| id.name(), files));
        }
        let context = Context::from_arc_dwarf(Arc::new(dwarf)).ok()?;
        Some(Debug {
            context,
            package: OnceCell::new(),
            beside,
            extra_dirs,
        })
    }

    /// Every function that is active at an address, innermost first; empty where nothing is known.
    pub fn places(&self, address: u64, files: &impl Files<'a>) -> Vec<Place> {
        let Some(Ok(mut frames)) = self.resolve(self.context.find_frames(address), files) else {
            return Vec::new();
        };
        let unit = self.unit(address, files);
        let mut places = Vec::new();
        while let Ok(Some(frame)) = frames.next() {
            if places.len() >= MAX_INLINED {
                break;
            }
            let raw = frame
                .function
                .as_ref()
                .and_then(|f| f.raw_name().ok())
                .map(Cow::into_owned);
            let location = frame.location.as_ref();
            places.push(Place {
                function: readable(raw, unit.as_ref(), frame.dw_die_offset),
                file: location.and_then(|l| l.file).map(tidy),
                line: location.and_then(|l| l.line).filter(|l| *l != 0),
                column: location.and_then(|l| l.column).filter(|c| *c != 0),
                inlined: true,
                declared: unit
                    .as_ref()
                    .zip(frame.dw_die_offset)
                    .and_then(|(unit, entry)| declared_line(unit, entry)),
                entry: frame.dw_die_offset,
            });
        }
        if let Some(innermost) = places.first_mut().filter(|p| p.line.is_none()) {
            self.line_before(address, innermost);
        }
        if let Some(outermost) = places.last_mut() {
            outermost.inlined = false;
        }
        places
    }

    /// Code that belongs to no line (line 0) stands between lines: the last one before it tells the place best.
    fn line_before(&self, address: u64, place: &mut Place) {
        /// Farther back another statement is as likely.
        const REACH: u64 = 64;
        let Ok(rows) = self
            .context
            .find_location_range(address.saturating_sub(REACH), address)
        else {
            return;
        };
        let Some((_, _, row)) = rows
            .filter(|(_, _, row)| row.line.is_some_and(|l| l != 0))
            .last()
        else {
            return;
        };
        place.file = row.file.map(tidy);
        place.line = row.line;
        place.column = row.column.filter(|c| *c != 0);
    }

    /// The unit that describes the code at an address (the split one where there is one).
    pub fn unit(&self, address: u64, files: &impl Files<'a>) -> Option<UnitRef<'_, Bytes<'a>>> {
        self.resolve(self.context.find_dwarf_and_unit(address), files)?
    }

    fn resolve<L>(&self, mut result: LookupResult<L>, files: &impl Files<'a>) -> Option<L::Output>
    where
        L: LookupContinuation<Buf = Bytes<'a>>,
    {
        loop {
            match result {
                LookupResult::Output(output) => return Some(output),
                LookupResult::Load { load, continuation } => {
                    result = continuation.resume(self.split_unit(&load, files));
                }
            }
        }
    }

    fn split_unit(
        &self,
        load: &SplitDwarfLoad<Bytes<'a>>,
        files: &impl Files<'a>,
    ) -> Option<Arc<Dwarf<Bytes<'a>>>> {
        let package = self.package.get_or_init(|| self.open_package(files));
        if let Some(unit) = package
            .as_ref()
            .and_then(|p| p.find_cu(load.dwo_id, &load.parent).ok().flatten())
        {
            return Some(Arc::new(unit));
        }
        let name = text(load.path.as_ref()?);
        let compiled_in = load.comp_dir.as_ref().map(|d| text(d)).unwrap_or_default();
        let base = name.file_name().unwrap_or_default().to_owned();
        let near = self.beside.iter().filter_map(|p| p.parent());
        let near = near.flat_map(|folder| [folder.join(&name), folder.join(&base)]);
        let extra = self.extra_dirs.iter().map(|dir| dir.join(&base));
        std::iter::once(compiled_in.join(&name))
            .chain(near)
            .chain(extra)
            .find_map(|path| {
                let elf = files.open(&path).and_then(Elf::parse)?;
                let mut dwarf = load_split(&elf, files);
                let header = dwarf.units().next().ok()??;
                if dwarf.unit(header).ok()?.dwo_id != Some(load.dwo_id) {
                    return None;
                }
                dwarf.make_dwo(&load.parent);
                Some(Arc::new(dwarf))
            })
    }

    fn open_package(&self, files: &impl Files<'a>) -> Option<DwarfPackage<Bytes<'a>>> {
        let beside = self.beside.iter().flat_map(|path| {
            let mut appended = path.clone().into_os_string();
            appended.push(".dwp");
            [PathBuf::from(appended), path.with_extension("dwp")]
        });
        let names: Vec<_> = self.beside.iter().filter_map(|p| p.file_name()).collect();
        let extra = self.extra_dirs.iter().flat_map(|dir| {
            names.iter().map(move |name| {
                let mut file = name.to_os_string();
                file.push(".dwp");
                dir.join(file)
            })
        });
        beside.chain(extra).find_map(|path| {
            let elf = files.open(&path).and_then(Elf::parse)?;
            let section =
                |id: SectionId| Ok::<_, gimli::Error>(section(&elf, id.dwo_name(), files));
            DwarfPackage::load(section, Bytes::new(&[], LittleEndian)).ok()
        })
    }
}

/// The linkage name made readable; a plain name with the scopes that it stands in.
fn readable(
    raw: Option<String>,
    unit: Option<&UnitRef<'_, Bytes<'_>>>,
    entry: Option<gimli::UnitOffset>,
) -> Option<String> {
    let raw = raw?;
    let scoped = || {
        unit.zip(entry)
            .and_then(|(unit, entry)| qualified_name(unit, entry))
    };
    if !demangle::is_mangled(&raw) {
        return Some(scoped().unwrap_or(raw));
    }
    let name = demangle::demangle(&raw);
    // Rust's older mangling calls every closure alike; the scopes number them.
    let numbered = if name.contains("{{closure}}") {
        scoped()
    } else {
        None
    };
    Some(numbered.filter(|n| !n.contains("{impl#")).unwrap_or(name))
}

/// Without the `.` and `x/..` that build systems leave in paths; leading `..` stay.
fn tidy(path: &str) -> String {
    if !path.split('/').any(|part| part == "." || part == "..") {
        return path.to_owned();
    }
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." if kept.last().is_some_and(|last| !matches!(*last, "" | "..")) => {
                kept.pop();
            }
            _ => kept.push(part),
        }
    }
    kept.join("/")
}

fn text(bytes: &Bytes<'_>) -> PathBuf {
    PathBuf::from(bytes.to_string_lossy().into_owned())
}

fn load_split<'a>(elf: &Elf<'a>, files: &impl Files<'a>) -> Dwarf<Bytes<'a>> {
    let named = |id: &SectionId| id.dwo_name().unwrap_or("");
    load(elf, named, files)
}

fn load<'a>(
    elf: &Elf<'a>,
    name: impl Fn(&SectionId) -> &'static str,
    files: &impl Files<'a>,
) -> Dwarf<Bytes<'a>> {
    let wanted = |id: &SectionId| !matches!(id, SectionId::DebugMacro | SectionId::DebugMacinfo);
    let loaded = Dwarf::load(|id| {
        let name = wanted(&id).then(|| name(&id));
        Ok::<_, gimli::Error>(section(elf, name, files))
    });
    loaded.unwrap_or_default()
}

fn section<'a>(elf: &Elf<'a>, name: Option<&str>, files: &impl Files<'a>) -> Bytes<'a> {
    let data = name
        .filter(|n| !n.is_empty())
        .and_then(|n| elf.section_data(n.as_bytes()));
    let bytes = match data {
        Some(Cow::Borrowed(bytes)) => bytes,
        Some(Cow::Owned(bytes)) => files.keep(bytes),
        None => &[],
    };
    Bytes::new(bytes, LittleEndian)
}

/// Contents of a section that is not DWARF, kept as long as the files.
pub fn kept_section<'a>(elf: &Elf<'a>, name: &str, files: &impl Files<'a>) -> &'a [u8] {
    section(elf, Some(name), files).slice()
}

/// A file's name for messages.
pub fn shown(found: &Found<'_>) -> String {
    Path::display(&found.path).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lose_what_leads_back() {
        assert_eq!(tidy("./csu/../sysdeps/nptl/x.h"), "sysdeps/nptl/x.h");
        assert_eq!(tidy("/a/./b/../c.c"), "/a/c.c");
        assert_eq!(tidy("../../x/y.c"), "../../x/y.c");
        assert_eq!(tidy("/../x"), "/../x");
        assert_eq!(tidy("plain.c"), "plain.c");
    }
}
