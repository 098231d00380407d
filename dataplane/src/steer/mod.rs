//! Which packets come to us at all: the XDP program (`bpf/steer.bpf.c`) and its loader.
//!
//! The program runs on every packet an interface receives and hands to the AF_XDP socket of the
//! packet's queue what is addressed to a VIP or a SNAT address, what a `dnat` backend answers, and ARP
//! and neighbour discovery for addresses we announce. All else goes to the kernel untouched.
//!
//! **It outlives the process.** Link and maps are pinned on a bpffs of our own at `{run_dir}/bpf`. With no
//! process its packets are dropped, so that the kernel does not answer them with RST; the next
//! [`Steer::open`] adopts the maps as they are and replaces the program through the link, without a gap.
//! Where a build brings another layout of maps, the old program runs on until the first
//! [`Steer::sync`] has filled the new ones. Dropping a [`Steer`] leaves everything in place;
//! [`Steer::detach`] and [`detach_all`] remove it.
//!
//! **Every queue below [`Interface::queues`] must get a socket**: a queue without one drops our packets.
//! Queues from `queues` on pass everything to the kernel.
//!
//! **MTU.** Without `frags` a packet must fit one buffer: the driver refuses the program above about 3500
//! (veth: 3506, of the peer). With [`Options::frags`] any MTU goes, if the sockets are bound with XDP_USE_SG. The
//! program sees a packet's first buffer only, and relies on headers only where they are in it: veth and most drivers
//! fill it. Where it is short, the headers of plain packets are copied out (`bpf/split.h`), and what cannot be
//! decided by them passes to the kernel, counted ([`SteerCounters::split`]).

mod bpffs;
mod error;
mod layout;
pub mod marks;
mod program;
mod query;
mod table;
mod types;

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{Array, Map, MapData, PerCpuArray};
use aya::programs::{TestRun as _, TestRunOptions};
use caps::{CapSet, Capability};
use penstock_configs::file::XdpMode;
use tracing::{info, warn};

pub use error::SteerError;
use error::describe;
pub use layout::{ADDRESSES as MOST_ADDRESSES, BACKENDS as MOST_BACKENDS};
use layout::{Backend4, Backend6, COUNTERS, Encoded, Key4, Key6, LocalValue, Present, Settings};
use marks::Marks;
use program::Program;
use table::Table;
pub use types::{AttachMode, Changes, ClassCounters, Decision, Interface, Options, SnatSteer, SteerCounters, Steering};

/// The program on its interfaces, and the maps they share.
pub struct Steer {
    run_dir: PathBuf,
    ports: Vec<SteeredPort>,
    local4: Table<Key4, LocalValue>,
    local6: Table<Key6, LocalValue>,
    dnat4: Table<Backend4, Present>,
    dnat6: Table<Backend6, Present>,
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, [u64; COUNTERS]>,
    marks: Arc<Marks>,
    warnings: Vec<String>,
}

struct SteeredPort {
    interface: Interface,
    program: Program,
    mode: Option<AttachMode>,
    adopted: bool,
    pending: bool,
}

impl Steer {
    /// Loads the program for each interface and attaches it, adopting what an earlier process left pinned.
    pub fn open(run_dir: &Path, interfaces: &[Interface]) -> Result<Self, SteerError> {
        Self::open_with(run_dir, interfaces, Options::default())
    }

    pub fn open_with(run_dir: &Path, interfaces: &[Interface], options: Options) -> Result<Self, SteerError> {
        check_capabilities()?;
        let interfaces = resolve(interfaces)?;
        let warnings: Vec<String> = bpffs::prepare(run_dir)?.into_iter().collect();
        let pins = bpffs::pins(run_dir);
        let mut ports = Vec::with_capacity(interfaces.len());
        for interface in interfaces {
            let program = Program::load(&pins, &interface, options.frags)?;
            ports.push(SteeredPort { interface, program, mode: None, adopted: false, pending: false });
        }
        let first = &mut ports.first_mut().ok_or(SteerError::NoInterface)?.program;
        let settings: Array<MapData, Settings> = Array::try_from(first.take_map("settings")?)
            .map_err(|error| SteerError::Map { map: "settings", reason: describe(&error) })?;
        let marks = marks(first.take_map("established")?, &settings)?;
        let mut steer = Self {
            run_dir: run_dir.to_owned(),
            local4: Table::adopt("local4", first.take_map("local4")?)?,
            local6: Table::adopt("local6", first.take_map("local6")?)?,
            dnat4: Table::adopt("dnat4", first.take_map("dnat4")?)?,
            dnat6: Table::adopt("dnat6", first.take_map("dnat6")?)?,
            settings,
            marks: Arc::new(marks),
            counters: PerCpuArray::try_from(first.take_map("counters")?)
                .map_err(|error| SteerError::Map { map: "counters", reason: describe(&error) })?,
            ports,
            warnings,
        };
        if let Err(error) = steer.store_settings().and_then(|()| steer.attach_all()) {
            steer.undo();
            return Err(error);
        }
        for warning in &steer.warnings {
            warn!("{warning}");
        }
        Ok(steer)
    }

