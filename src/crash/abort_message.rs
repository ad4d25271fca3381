//! memory of the crashed process → what its C library said before it aborted.
//!
//! glibc keeps the text of failed assertions, heap corruption and smashed stacks for debuggers: `__abort_msg` points to
//! a length and the text (`include/libc-internal.h` there). Nothing is searched for; without the symbol or the memory
//! there is no message.

use crate::crash::memory::Memory;
use crate::crash::symbols::Module;

/// Longer messages are cut.
const MAX_LENGTH: usize = 2000;

pub fn find(memory: &Memory<'_>, modules: &[Module<'_>]) -> Option<String> {
    let libraries = modules
        .iter()
        .filter(|m| m.name().starts_with("libc.so") || m.name().starts_with("libc-2"));
    let executable = modules
        .iter()
        .filter(|m| m.mapped.kind == crate::crash::modules::Kind::Executable);
    libraries.chain(executable).find_map(|module| {
        let variable = module.address_of("__abort_msg")?;
        message(memory, memory.u64(variable)?)
    })
}

/// The structure is a 32-bit size of its whole mapping, then a C string.
fn message(memory: &Memory<'_>, address: u64) -> Option<String> {
    let text = address.checked_add(4).filter(|_| address != 0)?;
    let (bytes, _) = memory.c_string(text, MAX_LENGTH)?;
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crash::memory::{Access, Region};

    #[test]
    fn the_text_follows_its_size() {
        let bytes = b"\x00\x10\x00\x00free(): invalid pointer\n\0";
        let access = Access::default();
        let memory = Memory::new(vec![Region {
            start: 0x1000,
            end: 0x2000,
            access,
            dumped: bytes,
            backing: &[],
        }]);
        assert_eq!(
            message(&memory, 0x1000).as_deref(),
            Some("free(): invalid pointer")
        );
        assert_eq!(message(&memory, 0), None);
        assert_eq!(message(&memory, 0x9000), None);
    }
}
