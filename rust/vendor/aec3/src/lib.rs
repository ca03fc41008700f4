pub mod api;
pub mod audio_processing;
