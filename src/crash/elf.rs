//! bytes of a 64-bit little-endian ELF file → header, segments, sections, notes.
//!
//! Reads whole files, truncated ones, core files with more than 65534 segments, and images put together from
//! memory that have no section table. Never panics; what does not fit is left out. Sources: elf(5), gABI 4.1.

use crate::crash::le;
use std::borrow::Cow;

pub const ET_CORE: u16 = 4;
pub const EM_X86_64: u16 = 62;
pub const EM_AARCH64: u16 = 183;
pub const PT_LOAD: u32 = 1;
/// This house's own (of the range that is for systems): memory that was there and is not in the core. As a PT_LOAD
/// without bytes gdb would show it as zeros.
pub const PT_OMITTED: u32 = 0x6a74_6f6d;
pub const PT_DYNAMIC: u32 = 2;
pub const PT_INTERP: u32 = 3;
pub const PT_NOTE: u32 = 4;
pub const PT_PHDR: u32 = 6;
pub const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
pub const PF_X: u32 = 1;
pub const PF_W: u32 = 2;
pub const PF_R: u32 = 4;
pub const SHT_NOBITS: u32 = 8;
pub const NT_GNU_BUILD_ID: u32 = 3;

const PN_XNUM: u16 = 0xffff;
const SHF_COMPRESSED: u64 = 0x800;
const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;
/// A section that claims to decompress to more is left alone: the analyser has a memory limit.
const MAX_DECOMPRESSED: u64 = 512 << 20;

/// One program header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    pub kind: u32,
    pub flags: u32,
    pub offset: u64,
    pub address: u64,
    pub file_size: u64,
    pub memory_size: u64,
}

/// One section header, with its name.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    pub name: &'a [u8],
    pub kind: u32,
    pub flags: u64,
    pub address: u64,
    pub offset: u64,
    pub size: u64,
    pub link: u32,
    pub entry_size: u64,
}

/// One note of a PT_NOTE segment or a note section.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    pub name: &'a [u8],
    pub kind: u32,
    pub data: &'a [u8],
}

/// A parsed file: tables copied, contents borrowed.
#[derive(Clone, Debug)]
pub struct Elf<'a> {
    pub bytes: &'a [u8],
    pub kind: u16,
    pub machine: u16,
    pub entry: u64,
    pub segments: Vec<Segment>,
    pub sections: Vec<Section<'a>>,
}

impl<'a> Elf<'a> {
    /// `None` unless the bytes begin with a 64-bit little-endian ELF header.
    pub fn parse(bytes: &'a [u8]) -> Option<Elf<'a>> {
        if bytes.get(..6)? != b"\x7fELF\x02\x01" {
            return None;
        }
        let section_table = SectionTable::read(bytes)?;
        let declared = le::u16_at(bytes, 56)?;
        let count = match declared {
            PN_XNUM => section_table
                .first_info(bytes)
                .unwrap_or(u32::from(PN_XNUM)),
            n => u32::from(n),
        };
        Some(Elf {
            bytes,
            kind: le::u16_at(bytes, 16)?,
            machine: le::u16_at(bytes, 18)?,
            entry: le::u64_at(bytes, 24)?,
            segments: read_segments(bytes, le::u64_at(bytes, 32)?, le::u16_at(bytes, 54)?, count),
            sections: section_table.sections(bytes),
        })
    }

    pub fn segments_of(&self, kind: u32) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(move |s| s.kind == kind)
    }

