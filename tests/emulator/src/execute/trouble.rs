//! Something a lane did wrong, before it is known where.

/// Becomes a fault when the instruction that was executed is added.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) lane: usize,
    pub(crate) what: String,
}

/// The outcome of an instruction; troubles are boxed because they are rare.
pub(crate) type Outcome<Value = ()> = Result<Value, Box<Trouble>>;

/// A trouble of `lane`.
#[cold]
pub(crate) fn trouble<Value>(lane: usize, what: String) -> Outcome<Value> {
    Err(Box::new(Trouble { lane, what }))
}
