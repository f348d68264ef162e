//! Foregate: the gate that stands in front of the gate.
//!
//! This file is the map of the house; it holds no logic. `docs/architecture.md` tells the same at length.
//!
//! # Storeys
//! Imports run downwards only; `tests/tidy.rs` holds the table of allowed arrows.
//!
//! 1. assembly: [`cli`], [`app`], [`config`] (and `main`)
//! 2. edges: [`proxy`] (data plane), [`admin`] (control plane); they never import each other
//! 3. domain: [`guard`], [`backup`], [`pitr`]
//! 4. mechanisms: [`store`], [`repository`], [`postgres`]
//! 5. foundation: [`tasks`], [`telemetry`], [`clock`], [`libpq`], [`priority`], [`secret`]
//!
//! # Invariants
//! - No request waits for PostgreSQL, disk or the control plane: `proxy` cannot import `store`. What a
//!   request needs is an in-memory snapshot; what it causes is a message on a bounded queue.
//! - The backup catalogue lives with the backups, never in the database that a restore rewinds: `backup` and `pitr` cannot
//!   import `store`.
//! - Wire types stay in `admin::views` and `config::raw`; domain types know neither serde nor HTTP.
//! - Pure files (client address, headers, limits) know neither clock nor I/O: time is an argument.
//! - Only `app` and `cli` see `config`: each part declares its own resolved `Config`.
//! - A bad config, certificate or database never stops traffic that flows.
//!
//! # Three walks
//! - A request: `proxy::listener` -> `proxy::tls` -> `proxy::connection` -> `proxy::pipeline`, which is the
//!   whole story on one screen. Every error leaves through `proxy::respond`.
//! - An admin call: `admin::auth` -> `admin::routes::<resource>` -> domain -> `admin::views`.
//! - A reload: `config::watch` -> `config::resolve` -> `app::reload` swaps one snapshot per part.

pub mod admin;
pub mod app;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod config;
pub mod guard;
pub mod libpq;
pub mod pitr;
pub mod postgres;
pub mod priority;
pub mod proxy;
pub mod repository;
pub mod secret;
pub mod store;
pub mod tasks;
pub mod telemetry;