    /// Makes the maps say what is wanted, by difference: everything new is there before anything old goes.
    /// Refused whole, with nothing changed, where it contradicts itself or exceeds the maps.
    pub fn sync(&mut self, wanted: &Steering) -> Result<Changes, SteerError> {
        let wanted = Encoded::new(wanted)?;
        let mut changes = Changes::default();
        self.local4.add(&wanted.local4, &mut changes)?;
        self.local6.add(&wanted.local6, &mut changes)?;
        self.dnat4.add(&wanted.dnat4, &mut changes)?;
        self.dnat6.add(&wanted.dnat6, &mut changes)?;
        self.store_settings()?;
        self.local4.remove(&wanted.local4, &mut changes)?;
        self.local6.remove(&wanted.local6, &mut changes)?;
        self.dnat4.remove(&wanted.dnat4, &mut changes)?;
        self.dnat6.remove(&wanted.dnat6, &mut changes)?;
        self.store_settings()?;
        self.take_over_pending()?;
        Ok(changes)
    }

    /// Hands the packets of a queue to an AF_XDP socket bound to it. The kernel forgets the socket when it is closed.
    pub fn set_socket(&mut self, interface: usize, queue: u32, fd: BorrowedFd<'_>) -> Result<(), SteerError> {
        let port = self.port_mut(interface)?;
        if queue >= u32::from(port.interface.queues) {
            let Interface { name, queues, .. } = port.interface.clone();
            return Err(SteerError::NoQueue { name, queue, queues });
        }
        let map_fault = |error| SteerError::Map { map: "sockets", reason: describe(&error) };
        port.program.sockets.set(queue, fd, 0).map_err(map_fault)
    }

    /// How the program runs on an interface; `None`: it doesn't (see [`Steer::attach_interface`]).
    #[must_use]
    pub fn attached(&self, interface: usize) -> Option<AttachMode> {
        self.ports.get(interface).and_then(|port| port.mode)
    }

    /// Whether [`Steer::open`] took over the program of an earlier process there.
    #[must_use]
    pub fn adopted(&self, interface: usize) -> bool {
        self.ports.get(interface).is_some_and(|port| port.adopted)
    }

    /// What the operator should know although the program runs; logged once at open.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Asks the kernel whether the program still runs on the interface. `false` after the interface
    /// vanished or came back anew, or somebody detached it: then [`Steer::attach_interface`].
    pub fn check(&mut self, interface: usize) -> Result<bool, SteerError> {
        let port = self.port_mut(interface)?;
        let ours = port.program.xdp()?.info().map(|info| info.id()).ok();
        let mode = match query::by_name(&port.interface.name) {
            Ok(state) if state.ifindex == port.interface.ifindex => {
                state.attached.filter(|attached| Some(attached.program) == ours || port.pending)
            }
            Ok(_) | Err(SteerError::MissingInterface { .. }) => None,
            Err(error) => return Err(error),
        };
        port.mode = mode.and_then(|attached| attached.mode);
        Ok(port.mode.is_some())
    }

    /// The interface's number as of the last attach: a device made anew under the same name has another.
    #[must_use]
    pub fn ifindex(&self, interface: usize) -> Option<u32> {
        self.ports.get(interface).map(|port| port.interface.ifindex)
    }

    /// Attaches again where the interface vanished and came back, or the program was detached; harmless where it
    /// still runs. Sockets must then be made and set anew: those of the vanished device are dead.
    pub fn attach_interface(&mut self, interface: usize) -> Result<AttachMode, SteerError> {
        let port = self.port_mut(interface)?;
        let before = port.interface.ifindex;
        let state = query::by_name(&port.interface.name)?;
        port.interface.ifindex = state.ifindex;
        if before != state.ifindex {
            let stale: Vec<_> = bpffs::links(&self.run_dir).into_iter().filter(|pin| pin.ifindex == before).collect();
            for pinned in stale {
                bpffs::remove(&pinned.path)?;
            }
        }
        self.attach(interface)
    }

    /// Whether the program would run on an interface that is no port yet: it is put there, and taken off again.
    pub fn try_on(&mut self, name: &str, mode: XdpMode) -> Result<(), SteerError> {
        let ifindex = query::by_name(name)?.ifindex;
        let interface = Interface { name: name.to_owned(), ifindex, queues: 0, mode };
        self.port_mut(0)?.program.try_on(&interface)
    }

