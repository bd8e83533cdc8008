//! Tensors in safetensors files, and how far two of them are apart.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

/// A tensor, widened to f32.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<f32>,
}

impl Tensor {
    /// One row of a matrix.
    pub fn row(&self, row: usize) -> &[f32] {
        let columns = self.shape[1];
        &self.values[row * columns..][..columns]
    }
}

/// All f32 and i32 tensors of a file.
#[track_caller]
pub fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let widen = |view: &TensorView<'_>| {
        let words = view.data().as_chunks::<4>().0.iter();
        let values = match view.dtype() {
            Dtype::F32 => words.map(|word| f32::from_le_bytes(*word)).collect(),
            Dtype::I32 => words.map(|word| i32::from_le_bytes(*word) as f32).collect(),
            other => panic!("{}: an element type the tests do not read: {other:?}", path.display()),
        };
        Tensor { shape: view.shape().to_vec(), values }
    };
    file.tensors().iter().map(|(name, view)| (name.clone(), widen(view))).collect()
}

/// Rewrites a checkpoint's file: `change` may alter, drop or add tensors (element type, shape, bytes).
#[track_caller]
pub fn write_tensors(path: &Path, change: impl FnOnce(&mut BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>)) {
    let bytes = std::fs::read(path).expect("a checkpoint");
    let file = SafeTensors::deserialize(&bytes).expect("a checkpoint");
    let mut tensors: BTreeMap<_, _> = file
        .tensors()
        .iter()
        .map(|(name, view)| (name.clone(), (view.dtype(), view.shape().to_vec(), view.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor of the right length"))
    });
    let bytes = safetensors::serialize(views, None).expect("a checkpoint");
    std::fs::write(path, bytes).expect("a writable copy");
}

/// `‖found − expected‖ / ‖expected‖`; infinite where an element is not finite.
pub fn relative_l2(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "as many logits as the reference has");
    let square = |value: f64| value * value;
    let distance: f64 = found
        .iter()
        .zip(expected)
        .map(|(&found, &expected)| square(f64::from(found) - f64::from(expected)))
        .sum();
    let norm: f64 = expected.iter().map(|&value| square(f64::from(value))).sum();
    let error = (distance / norm).sqrt();
    if error.is_finite() { error } else { f64::INFINITY }
}

/// Copies the files of a directory (not of directories in it).
pub fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory to copy to");
    for entry in std::fs::read_dir(from).expect("a directory to copy") {
        let path = entry.expect("a readable entry").path();
        if path.is_file() {
            std::fs::copy(&path, to.join(path.file_name().expect("a file's name"))).expect("a copy");
        }
    }
}
