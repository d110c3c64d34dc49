//! Owns what lets a session outlive its connection: tokens and their keys, windows, and how often it may be resumed.

pub mod key_file;
pub mod keys;
pub mod limits;
pub mod token;
pub mod windows;