    /// Where workers mark the flows that are established, for the program to tell them from a flood.
    #[must_use]
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    /// Packets since the maps were made.
    pub fn counters(&self) -> Result<SteerCounters, SteerError> {
        let cpus =
            self.counters.get(&0, 0).map_err(|error| SteerError::Map { map: "counters", reason: describe(&error) })?;
        let mut sum = SteerCounters::default();
        for cpu in cpus.iter() {
            layout::add_counters(&mut sum, cpu);
        }
        Ok(sum)
    }

    /// Runs the interface's program, as loaded in the kernel and with the maps as they are, on a frame of at
    /// least 14 bytes (the kernel's minimum) as if it came by queue 0; and how long one run took, of `repeat`.
    pub fn test_run(
        &mut self,
        interface: usize,
        frame: &[u8],
        repeat: u32,
    ) -> Result<(Decision, Duration), SteerError> {
        self.test_run_with(interface, frame, None, repeat)
    }

    /// [`Self::test_run`] of a packet in several buffers, with `first` bytes in the first (a kernel of 6.18).
    pub fn test_run_split(&mut self, interface: usize, frame: &[u8], first: u32) -> Result<Decision, SteerError> {
        // struct xdp_md: data, data_end, and four that stay zero.
        let [a, b, c, d] = first.to_ne_bytes();
        let mut context = [0; 24];
        context[4..8].copy_from_slice(&[a, b, c, d]);
        self.test_run_with(interface, frame, Some(&context), 1).map(|(decision, _)| decision)
    }

    fn test_run_with(
        &mut self,
        interface: usize,
        frame: &[u8],
        ctx_in: Option<&[u8]>,
        repeat: u32,
    ) -> Result<(Decision, Duration), SteerError> {
        let port = self.port_mut(interface)?;
        let name = port.interface.name.clone();
        let options = TestRunOptions { data_in: Some(frame), ctx_in, repeat, ..TestRunOptions::default() };
        let run = port.program.xdp()?.test_run(options).map_err(|error| SteerError::Load {
            name,
            reason: describe(&error),
            remedy: "a frame of 14 bytes or more, and CAP_BPF",
        })?;
        // enum xdp_action
        let decision = match run.return_value {
            1 => Decision::Drop,
            2 => Decision::Pass,
            4 => Decision::Redirect,
            other => Decision::Other(other),
        };
        Ok((decision, run.duration))
    }

    /// A clean stop: off every interface, and nothing left pinned. (Dropping leaves all in place for the next start.)
    pub fn detach(self) -> Result<Vec<String>, SteerError> {
        let run_dir = self.run_dir.clone();
        drop(self);
        detach_all(&run_dir)
    }

    fn port_mut(&mut self, interface: usize) -> Result<&mut SteeredPort, SteerError> {
        self.ports.get_mut(interface).ok_or(SteerError::NoSuchIndex(interface))
    }

    fn attach(&mut self, index: usize) -> Result<AttachMode, SteerError> {
        let port = self.ports.get_mut(index).ok_or(SteerError::NoSuchIndex(index))?;
        port.mode = None;
        let outcome = port.program.attach(&self.run_dir, &port.interface)?;
        let Interface { name, ifindex, queues, .. } = &port.interface;
        let (mode, adopted, pending) = (outcome.mode.name(), outcome.adopted, outcome.pending);
        info!(interface = name, ifindex, queues, mode, adopted, pending, "steering");
        (port.mode, port.adopted, port.pending) = (Some(outcome.mode), adopted, pending);
        self.warnings.extend(outcome.warning);
        Ok(outcome.mode)
    }

    fn attach_all(&mut self) -> Result<(), SteerError> {
        self.release_others()?;
        for index in 0..self.ports.len() {
            self.attach(index)?;
        }
        self.remove_stale_layouts()
    }

    /// A failed open takes back what it attached itself; what an earlier process left stays.
    fn undo(&self) {
        let fresh = |port: &&SteeredPort| port.mode.is_some() && !port.adopted;
        for port in self.ports.iter().filter(fresh) {
            let path = bpffs::link(&bpffs::pins(&self.run_dir), port.interface.ifindex);
            if let Err(error) = bpffs::remove(&path) {
                warn!("{error}");
            }
        }
        if bpffs::links(&self.run_dir).is_empty()
            && let Err(error) = detach_all(&self.run_dir)
        {
            warn!("{error}");
        }
    }

    fn store_settings(&mut self) -> Result<(), SteerError> {
        let value = layout::settings(!self.dnat4.is_empty(), !self.dnat6.is_empty(), self.marks.seed());
        self.settings.set(0, value, 0).map_err(|error| SteerError::Map { map: "settings", reason: describe(&error) })
    }

