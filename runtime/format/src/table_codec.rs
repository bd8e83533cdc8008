//! Step lists and weight table as bytes.

use crate::codec::{ByteReader, ByteWriter, DecodeError};
use crate::{
    KernelInfo, Launch, Operand, PersistentKernel, Region, RowAxis, Step, StepCost, StepList, StepLists,
    WeightEntry, WeightTable,
};

/// Fewest bytes of an encoded kernel: name, launch count.
const KERNEL_LEAST_BYTES: usize = 4 + 4;
/// Fewest bytes of an encoded launch: name, four numbers.
const LAUNCH_LEAST_BYTES: usize = 4 + 4 * 4;
/// Bytes of an encoded operand.
const OPERAND_BYTES: usize = 1 + 8 + 8;
/// Fewest bytes of an encoded step: kernel, layer tag, row axis, relation to the step before, operand count,
/// cost.
const STEP_LEAST_BYTES: usize = 4 + 1 + 1 + 1 + 4 + 5 * 8;
/// Fewest bytes of an encoded list: name, two row counts, two step counts.
const LIST_LEAST_BYTES: usize = 4 + 4 + 4 + 4 + 4;
/// Fewest bytes of an encoded weight: three texts, offset, bytes, hash.
const WEIGHT_LEAST_BYTES: usize = 3 * 4 + 8 + 8 + 32;

impl StepLists {
    /// The step lists as they stand in the program.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = ByteWriter::default();
        writer.count(self.kernels.len());
        for kernel in &self.kernels {
            writer.text(&kernel.name);
            writer.count(kernel.launches.len());
            for launch in &kernel.launches {
                encode_launch(&mut writer, launch);
            }
        }
        writer.count(self.lists.len());
        for list in &self.lists {
            writer.text(&list.name);
            writer.u32(list.max_rows);
            writer.u32(list.max_logit_rows);
            for steps in [&list.body, &list.head] {
                writer.count(steps.len());
                for step in steps {
                    encode_step(&mut writer, step);
                }
            }
        }
        match &self.persistent {
            None => writer.u8(0),
            Some(PersistentKernel { symbol, threads, shared_bytes, row_words }) => {
                writer.u8(1);
                writer.text(symbol);
                for number in [threads, shared_bytes, row_words] {
                    writer.u32(*number);
                }
            }
        }
        writer.finish()
    }

    /// Reads what [`StepLists::encode`] wrote. Ranges are checked later, against the manifest.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where the bytes end early, lie about a count or hold an unknown tag.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ByteReader::new(bytes);
        let kernels = reader.vector(KERNEL_LEAST_BYTES, |reader| {
            Ok(KernelInfo {
                name: reader.text()?,
                launches: reader.vector(LAUNCH_LEAST_BYTES, decode_launch)?,
            })
        })?;
        let lists = reader.vector(LIST_LEAST_BYTES, |reader| {
            Ok(StepList {
                name: reader.text()?,
                max_rows: reader.u32()?,
                max_logit_rows: reader.u32()?,
                body: reader.vector(STEP_LEAST_BYTES, decode_step)?,
                head: reader.vector(STEP_LEAST_BYTES, decode_step)?,
            })
        })?;
        let persistent = match reader.u8()? {
            0 => None,
            1 => Some(PersistentKernel {
                symbol: reader.text()?,
                threads: reader.u32()?,
                shared_bytes: reader.u32()?,
                row_words: reader.u32()?,
            }),
            tag => return Err(reader.error(format!("unknown tag of a persistent kernel {tag}"))),
        };
        reader.finish()?;
        Ok(Self { kernels, lists, persistent })
    }
}

fn encode_launch(writer: &mut ByteWriter, launch: &Launch) {
    let Launch { symbol, blocks, rows_per_block, threads, shared_bytes } = launch;
    writer.text(symbol);
    for number in [blocks, rows_per_block, threads, shared_bytes] {
        writer.u32(*number);
    }
}

fn decode_launch(reader: &mut ByteReader<'_>) -> Result<Launch, DecodeError> {
    Ok(Launch {
        symbol: reader.text()?,
        blocks: reader.u32()?,
        rows_per_block: reader.u32()?,
        threads: reader.u32()?,
        shared_bytes: reader.u32()?,
    })
}

fn encode_step(writer: &mut ByteWriter, step: &Step) {
    writer.u32(step.kernel);
    match step.layer {
        None => writer.u8(0),
        Some(layer) => {
            writer.u8(1);
            writer.u32(layer);
        }
    }
    writer.u8(match step.row_axis {
        RowAxis::Rows => 0,
        RowAxis::LogitRows => 1,
    });
    writer.u8(u8::from(step.joins_previous));
    writer.count(step.operands.len());
    for operand in &step.operands {
        writer.u8(match operand.region {
            Region::Arena => 0,
            Region::Weights => 1,
        });
        writer.u64(operand.offset);
        writer.u64(operand.bytes);
    }
    let StepCost {
        fixed_bytes,
        bytes_per_row,
        bytes_per_row_and_position,
        operations_per_row,
        operations_per_row_and_position,
    } = step.cost;
    writer.u64(fixed_bytes);
    writer.u64(bytes_per_row);
    writer.u64(bytes_per_row_and_position);
    writer.u64(operations_per_row);
    writer.u64(operations_per_row_and_position);
}

fn decode_step(reader: &mut ByteReader<'_>) -> Result<Step, DecodeError> {
    let kernel = reader.u32()?;
    let layer = match reader.u8()? {
        0 => None,
        1 => Some(reader.u32()?),
        tag => return Err(reader.error(format!("unknown layer tag {tag}"))),
    };
    let row_axis = match reader.u8()? {
        0 => RowAxis::Rows,
        1 => RowAxis::LogitRows,
        tag => return Err(reader.error(format!("unknown row axis {tag}"))),
    };
    let joins_previous = match reader.u8()? {
        0 => false,
        1 => true,
        tag => return Err(reader.error(format!("unknown relation {tag} to the step before"))),
    };
    let operands = reader.vector(OPERAND_BYTES, |reader| {
        let region = match reader.u8()? {
            0 => Region::Arena,
            1 => Region::Weights,
            tag => return Err(reader.error(format!("unknown region {tag}"))),
        };
        Ok(Operand { region, offset: reader.u64()?, bytes: reader.u64()? })
    })?;
    let cost = StepCost {
        fixed_bytes: reader.u64()?,
        bytes_per_row: reader.u64()?,
        bytes_per_row_and_position: reader.u64()?,
        operations_per_row: reader.u64()?,
        operations_per_row_and_position: reader.u64()?,
    };
    Ok(Step { kernel, layer, row_axis, operands, joins_previous, cost })
}

impl WeightTable {
    /// The table as it stands in the program.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = ByteWriter::default();
        writer.count(self.entries.len());
        for entry in &self.entries {
            writer.text(&entry.name);
            writer.text(&entry.ty);
            writer.text(&entry.layout);
            writer.u64(entry.offset);
            writer.u64(entry.bytes);
            writer.raw(&entry.sha256);
        }
        writer.finish()
    }

    /// Reads what [`WeightTable::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where the bytes end early or lie about a count.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = ByteReader::new(bytes);
        let entries = reader.vector(WEIGHT_LEAST_BYTES, |reader| {
            Ok(WeightEntry {
                name: reader.text()?,
                ty: reader.text()?,
                layout: reader.text()?,
                offset: reader.u64()?,
                bytes: reader.u64()?,
                sha256: reader.array()?,
            })
        })?;
        reader.finish()?;
        Ok(Self { entries })
    }
}
