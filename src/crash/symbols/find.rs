//! a mapped module → its file, its separate debug file, its supplementary file.
//!
//! A file is taken only if it is of the build that ran: build-ids are compared, and for `.gnu_debuglink` its checksum.
//! Folders are those of gdb: `.build-id` below each debug folder, the link's name next to the file, in `.debug` and
//! below each debug folder; also flat folders into which symbol files were copied.

use crate::checksum::checksum;
use crate::crash::elf::Elf;
use crate::crash::files::Files;
use crate::crash::le;
use crate::crash::modules::{Kind, Mapped};
use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

/// How much of the debug files is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Depth {
    #[default]
    Everything,
    /// Only symbol tables and unwind tables: little memory, little that can go wrong. For a second attempt after the
    /// first ran into its limits.
    SymbolTables,
}

/// Where to look, as the caller asked.
#[derive(Clone, Debug, Default)]
pub struct Search {
    /// Taken for the main program, wherever it was started from.
    pub executable: Option<PathBuf>,
    /// Folders with separate debug files, before the system's own.
    pub debug_dirs: Vec<PathBuf>,
    /// Stands for `/` of the crashed process.
    pub sysroot: Option<PathBuf>,
    /// How much is read.
    pub depth: Depth,
}

const SYSTEM_DEBUG_DIR: &str = "/usr/lib/debug";

/// A file that was found.
#[derive(Clone, Debug)]
pub struct Found<'a> {
    pub path: PathBuf,
    pub elf: Elf<'a>,
}

/// A module's own file, or why there is none.
pub enum Image<'a> {
    Found(Found<'a>),
    Missing,
    /// The file at this path is of another build.
    OtherBuild(PathBuf),
}

impl Search {
    /// The path as seen from here.
    pub fn rooted(&self, path: &Path) -> PathBuf {
        match &self.sysroot {
            Some(root) => root.join(relative(path)),
            None => path.to_owned(),
        }
    }

    fn all_debug_dirs(&self) -> Vec<PathBuf> {
        let mut dirs = self.debug_dirs.clone();
        dirs.push(self.rooted(Path::new(SYSTEM_DEBUG_DIR)));
        dirs
    }

    /// The file that a process was started from.
    pub fn started<'a>(&self, path: Option<String>, files: &impl Files<'a>) -> Option<Elf<'a>> {
        let path = self
            .executable
            .clone()
            .or_else(|| Some(self.rooted(Path::new(&path?))))?;
        files.open(&path).and_then(Elf::parse)
    }

    pub fn image<'a>(&self, module: &Mapped, files: &impl Files<'a>) -> Image<'a> {
        if module.kind == Kind::Vdso {
            return Image::Missing;
        }
        let mut candidates = Vec::new();
        if let Some(path) = self
            .executable
            .as_ref()
            .filter(|_| module.kind == Kind::Executable)
        {
            candidates.push(path.clone());
        }
        let path = Path::new(&module.path);
        candidates.push(self.rooted(path));
        // As it was loaded; most likely it was started where the program is.
        let beside = self
            .executable
            .as_ref()
            .and_then(|program| program.parent());
        candidates.extend(
            beside
                .filter(|_| path.is_relative())
                .map(|folder| folder.join(path)),
        );
        if let Some(id) = &module.build_id {
            candidates.extend(
                self.all_debug_dirs()
                    .iter()
                    .map(|dir| by_build_id(dir, id, "")),
            );
            let name = Path::new(&module.path).file_name();
            candidates.extend(
                self.debug_dirs
                    .iter()
                    .filter_map(|dir| Some(dir.join(name?))),
            );
        }
        let mut other = None;
        for path in candidates {
            let Some(elf) = files.open(&path).and_then(Elf::parse) else {
                continue;
            };
            let same = match (&module.build_id, elf.build_id()) {
                (Some(wanted), Some(found)) => wanted == found,
                (Some(_), None) => false,
                // Nothing to compare with: believe the path, unless it is known to be another file.
                (None, _) => !module.deleted,
            };
            if same {
                return Image::Found(Found { path, elf });
            }
            other.get_or_insert(path);
        }
        other.map_or(Image::Missing, Image::OtherBuild)
    }

    /// The file that holds the debug information that was split from `elf`.
    pub fn debug_file<'a>(
        &self,
        path: &Path,
        elf: Option<&Elf<'a>>,
        build_id: Option<&[u8]>,
        files: &impl Files<'a>,
    ) -> Option<Found<'a>> {
        let open = |path: PathBuf| {
            Some(Found {
                elf: files.open(&path).and_then(Elf::parse)?,
                path,
            })
        };
        let dirs = self.all_debug_dirs();
        let name = path.file_name().unwrap_or_default();
        if let Some(id) = build_id {
            let mut with_suffix = name.to_owned();
            with_suffix.push(".debug");
            let in_folders = dirs.iter().map(|dir| by_build_id(dir, id, ".debug"));
            let flat = self
                .debug_dirs
                .iter()
                .flat_map(|dir| [dir.join(&with_suffix), dir.join(name)]);
            let found = in_folders
                .chain(flat)
                .filter_map(open)
                .find(|f| f.elf.build_id() == Some(id) && has_symbols(&f.elf));
            if found.is_some() {
                return found;
            }
        }
        let (link, sum) = debug_link(elf?)?;
        let folder = path.parent().unwrap_or(Path::new("/"));
        let seen_from_inside = match &self.sysroot {
            Some(root) => folder.strip_prefix(root).unwrap_or(folder),
            None => folder,
        };
        let near = [folder.join(&link), folder.join(".debug").join(&link)];
        let below = dirs
            .iter()
            .map(|dir| dir.join(relative(seen_from_inside)).join(&link));
        let flat = self.debug_dirs.iter().map(|dir| dir.join(&link));
        near.into_iter()
            .chain(below)
            .chain(flat)
            .filter(|p| p != path)
            .filter_map(open)
            .find(|found| match (build_id, found.elf.build_id()) {
                (Some(wanted), Some(found)) => wanted == found,
                // CRC-32 of ISO 3309, which is that of IEEE 802.3.
                _ => checksum(found.elf.bytes) == sum,
            })
    }

    /// The supplementary file (`dwz -m`) that a debug file refers to.
    pub fn supplementary<'a>(&self, of: &Found<'a>, files: &impl Files<'a>) -> Option<Found<'a>> {
        let section = of
            .elf
            .section_data(b".gnu_debugaltlink")
            .or_else(|| of.elf.section_data(b".debug_sup"))?;
        // `.debug_sup` (DWARF 5 §7.3.6) has a version and a flag before the name, a length byte behind it.
        let (start, gap) = match of.elf.section(b".gnu_debugaltlink") {
            Some(_) => (0, 1),
            None => (3, 2),
        };
        let name = le::c_string(&section, start)?;
        let id = section.get(start + name.len() + gap..)?;
        let name = PathBuf::from(String::from_utf8_lossy(name).into_owned());
        let folder = of.path.parent().unwrap_or(Path::new("/"));
        let dirs = self.all_debug_dirs();
        let named = if name.is_absolute() {
            self.rooted(&name)
        } else {
            folder.join(&name)
        };
        let base = name.file_name().unwrap_or_default();
        let by_id = dirs.iter().map(|dir| by_build_id(dir, id, ".debug"));
        let dwz = dirs.iter().map(|dir| dir.join(".dwz").join(base));
        let flat = self.debug_dirs.iter().map(|dir| dir.join(base));
        std::iter::once(named)
            .chain(by_id)
            .chain(dwz)
            .chain(flat)
            .find_map(|path| {
                let elf = files.open(&path).and_then(Elf::parse)?;
                (elf.build_id() == Some(id)).then_some(Found { path, elf })
            })
    }
}

