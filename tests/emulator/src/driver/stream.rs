//! Streams, as the program makes, awaits and destroys them.

use super::errors::{Refusal, Status};
use super::foreign::{Out, required};
use super::handles::Handle;
use super::queue::Stream;
use super::serve;

/// `CU_STREAM_NON_BLOCKING`: no order between the stream and the default stream.
const NON_BLOCKING: u32 = 1;

/// `cuStreamCreate`: a stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: Out<'_, Handle>, flags: u32) -> Status {
    serve::in_context("cuStreamCreate", |context, _| {
        let place = required(stream, "phStream")?;
        if flags > NON_BLOCKING {
            return Err(Refusal::invalid_value(format!("flags {flags:#x} are not known")));
        }
        place.write(context.streams.insert(Stream::new(flags != NON_BLOCKING)));
        Ok(())
    })
}

/// `cuStreamSynchronize`: does everything that waits in a stream; null is the default stream.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    serve::in_context("cuStreamSynchronize", |context, shared| {
        context.stream(stream)?;
        shared.report.synchronizations += 1;
        context.synchronize(shared, stream)
    })
}

/// `cuStreamDestroy_v2`: destroys a stream; what waits in it is still done, but the host hears of it no more:
/// copies to it that nobody synchronized with never land.
#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    serve::in_context("cuStreamDestroy_v2", |context, shared| {
        context.streams.get(stream)?;
        context.drain(shared, stream)?;
        context.streams.remove(stream).map(drop)
    })
}
