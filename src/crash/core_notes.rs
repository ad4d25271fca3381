//! threads, process, mappings → the notes of a small core file.
//!
//! In the kernel's order: the crashing thread's status, the process' facts, that thread's other registers, then the
//! other threads. Sources: `fs/binfmt_elf.c` (`fill_note_info`), `include/linux/elfcore.h`, core(5).

use crate::crash::core::{
    AGENT_NOTE_NAME, NT_AGENT_THREAD_NAMES, NT_AUXV, NT_FILE, NT_FPREGSET, NT_PRPSINFO,
    NT_PRSTATUS, NT_SIGINFO, PR_REG,
};
use crate::crash::core_write::{Mapping, PAGE, SmallCore, Thread};

/// All notes, one after the other.
pub fn notes(core: &SmallCore<'_>) -> Vec<u8> {
    let mut notes = Vec::new();
    let mut threads = core.threads.iter();
    if let Some(first) = threads.next() {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(core, first));
        note(&mut notes, b"CORE", NT_PRPSINFO, &prpsinfo(core));
        if !core.siginfo.is_empty() {
            note(&mut notes, b"CORE", NT_SIGINFO, &core.siginfo);
        }
        note(&mut notes, b"CORE", NT_AUXV, &core.auxv);
        note(&mut notes, b"CORE", NT_FILE, &file_note(core));
        register_sets(&mut notes, first);
    }
    for thread in threads {
        note(&mut notes, b"CORE", NT_PRSTATUS, &prstatus(core, thread));
        register_sets(&mut notes, thread);
    }
    let names: String = core
        .threads
        .iter()
        .filter_map(|t| {
            Some(format!(
                "{} {}\n",
                t.tid,
                t.name.as_ref()?.replace('\n', " ")
            ))
        })
        .collect();
    if !names.is_empty() {
        note(
            &mut notes,
            AGENT_NOTE_NAME,
            NT_AGENT_THREAD_NAMES,
            names.as_bytes(),
        );
    }
    notes
}

fn prstatus(core: &SmallCore<'_>, thread: &Thread) -> Vec<u8> {
    let mut status = Vec::new();
    // pr_info: only the signal number is meaningful; then pr_cursig and its padding.
    for word in [u32::from(thread.signal), 0, 0, u32::from(thread.signal)] {
        status.extend(word.to_le_bytes());
    }
    status.extend([0; 16]);
    for word in [
        thread.tid,
        core.process.parent,
        core.process.group,
        core.process.session,
    ] {
        status.extend(word.to_le_bytes());
    }
    status.resize(PR_REG, 0);
    let mut registers = thread.registers.clone();
    registers.resize(core.machine.user_regs_size(), 0);
    status.extend(registers);
    status.extend(u32::from(!thread.float_registers.is_empty()).to_le_bytes());
    status.extend([0; 4]);
    status
}

fn prpsinfo(core: &SmallCore<'_>) -> Vec<u8> {
    let process = &core.process;
    // State, its letter, zombie, nice; then flags.
    let mut info = vec![0, b'R', 0, 0, 0, 0, 0, 0];
    info.extend(0u64.to_le_bytes());
    for word in [
        process.uid,
        process.gid,
        process.pid,
        process.parent,
        process.group,
        process.session,
    ] {
        info.extend(word.to_le_bytes());
    }
    for (text, size) in [(&process.name, 16), (&process.arguments, 80)] {
        let start = info.len();
        info.extend(text.bytes().take(size - 1));
        info.resize(start + size, 0);
    }
    info
}

fn file_note(core: &SmallCore<'_>) -> Vec<u8> {
    let mut files: Vec<(&Mapping, &Vec<u8>)> = core
        .mappings
        .iter()
        .filter_map(|m| Some((m, m.path.as_ref()?)))
        .collect();
    files.sort_by_key(|(m, _)| m.start);
    let mut data = Vec::new();
    for word in [files.len() as u64, PAGE] {
        data.extend(word.to_le_bytes());
    }
    for (mapping, _) in &files {
        for word in [mapping.start, mapping.end, mapping.offset / PAGE] {
            data.extend(word.to_le_bytes());
        }
    }
    for (_, path) in &files {
        data.extend(path.iter().copied().filter(|b| *b != 0).chain([0]));
    }
    data
}

fn register_sets(notes: &mut Vec<u8>, thread: &Thread) {
    if !thread.float_registers.is_empty() {
        note(notes, b"CORE", NT_FPREGSET, &thread.float_registers);
    }
    for (kind, data) in &thread.extra {
        note(notes, b"LINUX", *kind, data);
    }
}

fn note(notes: &mut Vec<u8>, name: &[u8], kind: u32, data: &[u8]) {
    for word in [name.len() as u32 + 1, data.len() as u32, kind] {
        notes.extend(word.to_le_bytes());
    }
    notes.extend(name);
    notes.push(0);
    notes.resize(notes.len().next_multiple_of(4), 0);
    notes.extend(data);
    notes.resize(notes.len().next_multiple_of(4), 0);
}
