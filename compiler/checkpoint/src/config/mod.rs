//! From a checkpoint's own words to a [`ModelConfig`], with the origin of every value.

mod config_json;
mod limits;
mod reader;
mod rope;
mod table;

pub use config_json::parse_config_json;
pub(crate) use limits::check_limits;
pub(crate) use reader::{FieldReader, model_name};
pub(crate) use rope::yarn_scaling;
pub use table::{ConfigField, print_config_table};
pub(crate) use table::{config_fields, table_fields};