    /// Detaches from interfaces the config no longer names.
    fn release_others(&self) -> Result<(), SteerError> {
        for pinned in bpffs::links(&self.run_dir) {
            if !self.ports.iter().any(|port| port.interface.ifindex == pinned.ifindex) {
                info!(ifindex = pinned.ifindex, "no longer configured: detached");
                bpffs::remove(&pinned.path)?;
            }
        }
        Ok(())
    }

    fn take_over_pending(&mut self) -> Result<(), SteerError> {
        if !self.ports.iter().any(|port| port.pending) {
            return Ok(());
        }
        for port in self.ports.iter_mut().filter(|port| port.pending) {
            port.program.take_over(&self.run_dir, &port.interface)?;
            port.pending = false;
        }
        self.remove_stale_layouts()
    }

    /// Removes other layouts' maps once no link of ours runs on them.
    fn remove_stale_layouts(&self) -> Result<(), SteerError> {
        if self.ports.iter().any(|port| port.pending) {
            return Ok(());
        }
        let own = bpffs::pins(&self.run_dir);
        for directory in bpffs::layouts(&self.run_dir).into_iter().filter(|directory| *directory != own) {
            bpffs::remove_layout(&directory)?;
        }
        Ok(())
    }
}

/// The marks of an earlier process if there are any, by the seed they were made with.
fn marks(map: Map, settings: &Array<MapData, Settings>) -> Result<Marks, SteerError> {
    let fault = |map: &'static str, reason: String| SteerError::Map { map, reason };
    let held = settings.get(&0, 0).map_err(|error| fault("settings", describe(&error)))?;
    let seed = match layout::seed(&held) {
        0 => std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0_u8).max(1),
        seed => seed,
    };
    let Map::Array(data) = map else { return Err(fault("established", "is no array".to_owned())) };
    Marks::map(data.fd().as_fd(), seed).map_err(|error| fault("established", format!("cannot be mapped: {error}")))
}

/// Removes the program from every interface it was pinned for, and all pins; works with or without a process, and after a
/// crash. Returns what was removed, for people; empty: nothing was there.
pub fn detach_all(run_dir: &Path) -> Result<Vec<String>, SteerError> {
    let mut removed = Vec::new();
    for pinned in bpffs::links(run_dir) {
        let name = query::by_index(pinned.ifindex).map_or_else(
            |_| format!("an interface that is gone (index {})", pinned.ifindex),
            |state| format!("interface {}", state.name),
        );
        bpffs::remove(&pinned.path)?;
        removed.push(format!("program detached from {name}"));
    }
    for directory in bpffs::layouts(run_dir) {
        let maps = bpffs::remove_layout(&directory)?;
        removed.push(format!("{} maps unpinned from {}", maps.len(), directory.display()));
    }
    if bpffs::unmount_empty(run_dir)? {
        removed.push(format!("bpffs unmounted from {}", bpffs::root(run_dir).display()));
    }
    Ok(removed)
}

/// Mounts the bpffs of the run directory, for whoever starts the dataplane in a mount namespace of its own
/// (`ip netns exec`, systemd sandboxing): only a mount made outside lets the program outlive the process.
/// Returns a warning where this is not outside either.
pub fn prepare(run_dir: &Path) -> Result<Option<String>, SteerError> {
    bpffs::prepare(run_dir)
}

fn check_capabilities() -> Result<(), SteerError> {
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    // CAP_SYS_ADMIN includes what was split from it (capabilities(7)).
    let split = |capability| has(capability) || has(Capability::CAP_SYS_ADMIN);
    let needed = [
        (split(Capability::CAP_BPF), "CAP_BPF"),
        // Without it the verifier refuses to compare a pointer with null.
        (split(Capability::CAP_PERFMON), "CAP_PERFMON"),
        (has(Capability::CAP_NET_ADMIN), "CAP_NET_ADMIN"),
    ];
    let missing: Vec<&str> = needed.into_iter().filter_map(|(present, name)| (!present).then_some(name)).collect();
    if missing.is_empty() { Ok(()) } else { Err(SteerError::Capability { missing: missing.join(" ") }) }
}

fn resolve(interfaces: &[Interface]) -> Result<Vec<Interface>, SteerError> {
    if interfaces.is_empty() {
        return Err(SteerError::NoInterface);
    }
    let mut resolved = interfaces.to_vec();
    for interface in &mut resolved {
        interface.ifindex = query::by_name(&interface.name)?.ifindex;
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loader_can_move_to_the_housekeeping_thread() {
        fn assert_send<T: Send>() {}
        assert_send::<Steer>();
    }
}
