pub mod aec3;
pub mod logging;
pub mod utility;
