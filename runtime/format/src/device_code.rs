//! Code for a device that the system's driver loads: the section `device code`.
//!
//! ```text
//! image count   u32
//! images        { architecture u32, kind u8, byte count u32, bytes }
//! ```
//!
//! Kernels of the processor are linked into the ELF image; programs for it have no bytes here.

use crate::codec::{ByteReader, ByteWriter, DecodeError};

/// Fewest bytes of an encoded image: architecture, kind, byte count.
const IMAGE_LEAST_BYTES: usize = 4 + 1 + 4;

/// Everything that a device may be given to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceCode {
    /// Every image holds all kernels of the program; none where the program runs on the processor.
    pub images: Vec<DeviceImage>,
}

/// All kernels for one architecture, in one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceImage {
    /// Ten times the compute capability: 80 for `sm_80`.
    pub architecture: u32,
    /// Form.
    pub kind: ImageKind,
    /// The module; PTX is text without a zero at its end.
    pub bytes: Vec<u8>,
}

/// Form of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ImageKind {
    /// Text that the driver compiles for the device it finds: the architecture or any later one.
    Ptx,
    /// Machine code for devices of the architecture's major version from its minor version on.
    Cubin,
}

impl ImageKind {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ptx => "PTX",
            Self::Cubin => "cubin",
        }
    }
}

impl DeviceCode {
    /// The section as it stands in the program.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = ByteWriter::default();
        if self.images.is_empty() {
            return writer.finish();
        }
        writer.count(self.images.len());
        for image in &self.images {
            writer.u32(image.architecture);
            writer.u8(match image.kind {
                ImageKind::Ptx => 0,
                ImageKind::Cubin => 1,
            });
            writer.count(image.bytes.len());
            writer.raw(&image.bytes);
        }
        writer.finish()
    }

    /// Reads what [`DeviceCode::encode`] wrote.
    ///
    /// # Errors
    ///
    /// [`DecodeError`] where the bytes end early, lie about a count or hold an unknown tag.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut reader = ByteReader::new(bytes);
        let images = reader.vector(IMAGE_LEAST_BYTES, |reader| {
            let architecture = reader.u32()?;
            let kind = match reader.u8()? {
                0 => ImageKind::Ptx,
                1 => ImageKind::Cubin,
                tag => return Err(reader.error(format!("unknown kind of image {tag}"))),
            };
            let count = reader.u32()? as usize;
            Ok(DeviceImage { architecture, kind, bytes: reader.take(count)?.to_vec() })
        })?;
        if images.is_empty() {
            return Err(reader.error("no images where some were announced"));
        }
        reader.finish()?;
        Ok(Self { images })
    }
}
