//! a mapped module and its files, run-time address → functions and lines.
//!
//! Best first: debug information (its own, separate, split), then symbol tables (of the debug file, the file itself,
//! MiniDebugInfo). A module whose file is gone or of another build is read from the process' memory as far as the core
//! holds it.

pub mod demangle;
pub mod dwarf;
pub mod find;
pub mod scope_names;
pub mod symtab;

use crate::crash::core::Core;
use crate::crash::elf::Elf;
use crate::crash::files::Files;
use crate::crash::modules::{self, Kind, Mapped, Range};
use crate::crash::report;
use dwarf::{Debug, Place};
use find::{Depth, Found, Image, Search};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use symtab::Table;

/// Symbols searched for before an index of them is worth its memory.
const SEARCHES: usize = 200;

/// A module with everything that was found for it.
pub struct Module<'a> {
    pub mapped: Mapped,
    pub bias: u64,
    pub ranges: Vec<Range>,
    /// The file, or what memory holds of it.
    pub image: Option<Elf<'a>>,
    /// The image is the very file, not put together from memory.
    pub from_file: bool,
    pub debug_file: Option<PathBuf>,
    /// What the reader should know: file missing, of another build.
    pub note: Option<String>,
    image_path: Option<PathBuf>,
    debug: Option<Found<'a>>,
    supplementary: Option<Elf<'a>>,
    mini: Option<Elf<'a>>,
    tables: Vec<Table<'a>>,
    extra_dirs: Vec<PathBuf>,
    depth: Depth,
    asked: Cell<usize>,
    index: OnceCell<symtab::Index<'a>>,
    context: OnceCell<Option<Debug<'a>>>,
    known: RefCell<HashMap<u64, Vec<Place>>>,
}

impl<'a> Module<'a> {
    pub fn load(
        mapped: Mapped,
        core: &Core<'a>,
        search: &Search,
        files: &impl Files<'a>,
    ) -> Module<'a> {
        let mut note = None;
        let mut image_path = None;
        let mut from_file = true;
        let image = match search.image(&mapped, files) {
            Image::Found(found) => {
                image_path = Some(found.path);
                Some(found.elf)
            }
            other => {
                from_file = false;
                let image = image_in_memory(&mapped, core, files);
                note = missing_note(&mapped, &other, image.is_some());
                image
            }
        };
        let from_headers = image.as_ref().and_then(|e| mapped.bias_by(&e.segments));
        let bias = mapped
            .bias
            .or(from_headers)
            .unwrap_or_else(|| mapped.start());
        let ranges = match &image {
            Some(elf) if mapped.ranges.is_empty() => modules::ranges_at(bias, &elf.segments),
            _ => mapped.ranges.clone(),
        };
        let mut module = Module {
            bias,
            ranges,
            image,
            from_file,
            debug_file: None,
            note,
            image_path,
            debug: None,
            supplementary: None,
            mini: None,
            tables: Vec::new(),
            extra_dirs: search.debug_dirs.clone(),
            depth: search.depth,
            asked: Cell::new(0),
            index: OnceCell::new(),
            context: OnceCell::new(),
            known: RefCell::default(),
            mapped,
        };
        module.find_debug(search, files);
        module
    }

    fn find_debug(&mut self, search: &Search, files: &impl Files<'a>) {
        let path = self
            .image_path
            .clone()
            .unwrap_or_else(|| search.rooted(Path::new(&self.mapped.path)));
        let own = self.image.as_ref().filter(|e| find::has_dwarf(e));
        let id = self
            .mapped
            .build_id
            .clone()
            .or_else(|| self.image.as_ref()?.build_id().map(<[u8]>::to_vec));
        let is_vdso = self.mapped.kind == Kind::Vdso;
        self.debug = match own {
            Some(elf) => Some(Found {
                path: path.clone(),
                elf: elf.clone(),
            }),
            None if is_vdso => None,
            None => {
                let found = search.debug_file(&path, self.image.as_ref(), id.as_deref(), files);
                self.debug_file = found.as_ref().map(|f| f.path.clone());
                found
            }
        };
        self.supplementary = self
            .debug
            .as_ref()
            .and_then(|d| search.supplementary(d, files))
            .map(|f| f.elf);
        let image = self.image.iter();
        self.tables = self
            .debug
            .iter()
            .map(|d| &d.elf)
            .chain(image)
            .flat_map(|elf| symtab::tables(elf, self.bias))
            .collect();
        let full = |elf: &Elf<'a>| elf.section(b".symtab").is_some();
        if !self.debug.as_ref().is_some_and(|d| full(&d.elf))
            && !self.image.as_ref().is_some_and(full)
        {
            self.mini = self.image.as_ref().and_then(|e| mini_debug_info(e, files));
            self.tables.extend(
                self.mini
                    .iter()
                    .flat_map(|elf| symtab::tables(elf, self.bias)),
            );
        }
    }

    pub fn contains(&self, address: u64) -> bool {
        self.ranges
            .iter()
            .any(|r| (r.start..r.end).contains(&address))
    }

    pub fn name(&self) -> &str {
        self.mapped
            .path
            .rsplit('/')
            .next()
            .unwrap_or(&self.mapped.path)
    }

    pub fn start(&self) -> u64 {
        self.ranges
            .iter()
            .map(|r| r.start)
            .min()
            .unwrap_or(self.bias)
    }

    /// How far an address is from [`Module::start`], as reports write it. For what is loaded where it was linked
    /// (a program that is not position-independent) that is not the link-time address.
    pub fn offset(&self, address: u64) -> String {
        format!("{:#x}", address.wrapping_sub(self.start()))
    }

    pub fn end(&self) -> u64 {
        self.ranges.iter().map(|r| r.end).max().unwrap_or(self.bias)
    }

    /// Contents of every `.debug_frame` there is for this module.
    pub fn debug_frames(&self, files: &impl Files<'a>) -> Vec<&'a [u8]> {
        let separate = self
            .debug_file
            .as_ref()
            .and(self.debug.as_ref())
            .map(|d| &d.elf);
        let sources = self.image.iter().chain(separate).chain(self.mini.iter());
        sources
            .map(|elf| dwarf::kept_section(elf, ".debug_frame", files))
            .filter(|b| !b.is_empty())
            .collect()
    }

    pub fn symbols(&self) -> report::Symbols {
        match (&self.debug, self.tables.is_empty()) {
            (Some(debug), _) if find::has_dwarf(&debug.elf) && self.depth == Depth::Everything => {
                report::Symbols::Dwarf
            }
            (_, false) => report::Symbols::Symtab,
            (_, true) => report::Symbols::None,
        }
    }

    /// The functions active at a run-time address, innermost first; at least one place, perhaps with nothing known.
    pub fn places(&self, address: u64, files: &impl Files<'a>) -> Vec<Place> {
        let address = address.wrapping_sub(self.bias);
        if let Some(known) = self.known.borrow().get(&address) {
            return known.clone();
        }
        let mut places = self
            .debug(files)
            .map(|d| d.places(address, files))
            .unwrap_or_default();
        if places.is_empty() {
            places.push(Place::default());
        }
        if let Some(outermost) = places.last_mut().filter(|p| p.function.is_none()) {
            outermost.function = self.symbol(address);
        }
        self.known.borrow_mut().insert(address, places.clone());
        places
    }

    fn symbol(&self, address: u64) -> Option<String> {
        let asked = self.asked.get() + 1;
        self.asked.set(asked);
        let symbol = match asked {
            ..=SEARCHES => symtab::find(&self.tables, address),
            _ => self
                .index
                .get_or_init(|| symtab::Index::new(&self.tables))
                .find(address),
        }?;
        Some(demangle::demangle(&String::from_utf8_lossy(symbol.name)))
    }

    /// The run-time address of a variable or function.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        Some(
            symtab::by_name(&self.tables, name.as_bytes())?
                .address
                .wrapping_add(self.bias),
        )
    }

    /// The run-time addresses of a function's code.
    pub fn code_of(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let symbol = symtab::by_name(&self.tables, name.as_bytes())?;
        let start = symbol.address.wrapping_add(self.bias);
        Some(start..start.checked_add(symbol.size)?)
    }

    /// Whether Go's linker has made it.
    pub fn is_go(&self) -> bool {
        const LINES: [&[u8]; 2] = [b".gopclntab", b".data.rel.ro.gopclntab"];
        let image = self.image.as_ref();
        image.is_some_and(|elf| LINES.iter().any(|name| elf.section(name).is_some()))
    }

    /// The debug information, parsed at the first question.
    pub fn debug(&self, files: &impl Files<'a>) -> Option<&Debug<'a>> {
        let context = self.context.get_or_init(|| {
            let wanted = self.depth == Depth::Everything;
            let debug = self
                .debug
                .as_ref()
                .filter(|d| wanted && find::has_dwarf(&d.elf))?;
            let beside = self
                .image_path
                .iter()
                .cloned()
                .chain([debug.path.clone()])
                .collect();
            Debug::new(
                &debug.elf,
                self.supplementary.as_ref(),
                beside,
                self.extra_dirs.clone(),
                files,
            )
        });
        context.as_ref()
    }
}

