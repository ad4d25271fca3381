//! a variable's DIE, a frame → the bytes of its value, and where they are.
//!
//! Evaluates DWARF expressions and location lists with the frame's registers, frame base, call frame address, and
//! entry values (through the call site parameters of the caller). What cannot be had says why.

use crate::crash::machine::Registers;
use crate::crash::memory::Memory;
use crate::crash::unwind::rules::Bytes;
use crate::crash::values::dies::{Die, Units};
use gimli::{
    AttributeValue, EvaluationResult, Expression, LittleEndian, Location, Piece, UnitRef, Value,
    ValueType,
};

const MAX_OPERATIONS: u32 = 10_000;
/// Entry values lead from caller to caller.
const MAX_CALLERS: usize = 3;
/// No object is read further.
const MAX_SIZE: usize = 64 << 10;

/// One physical frame with the function that describes it.
#[derive(Clone, Copy)]
pub struct View<'v, 'x, 'a> {
    pub unit: UnitRef<'x, Bytes<'a>>,
    pub function: gimli::UnitOffset,
    pub registers: &'v Registers,
    pub frame_address: Option<u64>,
    /// Link-time address to look up.
    pub address: u64,
    /// Link-time return address, or the place where the frame was interrupted.
    pub pc: u64,
    pub bias: u64,
    pub memory: &'v Memory<'a>,
    pub units: &'x Units<'x, 'a>,
    pub caller: Option<&'v View<'v, 'x, 'a>>,
}

/// The bytes of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    pub bytes: Vec<u8>,
    /// Where it is in memory, if it is.
    pub address: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    OptimizedOut,
    /// In memory that the core does not hold.
    NotInCore(u64),
    /// Described in a way that is not understood.
    Unknown,
}

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Absent::OptimizedOut => write!(f, "<optimized out>"),
            Absent::NotInCore(address) => write!(f, "<not in core: {address:#x}>"),
            Absent::Unknown => write!(f, "<unavailable>"),
        }
    }
}

impl<'v, 'x, 'a> View<'v, 'x, 'a> {
    /// The value of a variable or parameter of `size` bytes.
    pub fn object(&self, variable: Die<'x, 'a>, size: usize) -> Result<Object, Absent> {
        let size = size.min(MAX_SIZE);
        let own = |name| variable.unit.entry(variable.offset).ok()?.attr_value(name);
        if let Some(location) = own(gimli::DW_AT_location) {
            let expression = self
                .expression(variable.unit, location)
                .ok_or(Absent::OptimizedOut)?;
            let pieces = self.evaluate(variable.unit, expression, MAX_CALLERS)?;
            return self.assemble(&pieces, size);
        }
        let constant = self
            .units
            .attribute(variable, gimli::DW_AT_const_value)
            .ok_or(Absent::OptimizedOut)?;
        let bytes = match constant.1 {
            AttributeValue::Block(bytes) => bytes.slice().to_vec(),
            AttributeValue::Sdata(n) => n.to_le_bytes().to_vec(),
            AttributeValue::String(text) => text.slice().to_vec(),
            value => value
                .udata_value()
                .ok_or(Absent::Unknown)?
                .to_le_bytes()
                .to_vec(),
        };
        Ok(Object {
            bytes: sized(bytes, size),
            address: None,
        })
    }

