//! Integration tests: one binary with a module per area. Most tests run on every backend, with and without fault
//! injection (`Chaos`), and those of HTTP and of the loop also over TLS (`over_tls_too:`).

mod acceptor;
mod access_log;
mod admin;
mod basic_auth;
mod bodies;
mod body_wait;
mod buffers;
mod cert;
mod chat;
mod check_connect;
mod compress;
mod conformance;
mod connecting;
#[cfg(windows)]
mod console;
mod deferred;
mod drain;
mod drain_load;
mod echo;
mod embed;
mod errors;
mod eviction;
mod examples;
#[cfg(unix)]
mod fault_backend;
#[cfg(unix)]
mod fault_injection;
mod feed_input;
mod file_bodies;
mod files;
mod handlers;
mod harness;
mod help;
mod http_client;
mod https;
mod https_client;
mod keepalive;
mod limits;
mod log_formats;
#[cfg(unix)]
mod log_services;
mod multipart;
mod mutual_tls;
mod panics;
mod peers;
mod per_listener;
mod process;
mod process_env;
mod properties;
mod proxies;
mod proxy_protocol;
mod readiness;
mod responses;
mod routes;
mod schedule;
mod sessions;
mod streams;
mod suspend;
mod tcp;
#[cfg(unix)]
mod tidy;
mod timeouts;
mod tls;
#[cfg(unix)]
mod unix_sockets;
mod uploads;
mod whoami;
