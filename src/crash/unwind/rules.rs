//! an unwind row, a frame's registers, memory → the caller's registers (DWARF 5 §6.4).
//!
//! Evaluates every rule, also expressions that read memory (signal trampolines, procedure linkage tables). What cannot
//! be evaluated makes the register unknown; only an unknown frame address or return address fails the step.

use crate::crash::machine::Registers;
use crate::crash::memory::Memory;
use gimli::{EndianSlice, Expression, LittleEndian};

pub type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// An expression that runs longer than this is broken or hostile.
const MAX_OPERATIONS: u32 = 10_000;

/// One register's rule; the names follow DWARF 5 §6.4.1.
#[derive(Clone, Debug)]
pub enum Rule<'a> {
    Undefined,
    SameValue,
    /// value = memory[CFA + n]
    Offset(i64),
    /// value = CFA + n
    ValOffset(i64),
    /// value = register
    Register(u16),
    /// value = memory[expression(CFA)]
    Expression(Expression<Bytes<'a>>),
    /// value = expression(CFA)
    ValExpression(Expression<Bytes<'a>>),
    Constant(u64),
}

#[derive(Clone, Debug)]
pub enum Cfa<'a> {
    /// CFA = register + n
    Register(u16, i64),
    Expression(Expression<Bytes<'a>>),
}

/// The rules in force at one place in the code.
#[derive(Clone, Debug)]
pub struct Row<'a> {
    pub cfa: Cfa<'a>,
    pub rules: Vec<(u16, Rule<'a>)>,
    pub return_register: u16,
    /// The frame was made by the kernel for a signal handler (CIE augmentation `S`): its caller was interrupted
    /// at its pc and did not call.
    pub signal: bool,
    pub encoding: gimli::Encoding,
    /// What is added to link-time addresses in expressions.
    pub bias: u64,
}

/// Why a row could not be applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The return address is undefined: this is the outermost frame.
    Outermost,
    /// The frame address depends on something unknown.
    NoFrameAddress,
    /// The return address is in memory that the core does not have.
    NoReturnAddress,
}

impl Row<'_> {
    pub fn frame_address(&self, registers: &Registers, memory: &Memory<'_>) -> Option<u64> {
        match &self.cfa {
            Cfa::Register(number, offset) => {
                Some(registers.get(*number)?.wrapping_add_signed(*offset))
            }
            Cfa::Expression(e) => self.evaluate(e, None, registers, memory),
        }
    }

    /// The caller's registers, its pc not yet stripped of a signature; and the frame address.
    pub fn apply(
        &self,
        callee: &Registers,
        memory: &Memory<'_>,
    ) -> Result<(Registers, u64), Failure> {
        let cfa = self
            .frame_address(callee, memory)
            .ok_or(Failure::NoFrameAddress)?;
        let mut caller = callee.callee_saved();
        caller.set(callee.machine.sp(), Some(cfa));
        // A leaf that never saved its return address still has it in the link register.
        let mut return_address = match callee.machine.pc() == self.return_register {
            true => Err(Failure::Outermost),
            false => callee
                .get(self.return_register)
                .ok_or(Failure::NoReturnAddress),
        };
        for (number, rule) in &self.rules {
            let value = self.value(rule, *number, cfa, callee, memory);
            if *number == self.return_register {
                return_address = match rule {
                    Rule::Undefined => Err(Failure::Outermost),
                    _ => value.ok_or(Failure::NoReturnAddress),
                };
            }
            match (value, caller.vector(*number)) {
                (Some(value), Some(_)) => caller.set_vector_low(*number, value),
                (value, _) => caller.set(*number, value),
            }
        }
        caller.set(callee.machine.pc(), Some(return_address?));
        Ok((caller, cfa))
    }

    fn value(
        &self,
        rule: &Rule<'_>,
        number: u16,
        cfa: u64,
        callee: &Registers,
        memory: &Memory<'_>,
    ) -> Option<u64> {
        match rule {
            Rule::Undefined => None,
            Rule::SameValue => callee.get(number),
            Rule::Offset(n) => memory.u64(cfa.wrapping_add_signed(*n)),
            Rule::ValOffset(n) => Some(cfa.wrapping_add_signed(*n)),
            Rule::Register(other) => callee.get(*other),
            Rule::Expression(e) => memory.u64(self.evaluate(e, Some(cfa), callee, memory)?),
            Rule::ValExpression(e) => self.evaluate(e, Some(cfa), callee, memory),
            Rule::Constant(value) => Some(*value),
        }
    }

    fn evaluate(
        &self,
        expression: &Expression<Bytes<'_>>,
        initial: Option<u64>,
        registers: &Registers,
        memory: &Memory<'_>,
    ) -> Option<u64> {
        let mut evaluation = expression.evaluation(self.encoding);
        evaluation.set_max_iterations(MAX_OPERATIONS);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate().ok()?;
        loop {
            state = match state {
                gimli::EvaluationResult::Complete => break,
                gimli::EvaluationResult::RequiresMemory {
                    address,
                    size,
                    space: None,
                    ..
                } => {
                    let mut bytes = [0; 8];
                    if !memory.read(address, bytes.get_mut(..usize::from(size))?) {
                        return None;
                    }
                    evaluation
                        .resume_with_memory(gimli::Value::Generic(u64::from_le_bytes(bytes)))
                        .ok()?
                }
                gimli::EvaluationResult::RequiresRegister { register, .. } => {
                    let value = registers.get(register.0)?;
                    evaluation
                        .resume_with_register(gimli::Value::Generic(value))
                        .ok()?
                }
                gimli::EvaluationResult::RequiresRelocatedAddress(address) => evaluation
                    .resume_with_relocated_address(address.wrapping_add(self.bias))
                    .ok()?,
                _ => return None,
            };
        }
        match evaluation.as_result() {
            [
                gimli::Piece {
                    location: gimli::Location::Address { address },
                    ..
                },
            ] => Some(*address),
            _ => None,
        }
    }
}
