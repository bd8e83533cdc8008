//! Modules: PTX that was compiled, and the functions in it.

use std::ffi::{c_char, c_void};
use std::sync::Arc;

use crate::{Entry, Module};

use super::context::Context;
use super::errors::{Answer, Refusal, Status};
use super::foreign::{Out, array, required, string, write_text};
use super::handles::Handle;
use super::image::compile;
use super::launch::dynamic_shared_bytes_without_consent;
use super::serve;

/// A module of a context.
pub(super) struct LoadedModule {
    image: Arc<Module>,
}

/// An entry of a module, as programs launch it.
pub(super) struct Function {
    pub(super) module: Handle,
    pub(super) image: Arc<Module>,
    pub(super) name: String,
    /// What `cuFuncSetAttribute` allows.
    pub(super) most_dynamic_shared_bytes: u32,
}

impl Function {
    pub(super) fn entry(&self) -> &Entry {
        self.image.entry(&self.name).expect("the entry was found when the function was made")
    }
}

/// A log that the compiler of the driver writes: option values say where it goes and how much fits.
#[derive(Default)]
struct Log {
    place: Option<*mut c_char>,
    capacity_bytes: usize,
    /// Where among the option values the capacity stands; the used bytes go there.
    capacity_index: Option<usize>,
}

impl Log {
    /// # Safety
    ///
    /// The buffer that the options name has the bytes that they say.
    unsafe fn write(&self, text: &str, values: *mut *mut c_void) -> Answer {
        let mut used_bytes = 0;
        if let Some(place) = self.place
            && self.capacity_bytes > 0
        {
            // SAFETY: the caller vouches for the buffer.
            used_bytes = unsafe { write_text(place, self.capacity_bytes, text, "a log buffer") }?;
        }
        if let Some(index) = self.capacity_index {
            // SAFETY: the index is that of an option whose value was read from this array.
            unsafe { values.add(index).write(used_bytes as *mut c_void) };
        }
        Ok(())
    }
}

/// What the options of a load ask for.
#[derive(Default)]
struct Options {
    errors: Log,
    information: Log,
}

/// Reads `CUjit_option`s and their values; unknown ones are refused, hints are passed over.
fn read_options(options: &[u32], values: &[*mut c_void]) -> Result<Options, Refusal> {
    let mut read = Options::default();
    for (index, (option, value)) in options.iter().zip(values).enumerate() {
        let number = *value as usize;
        match option {
            3 => read.information.place = Some(value.cast()),
            4 => (read.information.capacity_bytes, read.information.capacity_index) = (number, Some(index)),
            5 => read.errors.place = Some(value.cast()),
            6 => (read.errors.capacity_bytes, read.errors.capacity_index) = (number, Some(index)),
            // Level of optimization.
            7 if number <= 4 => {}
            // The target is that of the context; more words in the log; lines for profilers.
            8 | 12 | 13 => {}
            _ => {
                let why = format!("option {option} with value {number} is not emulated");
                return Err(Refusal::invalid_value(why));
            }
        }
    }
    Ok(read)
}

/// `cuModuleLoadDataEx`: compiles PTX that ends with NUL. The log says why it was refused.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: Out<'_, Handle>,
    image: *const c_void,
    option_count: u32,
    options: *const u32,
    option_values: *mut *mut c_void,
) -> Status {
    serve::in_context("cuModuleLoadDataEx", |context, shared| {
        let place = required(module, "module")?;
        let count = option_count as usize;
        // SAFETY: cuda.h asks the program for arrays of `option_count`, and for an image that is PTX with NUL or
        // begins like machine code, whose beginning holds no NUL either.
        let (image, options, values) = unsafe {
            let values = array(option_values.cast_const(), count, "optionValues")?.to_vec();
            (string(image.cast(), "image")?, array(options, count, "options")?, values)
        };
        let options = read_options(options, &values)?;
        let settings = &shared.settings;
        let compiled = compile(image, settings.model.architecture, settings.driver_version);
        let log = match &compiled {
            Ok(_) => "",
            Err(refusal) => refusal.why.as_deref().unwrap_or_default(),
        };
        // SAFETY: cuda.h asks the program for log buffers of the sizes that its options say.
        unsafe {
            options.errors.write(log, option_values)?;
            options.information.write("", option_values)?;
        }
        let loaded = LoadedModule { image: Arc::new(compiled?) };
        shared.report.load(image);
        place.write(context.modules.insert(loaded));
        Ok(())
    })
}

/// `cuModuleGetFunction`: the entry of a name, the same handle each time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: Out<'_, Handle>,
    module: Handle,
    name: *const c_char,
) -> Status {
    serve::in_context("cuModuleGetFunction", |context, _| {
        let place = required(function, "hfunc")?;
        let image = Arc::clone(&context.modules.get(module)?.image);
        // SAFETY: cuda.h asks the program for a string.
        let name = String::from_utf8_lossy(unsafe { string(name, "name") }?).into_owned();
        let Some(entry) = image.entry(&name) else {
            return Err(Refusal::new(Status::NOT_FOUND, format!("the module has no entry `{name}`")));
        };
        let most_dynamic_shared_bytes = dynamic_shared_bytes_without_consent(entry.static_shared_bytes());
        let is_it = |made: &Function| made.module == module && made.name == name;
        let known = context.functions.iter().find(|(_, made)| is_it(made)).map(|(handle, _)| handle);
        place.write(match known {
            Some(handle) => handle,
            None => context.functions.insert(Function { module, image, name, most_dynamic_shared_bytes }),
        });
        Ok(())
    })
}

/// `cuModuleUnload`: forgets a module and its functions, which no waiting work may need.
#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(module: Handle) -> Status {
    serve::in_context("cuModuleUnload", |context, shared| {
        context.modules.get(module)?;
        if context.awaits_module(module) {
            let what = "kernels of the module still wait in a stream: synchronize first".to_owned();
            return Err(shared.report.program_fault(Status::INVALID_VALUE, "cuModuleUnload", what));
        }
        unload(context, module)
    })
}

fn unload(context: &mut Context, module: Handle) -> Answer {
    context.modules.remove(module)?;
    context.functions.retain(|function| function.module != module);
    Ok(())
}
