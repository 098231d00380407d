//! One interface's instance of the XDP program: loading, attaching, adopting what an earlier process left.

use std::path::Path;
use std::time::{Duration, Instant};

use aya::maps::{Map, MapData, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{Xdp, XdpLink, XdpLinkId, XdpMode as AyaMode};
use aya::programs::{ProgramError, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use penstock_configs::file::XdpMode;

use super::bpffs::{self, PinnedAt};
use super::error::{describe, errno};
use super::query::{self, Attached, LinkState};
use super::{AttachMode, Interface, SteerError, layout};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Shared by the programs of all interfaces, pinned by these names.
pub(super) const SHARED_MAPS: [&str; 8] =
    ["local4", "local6", "dnat4", "dnat6", "settings", "counters", "buckets", "established"];

pub(super) struct Program {
    ebpf: Ebpf,
    name: &'static str,
    pub(super) sockets: XskMap<MapData>,
}

/// Times a program is loaded again whose check a signal ended.
const LOAD_AGAIN: u32 = 5;
/// How long a link whose pin was removed may stay.
const LETTING_GO: Duration = Duration::from_secs(1);

/// How a program came onto its interface.
pub(super) struct Outcome {
    pub(super) mode: AttachMode,
    /// An earlier process's link was taken over, without a gap.
    pub(super) adopted: bool,
    /// The link still runs a program of another layout; [`Program::take_over`] it once the new maps are filled.
    pub(super) pending: bool,
    pub(super) warning: Option<String>,
}

impl Program {
    pub(super) fn load(pins: &Path, interface: &Interface, frags: bool) -> Result<Self, SteerError> {
        let refused = |error: &(dyn std::error::Error + 'static)| SteerError::Load {
            name: interface.name.clone(),
            reason: describe(error),
            remedy: load_remedy(errno(error)),
        };
        let queues = u32::from(interface.queues);
        let mut loader = EbpfLoader::new();
        loader.override_global("queues", &queues, true).map_max_entries("sockets", queues.max(1));
        for (map, limit) in [
            ("local4", layout::ADDRESSES),
            ("local6", layout::ADDRESSES),
            ("dnat4", layout::BACKENDS),
            ("dnat6", layout::BACKENDS),
        ] {
            loader.map_max_entries(map, u32::try_from(2 * limit).unwrap_or(u32::MAX));
        }
        loader.map_max_entries("buckets", u32::try_from(layout::BUCKETS).unwrap_or(u32::MAX));
        for map in SHARED_MAPS {
            loader.map_pin_path(map, pins.join(map));
        }
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused(&error))?;
        let name = if frags { "penstock_frags" } else { "penstock_steer" };
        // A signal for this thread ends the kernel's check of the program: once more.
        let mut again = LOAD_AGAIN;
        while let Err(error) = xdp(&mut ebpf, name)?.load() {
            if errno(&error) != Some(libc::EAGAIN) || again == 0 {
                return Err(refused(&error));
            }
            again -= 1;
        }
        let sockets = XskMap::try_from(take_map(&mut ebpf, "sockets")?).map_err(|error| refused(&error))?;
        Ok(Self { ebpf, name, sockets })
    }

    /// One of [`SHARED_MAPS`]; each can be taken once.
    pub(super) fn take_map(&mut self, name: &'static str) -> Result<Map, SteerError> {
        take_map(&mut self.ebpf, name)
    }

    pub(super) fn xdp(&mut self) -> Result<&mut Xdp, SteerError> {
        xdp(&mut self.ebpf, self.name)
    }

    /// Onto the interface, taking over the link an earlier process of ours pinned, if any.
    pub(super) fn attach(&mut self, run_dir: &Path, interface: &Interface) -> Result<Outcome, SteerError> {
        let pins = bpffs::pins(run_dir);
        let state = query::by_index(interface.ifindex)?;
        let mut unpinned = false;
        for pinned in bpffs::links(run_dir).into_iter().filter(|pinned| pinned.ifindex == interface.ifindex) {
            let Some(mode) = running(&pinned, &state).filter(|mode| fits(interface.mode, *mode)) else {
                // Its interface is gone (the index was given anew), or the config wants another mode.
                bpffs::remove(&pinned.path)?;
                unpinned = true;
                continue;
            };
            let pending = pinned.path.parent() != Some(&pins);
            if !pending {
                self.replace(&pinned, interface)?;
            }
            let warning = generic_warning(interface, mode, "an earlier start fell back to it");
            return Ok(Outcome { mode, adopted: true, pending, warning });
        }
        // Asked again: removing a pin, here or by another process just before, may have detached our own, or will in a moment:
        // the kernel lets go of a link in a work queue.
        let since = Instant::now();
        while let Some(foreign) = query::by_index(interface.ifindex)?.attached {
            if !unpinned && !is_ours(foreign) || since.elapsed() > LETTING_GO {
                return Err(foreign_error(&interface.name, foreign));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let (mode, warning) = self.attach_new(&pins, interface)?;
        Ok(Outcome { mode, adopted: false, pending: false, warning })
    }

    fn attach_new(&mut self, pins: &Path, interface: &Interface) -> Result<(AttachMode, Option<String>), SteerError> {
        if interface.mode != XdpMode::Generic {
            match self.attach_in(pins, interface, AttachMode::Native) {
                Err(SteerError::Attach { reason, .. }) if interface.mode == XdpMode::Auto => {
                    self.attach_in(pins, interface, AttachMode::Generic)?;
                    return Ok((AttachMode::Generic, generic_warning(interface, AttachMode::Generic, &reason)));
                }
                result => return result.map(|()| (AttachMode::Native, None)),
            }
        }
        self.attach_in(pins, interface, AttachMode::Generic)?;
        Ok((AttachMode::Generic, None))
    }

    pub(super) fn try_on(&mut self, interface: &Interface) -> Result<(), SteerError> {
        let (mode, flags) = match interface.mode {
            XdpMode::Native => (AttachMode::Native, AyaMode::Driver),
            // Which is what `auto` falls back to.
            XdpMode::Auto | XdpMode::Generic => (AttachMode::Generic, AyaMode::Skb),
        };
        let program = self.xdp()?;
        let tried = program.attach_to_if_index(interface.ifindex, flags).and_then(|id| program.detach(id));
        tried.map_err(|error| attach_error(&error, interface, mode))
    }

    fn attach_in(&mut self, pins: &Path, interface: &Interface, mode: AttachMode) -> Result<(), SteerError> {
        let flags = match mode {
            AttachMode::Native => AyaMode::Driver,
            AttachMode::Generic => AyaMode::Skb,
        };
        let program = self.xdp()?;
        let id = match program.attach_to_if_index(interface.ifindex, flags) {
            Ok(id) => id,
            Err(error) => return Err(attach_error(&error, interface, mode)),
        };
        // Without links (before Linux 5.9) nothing could outlive the process; taken back by the drop.
        let link = take_fd_link(program, id).ok_or_else(|| SteerError::Attach {
            name: interface.name.clone(),
            mode: mode.name(),
            reason: "the kernel has no XDP links".into(),
            remedy: "Linux 5.9 or newer",
        })?;
        let path = bpffs::link(pins, interface.ifindex);
        link.pin(&path).map(drop).map_err(|error| SteerError::Pin {
            action: "cannot pin the link at",
            path,
            source: std::io::Error::other(describe(&error)),
        })
    }

    /// Puts this program on a pinned link in place of the one it runs: no packet sees none, or both.
    fn replace(&mut self, pinned: &PinnedAt, interface: &Interface) -> Result<(), SteerError> {
        let refused = |error: &(dyn std::error::Error + 'static)| SteerError::Pin {
            action: "cannot take over the pinned link",
            path: pinned.path.clone(),
            source: std::io::Error::other(format!("{} ({})", describe(error), interface.name)),
        };
        let link = PinnedLink::from_pin(&pinned.path).map_err(|error| refused(&error))?;
        let link = XdpLink::try_from(FdLink::from(link)).map_err(|error| refused(&error))?;
        let program = self.xdp()?;
        let id = program.attach_to_link(link).map_err(|error| refused(&error))?;
        // Only the pin may hold the link, so that removing the pin detaches, whoever does it.
        drop(take_fd_link(program, id));
        Ok(())
    }

    /// Replaces a program of another layout, and moves the link's pin beside this layout's maps.
    pub(super) fn take_over(&mut self, run_dir: &Path, interface: &Interface) -> Result<(), SteerError> {
        let pins = bpffs::pins(run_dir);
        for pinned in bpffs::links(run_dir) {
            if pinned.ifindex != interface.ifindex || pinned.path.parent() == Some(&pins) {
                continue;
            }
            self.replace(&pinned, interface)?;
            let target = bpffs::link(&pins, interface.ifindex);
            std::fs::rename(&pinned.path, &target).map_err(|source| SteerError::Pin {
                action: "cannot move the link's pin to",
                path: target,
                source,
            })?;
        }
        Ok(())
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, SteerError> {
    ebpf.program_mut(name).and_then(|program| program.try_into().ok()).ok_or(SteerError::Object { what: name })
}

fn take_map(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, SteerError> {
    ebpf.take_map(name).ok_or(SteerError::Object { what: name })
}

fn take_fd_link(program: &mut Xdp, id: XdpLinkId) -> Option<FdLink> {
    program.take_link(id).ok().and_then(|link| FdLink::try_from(link).ok())
}

/// The mode a pinned link runs in, if it is what runs on the interface.
fn running(pinned: &PinnedAt, state: &LinkState) -> Option<AttachMode> {
    let link = FdLink::from(PinnedLink::from_pin(&pinned.path).ok()?);
    let attached = state.attached?;
    if link.info().ok()?.program_id() != attached.program {
        return None;
    }
    attached.mode
}

fn fits(wanted: XdpMode, running: AttachMode) -> bool {
    match wanted {
        XdpMode::Auto => true,
        XdpMode::Native => running == AttachMode::Native,
        XdpMode::Generic => running == AttachMode::Generic,
    }
}

fn generic_warning(interface: &Interface, mode: AttachMode, reason: &str) -> Option<String> {
    (mode == AttachMode::Generic && interface.mode == XdpMode::Auto).then(|| {
        format!(
            "interface `{}` runs the XDP program in generic mode ({reason}): the kernel builds a socket buffer for every packet \
             first and copies it, which costs about half the packet rate and rules out zero-copy; a driver with native XDP avoids it",
            interface.name
        )
    })
}

fn attach_error(error: &ProgramError, interface: &Interface, mode: AttachMode) -> SteerError {
    let code = errno(error);
    // EBUSY: a link holds it. EEXIST: a program in the other mode, attached meanwhile.
    if matches!(code, Some(libc::EBUSY | libc::EEXIST))
        && let Ok(LinkState { attached: Some(foreign), .. }) = query::by_index(interface.ifindex)
    {
        return foreign_error(&interface.name, foreign);
    }
    if code == Some(libc::ENODEV) {
        return SteerError::MissingInterface { name: interface.name.clone() };
    }
    let remedy = match code {
        Some(libc::EPERM | libc::EACCES) => "run as root or with CAP_NET_ADMIN and CAP_BPF",
        Some(libc::EOPNOTSUPP) => "xdp = \"auto\" or \"generic\" in [[port]]: the driver has no native XDP",
        Some(libc::ENOSPC) => {
            "fewer queues on the peer or more here: a veth needs as many rx queues as its peer has tx queues"
        }
        Some(libc::ERANGE | libc::EINVAL) => {
            "lower the MTU (about 3500 for one buffer per packet), switch LRO off (`ethtool -K IF lro off`); `dmesg` may tell more"
        }
        _ => "xdp = \"auto\" or \"generic\" in [[port]]; `dmesg` may tell more",
    };
    SteerError::Attach { name: interface.name.clone(), mode: mode.name(), reason: describe(error), remedy }
}

fn name_of(attached: Attached) -> Option<String> {
    let program = loaded_programs().flatten().find(|program| program.id() == attached.program)?;
    program.name_as_str().map(str::to_owned)
}

fn is_ours(attached: Attached) -> bool {
    name_of(attached).is_some_and(|name| name.starts_with("penstock_"))
}

fn foreign_error(name: &str, foreign: Attached) -> SteerError {
    let unpinned = if is_ours(foreign) { ", one of Penstock's with no pin here" } else { "" };
    let program = match name_of(foreign) {
        Some(name) => format!("`{name}` (id {}{unpinned})", foreign.program),
        None => format!("with id {}", foreign.program),
    };
    let mode = foreign.mode.map_or("another", AttachMode::name).to_owned();
    SteerError::Foreign { name: name.to_owned(), program, mode }
}

fn load_remedy(code: Option<i32>) -> &'static str {
    match code {
        Some(libc::EPERM | libc::EACCES) => {
            "CAP_BPF and CAP_NET_ADMIN; before Linux 5.11 also LimitMEMLOCK=infinity; kernel lockdown and LSMs can forbid bpf() too"
        }
        Some(libc::ENOMEM) => "free memory, or raise the memory limit of the unit or container (maps count against it)",
        Some(libc::ENOSYS | libc::EINVAL) => "Linux 5.9 or newer with CONFIG_BPF_SYSCALL and CONFIG_XDP_SOCKETS",
        _ => "`penstock detach` clears pins of another build; if it goes on, report it with this message",
    }
}
