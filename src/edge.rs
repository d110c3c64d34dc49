//! Owns the edge to the outside: what is accepted, who may come in, and what is served over HTTP.

pub mod accept;
pub mod client_address;
mod heads;
pub mod http;
pub mod keep_alive;
pub mod limiter;
pub mod limits;
mod owing;
pub mod request;
mod status;
pub mod turns;
pub mod websocket;
