//! A device that is being used: its context, the one stream of work, and marks in that stream.

use std::ffi::c_int;
use std::rc::Rc;

use qwen2c_format::Diagnostic;

use super::functions::{DeviceHandle, Functions, Handle, STREAM_NON_BLOCKING};
use super::{Driver, Status};

/// A device's context, current on this thread, with one stream. What the device was given is freed before
/// it: everything that owns memory or code there holds the context.
pub(crate) struct Context {
    driver: Driver,
    device: DeviceHandle,
    context: Handle,
    stream: Handle,
}

impl Context {
    /// Takes the device's context, which all of this process shares.
    ///
    /// # Errors
    ///
    /// What the driver says: another process may hold the device for itself.
    pub(crate) fn new(driver: Driver, device: DeviceHandle) -> Result<Rc<Self>, Diagnostic> {
        let null = std::ptr::null_mut();
        let mut made = Self { driver, device, context: null, stream: null };
        let functions = made.driver.functions;
        let doing = || "open the device".to_owned();
        // SAFETY: the driver writes one handle.
        let status = unsafe { (functions.context_retain)(&mut made.context, device) };
        if let Err(error) = made.driver.check(status, doing) {
            made.context = null;
            return Err(error);
        }
        // SAFETY: the context was just given.
        made.driver.check(unsafe { (functions.context_set_current)(made.context) }, doing)?;
        // SAFETY: the driver writes one handle.
        let status = unsafe { (functions.stream_create)(&mut made.stream, STREAM_NON_BLOCKING) };
        made.driver.check(status, || "make a stream".to_owned())?;
        Ok(Rc::new(made))
    }

    /// The driver.
    pub(crate) fn driver(&self) -> &Driver {
        &self.driver
    }

    pub(crate) fn functions(&self) -> &Functions {
        &self.driver.functions
    }

    pub(super) fn handle(&self) -> Handle {
        self.context
    }

    pub(crate) fn stream(&self) -> Handle {
        self.stream
    }

    /// As [`Driver::check`].
    ///
    /// # Errors
    ///
    /// As [`Driver::check`].
    pub(crate) fn check(&self, status: Status, doing: impl FnOnce() -> String) -> Result<(), Diagnostic> {
        self.driver.check(status, doing)
    }

    /// Bytes that are free on the device.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn free_bytes(&self) -> Result<u64, Diagnostic> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two numbers about the context that is current.
        let status = unsafe { (self.functions().memory_info)(&mut free, &mut total) };
        self.check(status, || "tell how much memory is free".to_owned())?;
        Ok(free as u64)
    }

    /// Waits until everything in the stream is done. An error may be that of any work since the last wait.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn synchronize(&self) -> Result<(), Diagnostic> {
        // SAFETY: the stream is this context's.
        let status = unsafe { (self.functions().stream_synchronize)(self.stream) };
        self.check(status, || "finish the work it was given".to_owned())
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: both handles are this context's own, and nothing uses them any more. What the driver
        // says to this changes nothing.
        unsafe {
            if !self.stream.is_null() {
                (self.functions().stream_destroy)(self.stream);
            }
            if !self.context.is_null() {
                (self.functions().context_release)(self.device);
            }
        }
    }
}

/// A mark in the stream that knows when it was passed.
pub(crate) struct Event {
    context: Rc<Context>,
    event: Handle,
}

impl Event {
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn new(context: &Rc<Context>) -> Result<Self, Diagnostic> {
        const TIMED: u32 = 0;
        let mut event = std::ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let status = unsafe { (context.functions().event_create)(&mut event, TIMED) };
        context.check(status, || "make an event".to_owned())?;
        Ok(Self { context: Rc::clone(context), event })
    }

    /// Puts the mark behind all work in the stream so far.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn record(&self) -> Result<(), Diagnostic> {
        // SAFETY: both handles belong to the context.
        let status = unsafe { (self.context.functions().event_record)(self.event, self.context.stream) };
        self.context.check(status, || "record an event".to_owned())
    }

    /// Waits until the mark was passed; at once where it was never recorded.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn wait(&self) -> Result<(), Diagnostic> {
        // SAFETY: the event is alive.
        let status = unsafe { (self.context.functions().event_synchronize)(self.event) };
        self.context.check(status, || "finish the work it was given".to_owned())
    }

    /// Seconds between two marks, both of which were passed.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn seconds_since(&self, earlier: &Self) -> Result<f64, Diagnostic> {
        let mut milliseconds = 0.0;
        let elapsed = self.context.functions().event_elapsed;
        // SAFETY: the driver writes one number; both events are alive.
        let status = unsafe { elapsed(&mut milliseconds, earlier.event, self.event) };
        self.context.check(status, || "measure time between events".to_owned())?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is this one's own and is not used any more.
        unsafe { (self.context.functions().event_destroy)(self.event) };
    }
}

/// A number that the driver takes as `int`; what does not fit is as large as it can be.
pub(super) fn as_int(value: u32) -> c_int {
    c_int::try_from(value).unwrap_or(c_int::MAX)
}
