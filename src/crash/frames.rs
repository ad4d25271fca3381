//! an unwound stack, the modules → the report's frames: named, inlined calls told apart, with values.
//!
//! A physical frame becomes one report frame for each function that was inlined at its address, innermost first, and
//! one for the function itself. Values are the dearest part and have a budget for the whole report.

use crate::crash::core::Core;
use crate::crash::files::Files;
use crate::crash::report;
use crate::crash::symbols::Module;
use crate::crash::symbols::dwarf::Place;
use crate::crash::text::SIGNAL_HANDLER;
use crate::crash::unwind::{End, Frame, Stack, Trust};
use crate::crash::values::dies::{Die, Units};
use crate::crash::values::locate::View;
use crate::crash::values::{self, Variables, Wanted, tail_calls};
use std::cell::Cell;
use typed_arena::Arena;

/// Values in a whole report.
const MAX_VALUES: usize = 6000;

/// Everything that naming frames needs, for all threads of a report.
pub struct Naming<'n, 'x, 'a, F> {
    core: &'n Core<'a>,
    modules: &'x [Module<'a>],
    files: &'x F,
    units: &'x Units<'x, 'a>,
    values_left: Cell<usize>,
}

/// A physical frame with its module and functions.
struct Named<'m, 'a> {
    module: Option<&'m Module<'a>>,
    places: Vec<Place>,
}

/// What debug information adds to a physical frame.
#[derive(Default)]
struct Details {
    /// By level of inlining, the physical function first.
    variables: Vec<Variables>,
    /// Run-time addresses behind the jumps that led to the frame, innermost first.
    jumps: Vec<u64>,
}

/// A module's functions, for the search for tail calls.
struct InModule<'x, 'a, F> {
    module: &'x Module<'a>,
    files: &'x F,
}

impl<'x, 'a, F: Files<'a>> tail_calls::Functions<'x, 'a> for InModule<'x, 'a, F> {
    fn at(&self, address: u64) -> Option<Die<'x, 'a>> {
        let places = self
            .module
            .places(address.wrapping_add(self.module.bias), self.files);
        let unit = self.module.debug(self.files)?.unit(address, self.files)?;
        Some(Die {
            unit,
            offset: places.last()?.entry?,
        })
    }

    fn named(&self, name: &str) -> Option<u64> {
        Some(self.module.address_of(name)?.wrapping_sub(self.module.bias))
    }
}

