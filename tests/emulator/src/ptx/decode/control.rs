//! Branches and ends.

use super::{Form, Tables};
use crate::ptx::Type;
use crate::ptx::flow::NOWHERE;
use crate::ptx::registers::Slot;
use crate::ptx::resolver::Refusal;
use crate::ptx::statement::Operand;

/// One instruction of the group.
#[derive(Clone, Debug)]
pub(crate) enum Control {
    /// To `target`; lanes that part meet again at `meeting`.
    Branch { target: u32, meeting: u32, uniform: bool },
    /// To the target that the register numbers.
    Table { index: Slot, targets: Vec<u32>, meeting: u32 },
    /// The end of the lanes that arrive.
    Exit,
    /// An error that the kernel found.
    Trap,
    /// A pause: somebody else's turn.
    Pause,
}

pub(crate) fn decode(
    opcode: &str,
    form: &mut Form<'_, '_, '_, '_>,
    tables: &Tables<'_>,
) -> Result<Control, Refusal> {
    match opcode {
        "bra" => {
            let uniform = form.modifiers.take("uni");
            form.expect(1)?;
            let target = form.resolver.label(&form.operands[0])?;
            Ok(Control::Branch { target, meeting: NOWHERE, uniform })
        }
        "brx" => {
            if !form.modifiers.take("idx") {
                return Err("`brx` without `idx`".to_owned());
            }
            form.modifiers.take("uni");
            form.expect(2)?;
            let index = form.source(0, Type::B32)?;
            let Operand::Name(name) = form.operands[1] else {
                return Err("a table of labels is due".to_owned());
            };
            let names = tables.get(name).ok_or_else(|| format!("`{name}` is not a table of labels"))?;
            let mut targets = Vec::with_capacity(names.len());
            for target in names {
                targets.push(form.resolver.label(&Operand::Name(target))?);
            }
            Ok(Control::Table { index, targets, meeting: NOWHERE })
        }
        "nanosleep" => {
            form.kind()?;
            form.expect(1)?;
            form.source(0, Type::U32)?;
            Ok(Control::Pause)
        }
        _ => {
            form.modifiers.take("uni");
            form.expect(0)?;
            Ok(if opcode == "trap" { Control::Trap } else { Control::Exit })
        }
    }
}