fn has_symbols(elf: &Elf<'_>) -> bool {
    has_dwarf(elf) || elf.section(b".symtab").is_some()
}

pub fn has_dwarf(elf: &Elf<'_>) -> bool {
    let present = |name: &[u8]| {
        elf.section(name)
            .is_some_and(|s| s.kind != crate::crash::elf::SHT_NOBITS)
    };
    present(b".debug_info") || present(b".zdebug_info")
}

/// Without what would leave the folder that it is joined to.
fn relative(path: &Path) -> PathBuf {
    path.components()
        .filter(|c| matches!(c, Component::Normal(_)))
        .collect()
}

fn by_build_id(dir: &Path, id: &[u8], suffix: &str) -> PathBuf {
    let hex = hex(id);
    let (first, rest) = hex.split_at(hex.len().min(2));
    dir.join(".build-id")
        .join(first)
        .join(format!("{rest}{suffix}"))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Name and checksum from `.gnu_debuglink`; the name is padded to four bytes.
fn debug_link(elf: &Elf<'_>) -> Option<(PathBuf, u32)> {
    let section = elf.raw_section(elf.section(b".gnu_debuglink")?)?;
    let name = le::c_string(section, 0)?;
    let sum = le::u32_at(section, (name.len() + 1).next_multiple_of(4))?;
    let name = String::from_utf8_lossy(name).into_owned();
    (!name.is_empty()).then(|| (PathBuf::from(name), sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside_the_sysroot() {
        let search = Search {
            sysroot: Some("/root".into()),
            ..Search::default()
        };
        assert_eq!(
            search.rooted(Path::new("/usr/../../etc/x")),
            Path::new("/root/usr/etc/x")
        );
        assert_eq!(
            Search::default().rooted(Path::new("/usr/x")),
            Path::new("/usr/x")
        );
    }

    #[test]
    fn build_ids_become_folders() {
        assert_eq!(
            by_build_id(Path::new("/d"), &[0xab, 0xcd, 0x01], ".debug"),
            Path::new("/d/.build-id/ab/cd01.debug")
        );
        assert_eq!(
            by_build_id(Path::new("/d"), &[], ""),
            Path::new("/d/.build-id/")
        );
    }
}