fn image_in_memory<'a>(
    mapped: &Mapped,
    core: &Core<'a>,
    files: &impl Files<'a>,
) -> Option<Elf<'a>> {
    if mapped.kind == Kind::Vdso {
        return Elf::parse(core.memory.known(mapped.start()));
    }
    Elf::parse(files.keep(modules::image_from_memory(core, mapped)?))
}

fn missing_note(mapped: &Mapped, image: &Image<'_>, in_memory: bool) -> Option<String> {
    let what = match image {
        Image::Found(_) => return None,
        Image::Missing if mapped.kind == Kind::Vdso => return None,
        Image::Missing if mapped.deleted => "the file was deleted".to_owned(),
        Image::Missing => "file not found".to_owned(),
        Image::OtherBuild(path) => format!("{} is not the build that ran", path.display()),
    };
    let instead = if in_memory {
        "; read from memory as far as the core holds it"
    } else {
        ""
    };
    Some(format!("{what}{instead}"))
}

/// `.gnu_debugdata`: a symbol table compressed with xz inside a stripped file.
fn mini_debug_info<'a>(elf: &Elf<'a>, files: &impl Files<'a>) -> Option<Elf<'a>> {
    /// Distributions put a few hundred kilobytes there.
    const MAX_SIZE: usize = 64 << 20;
    let packed = elf.raw_section(elf.section(b".gnu_debugdata")?)?;
    let mut out = Bounded {
        bytes: Vec::new(),
        limit: MAX_SIZE,
    };
    lzma_rs::xz_decompress(&mut &*packed, &mut out).ok()?;
    Elf::parse(files.keep(out.bytes))
}

struct Bounded {
    bytes: Vec<u8>,
    limit: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.limit {
            return Err(std::io::Error::other("more than a symbol table can need"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
