//! core, files → report: modules found, stacks unwound, frames named.
//!
//! Whatever is missing or damaged makes the report poorer, never absent. Work is bounded: threads, frames and values
//! have limits, and the crashed thread comes first.

use crate::crash::abort_message;
use crate::crash::core::{AT_BASE, AT_ENTRY, Core};
use crate::crash::elf::Elf;
use crate::crash::files::Files;
use crate::crash::fingerprint;
use crate::crash::frames::{Naming, end_note};
use crate::crash::machine::Machine;
use crate::crash::modules::{self, Kind};
use crate::crash::report::{self, Report};
use crate::crash::signals;
use crate::crash::symbols::Module;
use crate::crash::symbols::find::{Search, hex};
use crate::crash::unwind::Space;
use crate::crash::unwind::tables::Tables;
use crate::crash::values::Wanted;
use crate::crash::values::dies::Units;
use std::rc::Rc;

/// What only the one who captured the crash knows.
#[derive(Clone, Debug, Default)]
pub struct Context {
    pub kind: report::Kind,
    pub crash_id: Option<String>,
    pub service: Option<String>,
    /// RFC 3339, UTC.
    pub time: Option<String>,
}

/// More threads than this are counted, not shown.
const MAX_THREADS: usize = 4096;

pub fn analyse<'a>(
    mut core: Core<'a>,
    search: &Search,
    files: &impl Files<'a>,
    context: &Context,
) -> Report {
    // Cores of qemu-user name no files: then the program itself must tell where it lies.
    let started = if core.files.is_empty() {
        search.started(modules::executable_path(&core), files)
    } else {
        None
    };
    let mapped = modules::discover(&core, started.as_ref());
    let modules: Vec<Module<'a>> = mapped
        .into_iter()
        .map(|m| Module::load(m, &core, search, files))
        .collect();
    back_memory(&mut core, &modules);
    let space = space(&core, &modules, files);
    let mut report = describe(&core, &modules, context);
    report.notes.extend(unused(search, &modules, files));
    report.abort_message = abort_message::find(&core.memory, &modules);
    let units = Units::default();
    let naming = Naming::new(&core, &modules, files, &units);
    for (index, thread) in core.threads.iter().take(MAX_THREADS).enumerate() {
        let stack = space.unwind(&thread.registers);
        let wanted = if index == 0 {
            Wanted::All
        } else {
            Wanted::ArgumentsOnly
        };
        let crashed = index == 0 && context.kind == report::Kind::Crash;
        report.threads.push(report::Thread {
            tid: thread.tid,
            name: thread_name(&core, thread),
            crashed,
            registers: registers(&thread.registers),
            omitted_frames: (stack.omitted > 0).then_some(stack.omitted),
            note: end_note(&stack),
            frames: naming.frames(&stack, wanted),
        });
    }
    let signal = report.signal.as_ref().map(|signal| signal.number);
    report.signature = report
        .threads
        .first()
        .and_then(|t| fingerprint::signature(signal, &t.frames));
    if core.threads.len() > MAX_THREADS {
        report.notes.push(format!(
            "only {MAX_THREADS} of {} threads are shown",
            core.threads.len()
        ));
    }
    report
}

/// Read-only mappings need not be in the core: the files hold the same bytes, provided they are the same files.
fn back_memory<'a>(core: &mut Core<'a>, modules: &[Module<'a>]) {
    for module in modules
        .iter()
        .filter(|m| m.from_file || m.mapped.kind == Kind::Vdso)
    {
        let Some(image) = &module.image else { continue };
        for range in &module.ranges {
            let bytes =
                crate::crash::le::slice_up_to(image.bytes, range.offset, range.end - range.start);
            core.memory.back(range.start, bytes);
        }
    }
}

