//! Real servers on loopback, clients that speak only the public protocol, and a checker of promises.
//!
//! Nothing here knows the gateway's code: it is started as a process and judged by what clients see.

pub mod certificates;
pub mod chaos;
pub mod checker;
pub mod client;
pub mod cluster;
pub mod demo;
pub mod fake_gateway;
pub mod fake_home;
pub mod fake_sentinel;
pub mod gateway;
pub mod http;
pub mod issuer;
pub mod network;
pub mod nginx;
pub mod output;
pub mod process;
pub mod proxy;
pub mod redis_server;
pub mod resumer;
pub mod scenarios;
pub mod stage;
pub mod tls_relay;
pub mod traffic;