    /// The bytes of a segment that the file has.
    pub fn segment_bytes(&self, segment: &Segment) -> &'a [u8] {
        le::slice_up_to(self.bytes, segment.offset, segment.file_size)
    }

    /// Bytes of the file at a link-time address, to the end of the segment's file part.
    pub fn at_address(&self, address: u64) -> Option<&'a [u8]> {
        let segment = self
            .segments_of(PT_LOAD)
            .find(|s| address >= s.address && address - s.address < s.file_size)?;
        self.segment_bytes(segment)
            .get(usize::try_from(address - segment.address).ok()?..)
    }

    pub fn section(&self, name: &[u8]) -> Option<&Section<'a>> {
        self.sections.iter().find(|s| s.name == name)
    }

    /// A section's contents as they stand in the file.
    pub fn raw_section(&self, section: &Section<'a>) -> Option<&'a [u8]> {
        if section.kind == SHT_NOBITS {
            return None;
        }
        le::slice(self.bytes, section.offset, section.size)
    }

    /// A section's contents, decompressed where needed (`SHF_COMPRESSED`, or the older `.zdebug_` names).
    pub fn section_data(&self, name: &[u8]) -> Option<Cow<'a, [u8]>> {
        if let Some(section) = self.section(name) {
            let data = self.raw_section(section)?;
            if section.flags & SHF_COMPRESSED == 0 {
                return Some(Cow::Borrowed(data));
            }
            return decompress(data).map(Cow::Owned);
        }
        let mut old_name = b".zdebug_".to_vec();
        old_name.extend_from_slice(name.strip_prefix(b".debug_")?);
        let data = self.raw_section(self.section(&old_name)?)?;
        let size = u64::from_be_bytes(le::array(data.strip_prefix(b"ZLIB")?, 0)?);
        inflate(data.get(12..)?, size).map(Cow::Owned)
    }

    /// Every note, of the PT_NOTE segments or, where there are none (as in some separate debug files, whose
    /// segments hold nothing), of the note sections.
    pub fn notes(&self) -> Vec<Note<'a>> {
        const SHT_NOTE: u32 = 7;
        let mut notes = Vec::new();
        for segment in self.segments_of(PT_NOTE) {
            notes.extend(Notes(self.segment_bytes(segment)));
        }
        if notes.is_empty() {
            for section in self.sections.iter().filter(|s| s.kind == SHT_NOTE) {
                notes.extend(self.raw_section(section).map(Notes).into_iter().flatten());
            }
        }
        notes
    }

    pub fn build_id(&self) -> Option<&'a [u8]> {
        find_build_id(self.notes().into_iter()).or_else(|| {
            let section = self.section(b".note.gnu.build-id")?;
            find_build_id(Notes(self.raw_section(section)?))
        })
    }
}

fn find_build_id<'a>(mut notes: impl Iterator<Item = Note<'a>>) -> Option<&'a [u8]> {
    notes
        .find(|n| n.kind == NT_GNU_BUILD_ID && n.name == b"GNU" && !n.data.is_empty())
        .map(|n| n.data)
}

fn read_segments(bytes: &[u8], table: u64, entry_size: u16, count: u32) -> Vec<Segment> {
    let entry_size = u64::from(entry_size.max(56));
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let header = table
            .checked_add(index * entry_size)
            .and_then(|offset| le::slice(bytes, offset, 56));
        let Some(segment) = header.and_then(read_segment) else {
            break;
        };
        segments.push(segment);
    }
    segments
}

/// One 56-byte program header.
pub fn read_segment(header: &[u8]) -> Option<Segment> {
    Some(Segment {
        kind: le::u32_at(header, 0)?,
        flags: le::u32_at(header, 4)?,
        offset: le::u64_at(header, 8)?,
        address: le::u64_at(header, 16)?,
        file_size: le::u64_at(header, 32)?,
        memory_size: le::u64_at(header, 40)?,
    })
}

struct SectionTable {
    offset: u64,
    entry_size: u64,
    count: u16,
    names: u16,
}

impl SectionTable {
    fn read(bytes: &[u8]) -> Option<SectionTable> {
        Some(SectionTable {
            offset: le::u64_at(bytes, 40)?,
            entry_size: u64::from(le::u16_at(bytes, 58)?.max(64)),
            count: le::u16_at(bytes, 60)?,
            names: le::u16_at(bytes, 62)?,
        })
    }

