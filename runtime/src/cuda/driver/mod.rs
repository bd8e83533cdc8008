//! NVIDIA's driver, opened where a program needs it: no CUDA library is linked.
//!
//! Everything that calls into the driver is in this folder, behind types that own what the driver gave and
//! give it back. Every call's result becomes a [`Diagnostic`] with CUDA's name for it.

mod context;
mod errors;
pub(crate) mod functions;
mod graph;
mod module;

use std::ffi::{CStr, c_int, c_void};

use qwen2c_format::Diagnostic;

pub(crate) use context::{Context, Event};
use functions::{DeviceHandle, Functions, SUCCESS, Status};
pub(crate) use graph::{Graph, GraphBuilder};
pub(crate) use module::{Function, Grid, Module};

/// The name that every driver is installed under.
const LIBRARY: &CStr = c"libcuda.so.1";
/// The oldest driver with all functions of the table: CUDA 12.0.
const LEAST_VERSION: Version = Version(12000);

/// A version of CUDA as the driver writes it: 12080 is 12.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) c_int);

impl std::fmt::Display for Version {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "CUDA {}.{}", self.0 / 1000, self.0 % 1000 / 10)
    }
}

/// The driver, initialized.
pub(crate) struct Driver {
    functions: Functions,
    version: Version,
}

impl Driver {
    /// Opens the system's driver.
    ///
    /// # Errors
    ///
    /// Where there is none, it is too old, or it finds no device.
    pub(crate) fn open() -> Result<Self, Diagnostic> {
        // SAFETY: the name is a C string; the library's initializers are those of the driver. It stays
        // open until the process ends.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(no_driver(&last_loader_error()));
        }
        let find = |name: &CStr| {
            // SAFETY: the library is open and the name a C string.
            let address = unsafe { libc::dlsym(library, name.as_ptr()) };
            (!address.is_null()).then_some(address)
        };
        // SAFETY: the addresses are those of the driver's functions of these names.
        let functions = unsafe { Functions::find(find) };
        functions.map_err(|name| lacks_function(name, version_alone(find))).and_then(Self::new)
    }

    /// Initializes a driver whose functions are known.
    ///
    /// # Errors
    ///
    /// As [`Driver::open`].
    pub(crate) fn new(functions: Functions) -> Result<Self, Diagnostic> {
        let mut driver = Self { functions, version: Version(0) };
        let mut version = 0;
        // SAFETY: the driver writes one number; it may be asked before it is initialized.
        let status = unsafe { (functions.driver_version)(&mut version) };
        driver.check(status, || "tell its version".to_owned())?;
        driver.version = Version(version);
        if driver.version < LEAST_VERSION {
            return Err(too_old(&format!("a driver for {}", driver.version)));
        }
        // SAFETY: no flags are defined.
        let status = unsafe { (functions.initialize)(0) };
        if status == functions::ERROR_NO_DEVICE {
            return Err(driver.no_device());
        }
        driver.check(status, || "start".to_owned())?;
        Ok(driver)
    }

    /// The newest CUDA that the driver knows.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    /// Devices that this process may use.
    ///
    /// # Errors
    ///
    /// What the driver says; none at all is an error.
    pub(crate) fn device_count(&self) -> Result<u32, Diagnostic> {
        let mut count = 0;
        // SAFETY: the driver writes one number.
        let status = unsafe { (self.functions.device_count)(&mut count) };
        self.check(status, || "count devices".to_owned())?;
        match u32::try_from(count) {
            Ok(count) if count > 0 => Ok(count),
            _ => Err(self.no_device()),
        }
    }

    /// A device by its number.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn device(&self, number: u32) -> Result<DeviceHandle, Diagnostic> {
        let mut device = 0;
        // SAFETY: the driver writes one handle.
        let status = unsafe { (self.functions.device)(&mut device, number as c_int) };
        self.check(status, || format!("find device {number}"))?;
        Ok(device)
    }

    /// A device's name: `NVIDIA A100-SXM4-80GB`.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn device_name(&self, device: DeviceHandle) -> Result<String, Diagnostic> {
        let mut name = [0_u8; 128];
        // SAFETY: the driver writes a C string of at most the length that it is given, which leaves the
        // last byte zero.
        let status = unsafe {
            (self.functions.device_name)(name.as_mut_ptr().cast(), name.len() as c_int - 1, device)
        };
        self.check(status, || "tell the device's name".to_owned())?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default();
        Ok(name.to_string_lossy().into_owned())
    }

    /// A number about a device.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn attribute(&self, device: DeviceHandle, attribute: c_int) -> Result<u32, Diagnostic> {
        let mut value = 0;
        // SAFETY: the driver writes one number.
        let status = unsafe { (self.functions.device_attribute)(&mut value, attribute, device) };
        self.check(status, || format!("tell attribute {attribute} of the device"))?;
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Bytes of a device's memory.
    ///
    /// # Errors
    ///
    /// What the driver says.
    pub(crate) fn device_memory_bytes(&self, device: DeviceHandle) -> Result<u64, Diagnostic> {
        let mut bytes = 0;
        // SAFETY: the driver writes one number.
        let status = unsafe { (self.functions.device_memory)(&mut bytes, device) };
        self.check(status, || "tell the size of the device's memory".to_owned())?;
        Ok(bytes as u64)
    }
}

