//! Connects to a Qflow: addresses, TLS, token, deadlines, and which calls are tried again. The calls
//! themselves are the generated stubs below [`qflow`]; [`Refusal`] reads what a refused call says,
//! and [`Client::watch`] follows a run over cuts.

mod client;
mod connection;
mod refusal;
mod watch;

pub use client::{Client, Error, Options};
pub use connection::Connection;
pub use refusal::Refusal;
pub use watch::is_final;

#[allow(clippy::all, rustdoc::all)]
mod contract {
    include!(concat!(env!("OUT_DIR"), "/contract.rs"));
}

pub use contract::qflow;