fn space<'a, 'm>(
    core: &'m Core<'a>,
    modules: &[Module<'a>],
    files: &impl Files<'a>,
) -> Space<'a, 'm> {
    let linker = core.auxv(AT_BASE);
    let linker_entry = modules
        .iter()
        .find(|m| linker.is_some_and(|base| m.contains(base)))
        .and_then(|m| Some(m.image.as_ref()?.entry.wrapping_add(m.bias)));
    let entries = core
        .auxv(AT_ENTRY)
        .into_iter()
        .chain(linker_entry)
        .collect();
    let mut space = Space::new(core.machine, &core.memory, core.pac_mask, entries);
    for module in modules.iter().filter(|module| module.is_go()) {
        // Go's signal handler makes what it interrupted look as if that had called `sigpanic`.
        space.raised.extend(module.code_of("runtime.sigpanic"));
        // They run functions on another stack, and their callers stand on the one before.
        let names = ["runtime.systemstack", "runtime.mcall", "runtime.asmcgocall"];
        let names = names.into_iter().flat_map(|name| {
            [Some(name.to_owned()), Some(format!("{name}.abi0"))]
                .into_iter()
                .flatten()
        });
        space
            .switches
            .extend(names.filter_map(|name| module.code_of(&name)));
    }
    for module in modules {
        let frames = module.debug_frames(files);
        let tables = Rc::new(Tables::new(
            core.machine,
            module.bias,
            module.image.as_ref(),
            &frames,
        ));
        for range in &module.ranges {
            space.add(range.start, range.end, &tables);
        }
    }
    space
}

/// That the program which was named is none of those in the core.
fn unused<'a>(search: &Search, modules: &[Module<'a>], files: &impl Files<'a>) -> Option<String> {
    let path = search.executable.as_ref()?;
    let named = files.open(path).and_then(Elf::parse);
    let ran = modules.iter().find(|m| m.mapped.kind == Kind::Executable);
    let ran = ran.and_then(|module| module.mapped.build_id.as_deref());
    let why = match (&named, ran) {
        (None, _) => "is no program that can be read",
        (Some(named), Some(ran)) if named.build_id() != Some(ran) => "is not the build that ran",
        (Some(_), _) => return None,
    };
    Some(format!("{} {why}: it is not used", path.display()))
}

fn describe(core: &Core<'_>, modules: &[Module<'_>], context: &Context) -> Report {
    let executable = modules.iter().find(|m| m.mapped.kind == Kind::Executable);
    let process = core.process.as_ref();
    let mut report = Report {
        schema: report::SCHEMA,
        kind: context.kind,
        crash_id: context.crash_id.clone(),
        service: context.service.clone(),
        time: context.time.clone(),
        executable: executable
            .map(|m| m.mapped.path.clone())
            .filter(|p| !p.is_empty())
            .or_else(|| modules::executable_path(core)),
        command_line: process
            .map(|p| p.arguments.clone())
            .filter(|a| !a.is_empty()),
        pid: process.map(|p| p.pid).filter(|p| *p != 0),
        signal: core.signal.map(signal),
        architecture: Some(architecture(core.machine).to_owned()),
        modules: modules.iter().map(module).collect(),
        ..Report::default()
    };
    if core.missing > 0 {
        report.notes.push(format!(
            "the core file is cut off: {} bytes are missing",
            core.missing
        ));
    }
    for module in modules.iter().filter(|m| m.note.is_some()) {
        let note = module.note.as_deref().unwrap_or_default();
        report.notes.push(format!("{}: {note}", module.mapped.path));
    }
    report
}

/// `comm` of the process is that of its first thread.
fn thread_name(core: &Core<'_>, thread: &crate::crash::core::Thread) -> Option<String> {
    let process = core.process.as_ref().filter(|p| p.pid == thread.tid);
    thread
        .name
        .clone()
        .or_else(|| Some(process?.name.clone()).filter(|n| !n.is_empty()))
}

fn architecture(machine: Machine) -> &'static str {
    match machine {
        Machine::X86_64 => "x86_64",
        Machine::Aarch64 => "aarch64",
    }
}

fn signal(signal: crate::crash::core::Signal) -> report::Signal {
    let code = signal.code;
    let is_fault = code.is_some_and(|c| signals::has_address(signal.number, c));
    // SI_USER, SI_QUEUE and SI_TKILL carry a sender.
    let was_sent = code.is_some_and(|c| matches!(c, 0 | -1 | -6));
    report::Signal {
        number: signal.number,
        name: signals::name(signal.number),
        code: code.map(|c| signals::code_name(signal.number, c)),
        address: signal.address.filter(|_| is_fault).map(short_hex),
        sender: signal.sender.filter(|_| was_sent),
    }
}

fn module(module: &Module<'_>) -> report::Module {
    report::Module {
        path: module.mapped.path.clone(),
        build_id: module
            .mapped
            .build_id
            .as_deref()
            .or_else(|| module.image.as_ref()?.build_id())
            .map(hex),
        base: address(module.start()),
        end: Some(address(module.end())),
        symbols: module.symbols(),
        debug_file: module.debug_file.as_ref().map(|p| p.display().to_string()),
        note: module.note.clone(),
    }
}

fn registers(
    registers: &crate::crash::machine::Registers,
) -> serde_json::Map<String, serde_json::Value> {
    registers
        .named()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), address(value).into()))
        .collect()
}

/// All sixteen digits, so that columns of addresses line up.
fn address(value: u64) -> String {
    format!("{value:#018x}")
}

fn short_hex(value: u64) -> String {
    format!("{value:#x}")
}
