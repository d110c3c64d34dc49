//! Servers, gateways and clients on loopback.
