//! What can go wrong between the config and a program on the interface, each with its remedy.

use std::error::Error;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum SteerError {
    #[error(
        "steering needs {missing}, which this process lacks\n  remedy: run as root, or give the unit AmbientCapabilities={missing}"
    )]
    Capability { missing: String },

    #[error("no interface is configured\n  remedy: name at least one [[port]] in the config file")]
    NoInterface,

    #[error(
        "interface `{name}` does not exist\n  remedy: `ip link` lists the interfaces of this network namespace; correct [[port]] interface"
    )]
    MissingInterface { name: String },

    #[error(
        "interface `{name}` already runs the XDP program {program}, attached in {mode} mode by somebody else; it was left alone\n  \
         remedy: stop its owner (`bpftool net show dev {name}`); if nobody owns it any more: `ip link set dev {name} xdp off`, or \
         remove its pinned link"
    )]
    Foreign { name: String, program: String, mode: String },

    #[error("interface `{name}` takes no XDP program in {mode} mode: {reason}\n  remedy: {remedy}")]
    Attach { name: String, mode: &'static str, reason: String, remedy: &'static str },

    #[error(
        "cannot mount a bpffs at {path}: {source}\n  remedy: mount it before the start (`mount -t bpf bpf {path}`; systemd: \
         ExecStartPre=+), or grant CAP_SYS_ADMIN for it"
    )]
    Mount { path: PathBuf, source: io::Error },

    #[error(
        "{action} {path}: {source}\n  remedy: `penstock detach` clears the pins; then check that {path} lies on a bpffs writable by \
         this user"
    )]
    Pin { action: &'static str, path: PathBuf, source: io::Error },

    #[error("the kernel refused the XDP program for `{name}`: {reason}\n  remedy: {remedy}")]
    Load { name: String, reason: String, remedy: &'static str },

    #[error(
        "the embedded XDP object lacks {what}\n  remedy: rebuild; the object and the loader are of different sources"
    )]
    Object { what: &'static str },

    #[error("{table}: {wanted} entries wanted, {limit} possible; nothing was changed\n  remedy: {remedy}")]
    Capacity { table: &'static str, wanted: usize, limit: usize, remedy: &'static str },

    #[error("SNAT address {address}: {problem}\n  remedy: {remedy}")]
    Snat { address: IpAddr, problem: String, remedy: &'static str },

    #[error(
        "dnat backend {address}: port 0 or protocol {protocol} cannot be steered\n  remedy: a port, and TCP (6) or UDP (17)"
    )]
    Dnat { address: IpAddr, protocol: u8 },

    #[error("map {map}: {reason}\n  remedy: `penstock detach`, then start again: the maps are made anew")]
    Map { map: &'static str, reason: String },

    #[error(
        "interface `{name}` has no queue {queue}: {queues} are served\n  remedy: open sockets on queues below [[port]] queues only"
    )]
    NoQueue { name: String, queue: u32, queues: u16 },

    #[error("no interface number {0} was given to the loader")]
    NoSuchIndex(usize),

    #[error(
        "the kernel did not answer about interface `{name}`: {source}\n  remedy: try again; `ip link show {name}` asks the same"
    )]
    Query { name: String, source: io::Error },
}

/// The whole chain in one line: aya keeps the errno in the source.
pub(super) fn describe(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(inner) = next {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        next = inner.source();
    }
    text
}

/// The errno at the bottom of an aya error, where there is one.
pub(super) fn errno(error: &(dyn Error + 'static)) -> Option<i32> {
    let mut next = Some(error);
    while let Some(inner) = next {
        if let Some(code) = inner.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error) {
            return Some(code);
        }
        next = inner.source();
    }
    None
}
