//! Code on a device: modules, their entry points, and how a grid is started.

use std::ffi::{CString, c_uint, c_void};
use std::rc::Rc;

use qwen2c_format::Diagnostic;

use super::Context;
use super::context::as_int;
use super::functions::{FUNCTION_DYNAMIC_SHARED_BYTES, Handle, JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES};

/// What the driver may say about code that it cannot compile.
const LOG_BYTES: usize = 8192;
/// Lines of it that are shown.
const LOG_LINES: usize = 12;
/// Operands of a kernel, which the format limits to 64, and the number of rows.
const MOST_PARAMETERS: usize = 65;
/// Dynamic shared memory that a kernel may have without asking.
const COMMON_SHARED_BYTES: u32 = 48 << 10;

/// Loaded code.
pub(crate) struct Module {
    context: Rc<Context>,
    module: Handle,
}

/// An entry point. The module that it belongs to must be kept.
#[derive(Clone, Copy)]
pub(crate) struct Function(Handle);

/// How many blocks a launch has, and what a block has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: [u32; 2],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

impl Module {
    /// Loads an image: PTX, which must end with a zero, or a cubin.
    ///
    /// # Errors
    ///
    /// What the driver says, with the log of its compiler.
    pub(crate) fn load(context: &Rc<Context>, image: &[u8], name: &str) -> Result<Self, Diagnostic> {
        let mut log = vec![0_u8; LOG_BYTES];
        let mut options = [JIT_ERROR_LOG, JIT_ERROR_LOG_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), (LOG_BYTES - 1) as *mut c_void];
        let mut module = std::ptr::null_mut();
        // SAFETY: the image is whole (a cubin says itself how long it is, PTX ends with a zero), and the log
        // has a byte more than the driver is told, which stays zero.
        let status = unsafe {
            (context.functions().module_load)(
                &mut module,
                image.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        let loaded = context.check(status, || format!("load the program's code ({name})"));
        loaded.map_err(|diagnostic| with_log(diagnostic, &log))?;
        Ok(Self { context: Rc::clone(context), module })
    }

    /// An entry point that may use so much dynamic shared memory.
    ///
    /// # Errors
    ///
    /// What the driver says: there is no such entry point, or not so much shared memory.
    pub(crate) fn function(&self, symbol: &str, shared_bytes: u32) -> Result<Function, Diagnostic> {
        let functions = self.context.functions();
        let mut function = std::ptr::null_mut();
        let name = CString::new(symbol).unwrap_or_default();
        // SAFETY: the driver writes one handle; the module is loaded and the name a C string.
        let status = unsafe { (functions.module_function)(&mut function, self.module, name.as_ptr()) };
        self.context.check(status, || format!("find the entry point `{symbol}` in the program's code"))?;
        if shared_bytes > COMMON_SHARED_BYTES {
            let bytes = as_int(shared_bytes);
            // SAFETY: the function belongs to a loaded module.
            let status =
                unsafe { (functions.function_set_attribute)(function, FUNCTION_DYNAMIC_SHARED_BYTES, bytes) };
            self.context
                .check(status, || format!("give `{symbol}` {shared_bytes} bytes of shared memory"))?;
        }
        Ok(Function(function))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module is this one's own; its functions are not used any more.
        unsafe { (self.context.functions().module_unload)(self.module) };
    }
}

fn with_log(diagnostic: Diagnostic, log: &[u8]) -> Diagnostic {
    let text: Vec<u8> = log.iter().copied().take_while(|&byte| byte != 0).collect();
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
    lines.take(LOG_LINES).fold(diagnostic, |diagnostic, line| diagnostic.cause(line))
}

/// Addresses of a kernel's parameters, as the driver wants them: the operands, then the number of rows.
///
/// Kernels only reach memory of the device, which holds nothing that Rust knows of; what they do there
/// cannot break this process.
pub(super) struct Parameters<'a> {
    addresses: [*mut c_void; MOST_PARAMETERS],
    _values: (&'a [u64], &'a u32),
}

impl<'a> Parameters<'a> {
    pub(super) fn new(operands: &'a [u64], rows: &'a u32) -> Self {
        assert!(operands.len() < MOST_PARAMETERS, "a kernel with {} operands", operands.len());
        let mut addresses = [std::ptr::null_mut(); MOST_PARAMETERS];
        for (address, operand) in addresses.iter_mut().zip(operands) {
            *address = std::ptr::from_ref(operand).cast_mut().cast();
        }
        addresses[operands.len()] = std::ptr::from_ref(rows).cast_mut().cast();
        Self { addresses, _values: (operands, rows) }
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut *mut c_void {
        self.addresses.as_mut_ptr()
    }
}

impl Context {
    /// Puts a grid into the stream. Operands are addresses on the device.
    ///
    /// # Errors
    ///
    /// What the driver says; it may be the failure of earlier work.
    pub(crate) fn launch(
        &self,
        function: Function,
        grid: &Grid,
        operands: &[u64],
        rows: u32,
        name: impl FnOnce() -> String,
    ) -> Result<(), Diagnostic> {
        let mut parameters = Parameters::new(operands, &rows);
        let Grid { blocks: [across, down], threads, shared_bytes } = *grid;
        // SAFETY: the function belongs to a module that is loaded, and takes as many parameters as its step
        // has operands, and the rows; the driver copies them before it returns.
        let status = unsafe {
            (self.functions().launch)(
                function.0,
                across,
                down,
                1,
                threads,
                1,
                1,
                shared_bytes,
                self.stream(),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        self.check(status, || format!("start {}", name()))
    }

    /// Blocks of a kernel that one multiprocessor holds at the same time.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn blocks_at_once(
        &self,
        function: Function,
        threads: u32,
        shared_bytes: u32,
    ) -> Result<u32, Diagnostic> {
        let mut blocks = 0;
        // SAFETY: the driver writes one number; the function belongs to a loaded module.
        let status = unsafe {
            let ask = self.functions().blocks_at_once;
            ask(&mut blocks, function.0, as_int(threads), shared_bytes as usize)
        };
        self.check(status, || "tell how many blocks run at the same time".to_owned())?;
        Ok(u32::try_from(blocks).unwrap_or(0))
    }

    /// As [`Context::launch`], of a grid whose blocks are all on the device before any of them ends; the driver
    /// refuses more than it holds.
    ///
    /// # Errors
    ///
    /// As [`Context::launch`].
    pub(crate) fn launch_together(
        &self,
        function: Function,
        grid: &Grid,
        operands: &[u64],
        rows: u32,
    ) -> Result<(), Diagnostic> {
        let mut parameters = Parameters::new(operands, &rows);
        let Grid { blocks: [across, down], threads, shared_bytes } = *grid;
        // SAFETY: as in `launch`: the function takes so many parameters, which the driver copies.
        let status = unsafe {
            (self.functions().launch_together)(
                function.0,
                across,
                down,
                1,
                threads,
                1,
                1,
                shared_bytes,
                self.stream(),
                parameters.as_mut_ptr(),
            )
        };
        self.check(status, || format!("start {across} blocks that wait for one another"))
    }
}

impl Function {
    pub(super) fn handle(self) -> Handle {
        self.0
    }
}