    /// The expression in force at this frame's address.
    fn expression(
        &self,
        unit: UnitRef<'x, Bytes<'a>>,
        value: AttributeValue<Bytes<'a>>,
    ) -> Option<Expression<Bytes<'a>>> {
        if let AttributeValue::Exprloc(expression) = value {
            return (!expression.0.is_empty()).then_some(expression);
        }
        let mut list = unit.attr_locations(value).ok()??;
        while let Ok(Some(entry)) = list.next() {
            if entry.range.begin <= self.address && self.address < entry.range.end {
                return (!entry.data.0.is_empty()).then_some(entry.data);
            }
        }
        None
    }

    pub(super) fn evaluate(
        &self,
        unit: UnitRef<'x, Bytes<'a>>,
        expression: Expression<Bytes<'a>>,
        callers: usize,
    ) -> Result<Vec<Piece<Bytes<'a>>>, Absent> {
        let mut evaluation = expression.evaluation(unit.encoding());
        evaluation.set_max_iterations(MAX_OPERATIONS);
        let mut state = evaluation.evaluate().map_err(|_| Absent::Unknown)?;
        loop {
            let next = match state {
                EvaluationResult::Complete => return Ok(evaluation.result()),
                EvaluationResult::RequiresMemory {
                    address,
                    size,
                    space: None,
                    base_type,
                } => {
                    let mut bytes = [0; 16];
                    let wanted = bytes.get_mut(..usize::from(size)).ok_or(Absent::Unknown)?;
                    if !self.memory.read(address, wanted) {
                        return Err(Absent::NotInCore(address));
                    }
                    evaluation.resume_with_memory(typed(unit, base_type, &bytes)?)
                }
                EvaluationResult::RequiresRegister {
                    register,
                    base_type,
                } => {
                    let bytes = self.register(register.0)?;
                    evaluation.resume_with_register(typed(unit, base_type, &bytes)?)
                }
                EvaluationResult::RequiresFrameBase => {
                    evaluation.resume_with_frame_base(self.frame_base(callers)?)
                }
                EvaluationResult::RequiresCallFrameCfa => evaluation
                    .resume_with_call_frame_cfa(self.frame_address.ok_or(Absent::Unknown)?),
                EvaluationResult::RequiresEntryValue(entry) => {
                    let value = self.entry_value(&entry, callers)?;
                    evaluation.resume_with_entry_value(Value::Generic(value))
                }
                EvaluationResult::RequiresRelocatedAddress(address) => {
                    evaluation.resume_with_relocated_address(address.wrapping_add(self.bias))
                }
                EvaluationResult::RequiresIndexedAddress { index, relocate } => {
                    let address = unit.address(index).map_err(|_| Absent::Unknown)?;
                    let bias = if relocate { self.bias } else { 0 };
                    evaluation.resume_with_indexed_address(address.wrapping_add(bias))
                }
                EvaluationResult::RequiresBaseType(offset) => evaluation
                    .resume_with_base_type(value_type(unit, offset).ok_or(Absent::Unknown)?),
                _ => return Err(Absent::Unknown),
            };
            state = next.map_err(|_| Absent::Unknown)?;
        }
    }

    fn register(&self, number: u16) -> Result<[u8; 16], Absent> {
        let mut bytes = [0; 16];
        if let Some(value) = self.registers.get(number) {
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            return Ok(bytes);
        }
        self.registers.vector(number).ok_or(Absent::OptimizedOut)
    }

    fn frame_base(&self, callers: usize) -> Result<u64, Absent> {
        let entry = self
            .unit
            .entry(self.function)
            .map_err(|_| Absent::Unknown)?;
        let base = entry
            .attr_value(gimli::DW_AT_frame_base)
            .ok_or(Absent::Unknown)?;
        let expression = self.expression(self.unit, base).ok_or(Absent::Unknown)?;
        // A frame base does not itself need a frame base.
        let callers = callers.checked_sub(1).ok_or(Absent::Unknown)?;
        match self.evaluate(self.unit, expression, callers)?.as_slice() {
            [
                Piece {
                    location: Location::Register { register },
                    ..
                },
            ] => self.registers.get(register.0).ok_or(Absent::OptimizedOut),
            [
                Piece {
                    location: Location::Address { address },
                    ..
                },
            ] => Ok(*address),
            [
                Piece {
                    location: Location::Value { value },
                    ..
                },
            ] => value.to_u64(!0).map_err(|_| Absent::Unknown),
            _ => Err(Absent::Unknown),
        }
    }

    fn assemble(&self, pieces: &[Piece<Bytes<'a>>], size: usize) -> Result<Object, Absent> {
        if let [
            Piece {
                location: Location::Address { address },
                size_in_bits: None,
                ..
            },
        ] = pieces
        {
            let bytes = self
                .memory
                .bytes(*address, size)
                .ok_or(Absent::NotInCore(*address))?;
            return Ok(Object {
                bytes,
                address: Some(*address),
            });
        }
        let mut out = Vec::new();
        for piece in pieces {
            let len = piece
                .size_in_bits
                .map_or(size, |bits| bits.div_ceil(8) as usize)
                .min(MAX_SIZE);
            let skip = (piece.bit_offset.unwrap_or(0) / 8) as usize;
            let bytes = match &piece.location {
                Location::Empty => return Err(Absent::OptimizedOut),
                Location::Register { register } => self.register(register.0)?.to_vec(),
                Location::Address { address } => self
                    .memory
                    .bytes(*address, skip + len)
                    .ok_or(Absent::NotInCore(*address))?,
                Location::Value { value } => value_bytes(*value),
                Location::Bytes { value } => value.slice().to_vec(),
                Location::ImplicitPointer { .. } => return Err(Absent::OptimizedOut),
            };
            out.extend(sized(bytes.get(skip..).unwrap_or_default().to_vec(), len));
            if out.len() > MAX_SIZE {
                break;
            }
        }
        if pieces.is_empty() {
            return Err(Absent::OptimizedOut);
        }
        Ok(Object {
            bytes: sized(out, size),
            address: None,
        })
    }
}

fn sized(mut bytes: Vec<u8>, size: usize) -> Vec<u8> {
    bytes.resize(size, 0);
    bytes
}

fn value_bytes(value: Value) -> Vec<u8> {
    match value {
        Value::F32(f) => f.to_le_bytes().to_vec(),
        Value::F64(f) => f.to_le_bytes().to_vec(),
        other => other.to_u64(!0).unwrap_or(0).to_le_bytes().to_vec(),
    }
}

fn value_type(unit: UnitRef<'_, Bytes<'_>>, offset: gimli::UnitOffset) -> Option<ValueType> {
    if offset.0 == 0 {
        return Some(ValueType::Generic);
    }
    ValueType::from_entry(&unit.entry(offset).ok()?).ok()?
}

fn typed(
    unit: UnitRef<'_, Bytes<'_>>,
    base_type: gimli::UnitOffset,
    bytes: &[u8],
) -> Result<Value, Absent> {
    let number = bytes
        .first_chunk::<8>()
        .map_or(0, |b| u64::from_le_bytes(*b));
    match value_type(unit, base_type) {
        Some(ValueType::Generic) => Ok(Value::Generic(number)),
        Some(kind) => {
            Value::parse(kind, Bytes::new(bytes, LittleEndian)).map_err(|_| Absent::Unknown)
        }
        None => Err(Absent::Unknown),
    }
}