/// The loader's message for the call that failed last.
fn last_loader_error() -> String {
    // SAFETY: the message is a C string that stays until the next call of the loader.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the loader gives no reason".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

/// The version of a driver that lacks other functions.
fn version_alone(find: impl Fn(&CStr) -> Option<*mut c_void>) -> Option<Version> {
    let address = find(c"cuDriverGetVersion")?;
    // SAFETY: the address is that of the function, which writes one number.
    unsafe {
        let ask = std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut c_int) -> Status>(address);
        let mut version = 0;
        (ask(&mut version) == SUCCESS).then_some(Version(version))
    }
}

fn no_driver(reason: &str) -> Diagnostic {
    Diagnostic::new("this program runs on an NVIDIA GPU, and this machine has no CUDA driver")
        .cause(reason)
        .needed(format!("`libcuda.so.1`, a part of NVIDIA's driver, for {LEAST_VERSION} or newer"))
        .help("install NVIDIA's driver; a container gets it with `--gpus all`")
        .help("to run on the processor, build the program with `--target native`")
}

fn lacks_function(name: &CStr, version: Option<Version>) -> Diagnostic {
    let name = name.to_string_lossy();
    let driver = version.map_or_else(|| "a driver".to_owned(), |version| format!("a driver for {version}"));
    too_old(&format!("{driver} without `{name}`"))
}

fn too_old(found: &str) -> Diagnostic {
    Diagnostic::new("the CUDA driver is too old for this program")
        .found(found)
        .needed(format!("a driver for {LEAST_VERSION} or newer (version 525 of NVIDIA's driver)"))
        .help("update NVIDIA's driver")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_cuda_writes_them() {
        assert_eq!(Version(12080).to_string(), "CUDA 12.8");
        assert_eq!(Version(13000).to_string(), "CUDA 13.0");
    }

    #[test]
    fn a_missing_function_is_named_with_the_version() {
        unsafe extern "C" fn version(version: *mut c_int) -> Status {
            // SAFETY: the caller gives a place for one number.
            unsafe { version.write(11040) };
            SUCCESS
        }
        let find =
            |name: &CStr| (name != c"cuGraphAddKernelNode_v2").then_some(version as *const () as *mut c_void);
        // SAFETY: none of the functions is called but the one that has the right signature.
        let missing = unsafe { Functions::find(find) }.err().expect("one is missing");
        let message = lacks_function(missing, version_alone(find)).to_string();
        assert!(message.contains("CUDA 11.4 without `cuGraphAddKernelNode_v2`"), "{message}");
        assert!(message.contains("CUDA 12.0") && message.contains("help: update"), "{message}");
        // SAFETY: nothing is found.
        assert_eq!(unsafe { Functions::find(|_| None) }.err(), Some(c"cuInit"));
        assert_eq!(version_alone(|_| None), None);
    }
}