impl<'n, 'x, 'a, F: Files<'a>> Naming<'n, 'x, 'a, F> {
    pub fn new(
        core: &'n Core<'a>,
        modules: &'x [Module<'a>],
        files: &'x F,
        units: &'x Units<'x, 'a>,
    ) -> Naming<'n, 'x, 'a, F> {
        Naming {
            core,
            modules,
            files,
            units,
            values_left: Cell::new(MAX_VALUES),
        }
    }

    pub fn frames(&self, stack: &Stack, wanted: Wanted) -> Vec<report::Frame> {
        let named: Vec<Named<'x, 'a>> = stack.frames.iter().map(|f| self.name(f)).collect();
        let details = self.details(stack, &named, wanted);
        let mut frames: Vec<report::Frame> = Vec::new();
        let mut previous = None;
        for ((frame, named), details) in stack.frames.iter().zip(named).zip(details) {
            // Frames that were left out keep their numbers.
            let skipped = previous.map_or(0, |depth: usize| frame.depth - depth - 1);
            previous = Some(frame.depth);
            let first = frames.last().map_or(0, |f| f.index + 1) + skipped;
            // Values come with the physical function first, places innermost first.
            let mut values = details.variables.into_iter().map(Some).collect::<Vec<_>>();
            let levels = named.places.len();
            for (inner, place) in named.places.into_iter().enumerate() {
                let values = values
                    .get_mut(levels - 1 - inner)
                    .and_then(Option::take)
                    .unwrap_or_default();
                frames.push(report_frame(
                    named.module,
                    frame,
                    place,
                    first + inner,
                    values,
                ));
            }
            for after in details.jumps {
                let Some(module) = named.module else { continue };
                for place in module.places(after.wrapping_sub(1), self.files) {
                    let index = frames.last().map_or(0, |f| f.index + 1);
                    frames.push(left_by_jump(module, after, place, index));
                }
            }
        }
        frames
    }

    fn name(&self, frame: &Frame) -> Named<'x, 'a> {
        let module = self.modules.iter().find(|m| m.contains(frame.pc()));
        if frame.trampoline {
            let place = Place {
                function: Some(SIGNAL_HANDLER.to_owned()),
                ..Place::default()
            };
            return Named {
                module,
                places: vec![place],
            };
        }
        let places = module.map(|m| m.places(frame.lookup_address(), self.files));
        Named {
            module,
            places: places.unwrap_or_else(|| vec![Place::default()]),
        }
    }

    /// Each frame's variables by level of inlining, and who called it by a jump. From the outermost inwards: a frame's entry values are told by
    /// its caller.
    fn details(&self, stack: &Stack, named: &[Named<'x, 'a>], wanted: Wanted) -> Vec<Details> {
        let views = Arena::new();
        let mut caller: Option<&View<'_, 'x, 'a>> = None;
        let mut chain = Vec::new();
        for (frame, named) in stack.frames.iter().zip(named).rev() {
            let view = self
                .view(frame, named, caller)
                .map(|view| &*views.alloc(view));
            chain.push(view);
            caller = view;
        }
        chain.reverse();
        chain
            .into_iter()
            .zip(named)
            .map(|(view, named)| {
                view.map(|v| self.detail(v, named, wanted))
                    .unwrap_or_default()
            })
            .collect()
    }

    fn detail(&self, view: &View<'_, 'x, 'a>, named: &Named<'x, 'a>, wanted: Wanted) -> Details {
        let jumps = view.caller.zip(named.module).map(|(caller, module)| {
            let functions = InModule {
                module,
                files: self.files,
            };
            let jumps = tail_calls::between(view, caller, &functions);
            jumps
                .into_iter()
                .map(|after| after.wrapping_add(module.bias))
                .collect()
        });
        Details {
            variables: self.spend(view, wanted),
            jumps: jumps.unwrap_or_default(),
        }
    }

    fn spend(&self, view: &View<'_, 'x, 'a>, wanted: Wanted) -> Vec<Variables> {
        if self.values_left.get() == 0 {
            return Vec::new();
        }
        let levels = values::variables(view, wanted);
        let count: usize = levels
            .iter()
            .map(|l| l.arguments.len() + l.locals.len())
            .sum();
        self.values_left
            .set(self.values_left.get().saturating_sub(count));
        levels
    }

    fn view<'v>(
        &'v self,
        frame: &'v Frame,
        named: &Named<'x, 'a>,
        caller: Option<&'v View<'v, 'x, 'a>>,
    ) -> Option<View<'v, 'x, 'a>> {
        let module = named.module?;
        let function = named.places.last()?.entry?;
        let address = frame.lookup_address().wrapping_sub(module.bias);
        Some(View {
            unit: module.debug(self.files)?.unit(address, self.files)?,
            function,
            registers: &frame.registers,
            frame_address: frame.frame_address,
            address,
            pc: frame.pc().wrapping_sub(module.bias),
            bias: module.bias,
            memory: &self.core.memory,
            units: self.units,
            caller,
        })
    }
}

/// A function that has no frame of its own any more; its variables are gone with it.
fn left_by_jump(module: &Module<'_>, pc: u64, place: Place, index: usize) -> report::Frame {
    report::Frame {
        index,
        address: format!("{pc:#018x}"),
        module: Some(module.name().to_owned()),
        module_offset: Some(module.offset(pc)),
        function: place.function,
        file: place.file,
        line: place.line,
        column: place.column,
        inlined: place.inlined,
        declared: place.declared,
        trust: report::Trust::Cfi,
        arguments: Vec::new(),
        locals: Vec::new(),
    }
}

fn report_frame(
    module: Option<&Module<'_>>,
    frame: &Frame,
    place: Place,
    index: usize,
    values: Variables,
) -> report::Frame {
    report::Frame {
        index,
        address: format!("{:#018x}", frame.pc()),
        module: module.map(|m| m.name().to_owned()),
        module_offset: module.map(|m| m.offset(frame.pc())),
        function: place.function,
        file: place.file,
        line: place.line,
        column: place.column,
        inlined: place.inlined,
        declared: place.declared,
        trust: match frame.trust {
            Trust::Context => report::Trust::Context,
            Trust::Cfi => report::Trust::Cfi,
            Trust::FramePointer => report::Trust::FramePointer,
            Trust::Scan => report::Trust::Scan,
        },
        arguments: values.arguments,
        locals: values.locals,
    }
}

/// Why a stack ends early, for the reader.
pub fn end_note(stack: &Stack) -> Option<String> {
    match stack.end {
        End::Outermost => None,
        End::Overwritten(value) => Some(format!(
            "the stack was overwritten: {value:#x} is no return address"
        )),
        End::NotInCore(sp) => Some(format!("the core does not hold the stack beyond {sp:#x}")),
        End::Circular => Some("the stack leads back into itself".to_owned()),
        End::Unknown => Some("nothing tells the caller of the last frame".to_owned()),
        End::TooDeep => Some("the stack is deeper than is followed".to_owned()),
    }
}