    fn header<'a>(&self, bytes: &'a [u8], index: u64) -> Option<&'a [u8]> {
        let at = self
            .offset
            .checked_add(index.checked_mul(self.entry_size)?)?;
        le::slice(bytes, at, 64)
    }

    /// `sh_info` of section 0: the number of segments when it does not fit the header.
    fn first_info(&self, bytes: &[u8]) -> Option<u32> {
        le::u32_at(self.header(bytes, 0)?, 44)
    }

    fn sections<'a>(&self, bytes: &'a [u8]) -> Vec<Section<'a>> {
        if self.offset == 0 {
            return Vec::new();
        }
        let first = self.header(bytes, 0);
        let count = match self.count {
            0 => first.and_then(|h| le::u64_at(h, 32)).unwrap_or(0),
            n => u64::from(n),
        };
        let names = match self.names {
            0xffff => first.and_then(|h| le::u32_at(h, 40)).unwrap_or(0),
            n => u32::from(n),
        };
        let names = self
            .header(bytes, u64::from(names))
            .and_then(|h| le::slice(bytes, le::u64_at(h, 24)?, le::u64_at(h, 32)?))
            .unwrap_or_default();
        let headers = (0..count).map_while(|i| self.header(bytes, i));
        headers.filter_map(|h| read_section(h, names)).collect()
    }
}

fn read_section<'a>(header: &[u8], names: &'a [u8]) -> Option<Section<'a>> {
    Some(Section {
        name: le::c_string(names, le::u32_at(header, 0)? as usize).unwrap_or_default(),
        kind: le::u32_at(header, 4)?,
        flags: le::u64_at(header, 8)?,
        address: le::u64_at(header, 16)?,
        offset: le::u64_at(header, 24)?,
        size: le::u64_at(header, 32)?,
        link: le::u32_at(header, 40)?,
        entry_size: le::u64_at(header, 56)?,
    })
}

/// Iterates over the notes in a run of bytes; ends at the first that does not fit.
#[derive(Clone, Copy)]
pub struct Notes<'a>(pub &'a [u8]);

impl<'a> Iterator for Notes<'a> {
    type Item = Note<'a>;

    fn next(&mut self) -> Option<Note<'a>> {
        let name_size = u64::from(le::u32_at(self.0, 0)?);
        let data_size = u64::from(le::u32_at(self.0, 4)?);
        let kind = le::u32_at(self.0, 8)?;
        let data_at = 12 + name_size.next_multiple_of(4);
        let name = le::slice(self.0, 12, name_size)?;
        let data = le::slice(self.0, data_at, data_size)?;
        self.0 = le::slice_up_to(self.0, data_at + data_size.next_multiple_of(4), u64::MAX);
        Some(Note {
            name: name.strip_suffix(b"\0").unwrap_or(name),
            kind,
            data,
        })
    }
}

fn decompress(data: &[u8]) -> Option<Vec<u8>> {
    let size = le::u64_at(data, 8)?;
    let body = data.get(24..)?;
    match le::u32_at(data, 0)? {
        ELFCOMPRESS_ZLIB => inflate(body, size),
        ELFCOMPRESS_ZSTD => unzstd(body, size),
        _ => None,
    }
}

fn inflate(body: &[u8], size: u64) -> Option<Vec<u8>> {
    let size = usize::try_from(size)
        .ok()
        .filter(|&s| s as u64 <= MAX_DECOMPRESSED)?;
    // Deflate cannot do better than about 1:1032: a larger claim is a lie that would only cost memory.
    if size / 1100 > body.len() {
        return None;
    }
    miniz_oxide::inflate::decompress_to_vec_zlib_with_limit(body, size).ok()
}

fn unzstd(body: &[u8], size: u64) -> Option<Vec<u8>> {
    use std::io::Read;
    let size = usize::try_from(size)
        .ok()
        .filter(|&s| s as u64 <= MAX_DECOMPRESSED)?;
    let mut rest = body;
    let mut out = Vec::new();
    // A section may hold several frames after each other (`ld` writes one, parallel linkers more).
    while !rest.is_empty() && out.len() < size {
        let frame = ruzstd::decoding::StreamingDecoder::new(&mut rest).ok()?;
        let before = out.len();
        frame
            .take((size - before) as u64)
            .read_to_end(&mut out)
            .ok()?;
        if out.len() == before {
            break;
        }
    }
    Some(out)
}
