//! The nodes' end of a packet measurement: an XDP program on an interface that counts what arrives as it
//! should, and drops or answers it.

use std::net::SocketAddrV4;

use anyhow::{Context, Result};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use aya::programs::{Xdp, XdpMode};

use crate::lab::Netns;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/arrivals.bpf.o"));

/// What to do with packets that are right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sinking {
    Drop,
    Answer,
}

/// What came.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arrived {
    /// UDP to the address and port the sink was made for.
    pub right: u64,
    /// UDP to any other.
    pub wrong: u64,
}

impl Arrived {
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self { right: self.right - before.right, wrong: self.wrong - before.wrong }
    }
}

/// An attached sink; dropping it takes it off.
pub struct Sink {
    program: Ebpf,
}

impl Sink {
    /// Takes UDP for `address` on an interface of a namespace.
    ///
    /// # Errors
    /// No native XDP there, or somebody else's program.
    pub fn attach(ns: &Netns, interface: &str, address: SocketAddrV4, sinking: Sinking) -> Result<Self> {
        let mut program = Ebpf::load(OBJECT).context("the sink's XDP program")?;
        let mut wanted = [0; 8];
        wanted[..4].copy_from_slice(&address.ip().octets());
        wanted[4..6].copy_from_slice(&address.port().to_be_bytes());
        wanted[6..].copy_from_slice(&u16::from(sinking == Sinking::Answer).to_ne_bytes());
        let mut map: Array<_, [u8; 8]> = program.map_mut("wanted").context("arrivals.bpf.o: no map")?.try_into()?;
        map.set(0, wanted, 0)?;
        let xdp: &mut Xdp = program.program_mut("arrivals").context("arrivals.bpf.o: no program")?.try_into()?;
        xdp.load()?;
        ns.run(|| xdp.attach(interface, XdpMode::Driver))
            .with_context(|| format!("the sink on {interface} of {}", ns.name()))?;
        Ok(Self { program })
    }

    /// What has come so far.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn arrived(&self) -> Result<Arrived> {
        let counts: PerCpuArray<_, u64> =
            self.program.map("counts").context("arrivals.bpf.o: no counters")?.try_into()?;
        let sum = |index| -> Result<u64> { Ok(counts.get(&index, 0)?.iter().sum()) };
        Ok(Arrived { right: sum(0)?, wrong: sum(1)? })
    }
}
