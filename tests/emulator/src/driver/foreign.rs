//! What callers hand over by pointer.
//!
//! A place for a result is an `Option` of a reference, which C fills with a pointer or null, so that the
//! functions behind it are ordinary Rust. Strings and arrays are read here, once, with null refused.

use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;

use super::errors::Refusal;

/// Where a result goes; null is `None`.
pub type Out<'a, T> = Option<&'a mut MaybeUninit<T>>;

/// The place, or a refusal that names the argument.
pub(super) fn required<'a, T>(place: Out<'a, T>, argument: &str) -> Result<&'a mut MaybeUninit<T>, Refusal> {
    place.ok_or_else(|| Refusal::invalid_value(format!("{argument} is null")))
}

/// The bytes of a string up to its NUL.
///
/// # Safety
///
/// A pointer that is not null points to a string that ends with NUL and stays for `'a`.
pub(super) unsafe fn string<'a>(text: *const c_char, argument: &str) -> Result<&'a [u8], Refusal> {
    if text.is_null() {
        return Err(Refusal::invalid_value(format!("{argument} is null")));
    }
    // SAFETY: not null, and the caller vouches for the rest.
    Ok(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// `count` values; a null pointer is an empty array if the count is zero.
///
/// # Safety
///
/// A pointer that is not null points to `count` initialized values that stay for `'a`.
pub(super) unsafe fn array<'a, T>(
    values: *const T,
    count: usize,
    argument: &str,
) -> Result<&'a [T], Refusal> {
    if count == 0 {
        return Ok(&[]);
    }
    if values.is_null() || !values.is_aligned() {
        return Err(Refusal::invalid_value(format!("{argument} is null or misaligned, for {count} values")));
    }
    // SAFETY: not null and aligned, and the caller vouches for the rest.
    Ok(unsafe { std::slice::from_raw_parts(values, count) })
}

/// The values behind an array of pointers: each pointer leads to as many bytes as `sizes_bytes` says.
/// This is how kernels' parameters come.
///
/// # Safety
///
/// A `values` that is not null has as many pointers as there are sizes, each null or to as many bytes.
pub(super) unsafe fn values_behind(
    values: *const *const c_void,
    sizes_bytes: &[usize],
    argument: &str,
) -> Result<Vec<Vec<u8>>, Refusal> {
    // SAFETY: the caller vouches for the array.
    let pointers = unsafe { array(values, sizes_bytes.len(), argument) }?;
    pointers
        .iter()
        .zip(sizes_bytes)
        .enumerate()
        .map(|(index, (pointer, &bytes))| {
            // SAFETY: the caller vouches for what each pointer leads to; bytes need no alignment.
            let value = unsafe { array(pointer.cast::<u8>(), bytes, &format!("{argument}[{index}]")) };
            value.map(<[u8]>::to_vec)
        })
        .collect()
}

/// Writes a text and its NUL, cut to `capacity_bytes`; the number of bytes written.
///
/// # Safety
///
/// A place that is not null has `capacity_bytes` bytes that may be written.
pub(super) unsafe fn write_text(
    place: *mut c_char,
    capacity_bytes: usize,
    text: &str,
    argument: &str,
) -> Result<usize, Refusal> {
    if place.is_null() || capacity_bytes == 0 {
        return Err(Refusal::invalid_value(format!("{argument} is null or has no room")));
    }
    let length = text.len().min(capacity_bytes - 1);
    // SAFETY: `length` and one more byte fit into what the caller vouches for.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), place.cast(), length);
        place.add(length).write(0);
    }
    Ok(length + 1)
}
