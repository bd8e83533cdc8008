//! The commands besides `build`, one file each.

pub(crate) mod build;
pub(crate) mod compare;
pub(crate) mod inspect;
pub(crate) mod lists;
pub(crate) mod plan;
