//! Clients that cannot be served are told so: a RST, or ICMP port unreachable, in place of their packet.

use penstock_configs::desired::{NoBackend, OnIdle};

use super::Pipeline;
use super::side::Sided;
use crate::clock::Now;
use crate::icmp;
use crate::io::{Frame, PacketMemory};
use crate::tables::Tabled;
use crate::verdict::{DropReason, PortId, Verdict};
use crate::wire::icmp::PORT_UNREACHABLE;
use crate::wire::{self, Packet, TCP_RST, Transport, Tuple};

impl Pipeline {
    /// The end of a packet that could open no flow: dropped for `reason`, and answered where the service
    /// wants that.
    #[cold]
    #[inline(never)]
    #[allow(clippy::too_many_arguments, reason = "what a verdict needs, and what the answer says")]
    pub(super) fn turn_away<F: Sided + Tabled>(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        tuple: &Tuple<F::Addr>,
        reason: DropReason,
        from: PortId,
        now: Now,
    ) -> Verdict {
        let service = || self.view.tables.service_at::<F>(tuple.dst, tuple.dst_port, tuple.protocol);
        let answered = match reason {
            DropReason::TtlExceeded => return self.time_exceeded(memory, frame, packet, from, now),
            DropReason::NoBackend
            | DropReason::SnatExhausted
            | DropReason::ServiceConnections
            | DropReason::SourceConnections => service().is_some_and(|service| service.no_backend == NoBackend::Reject),
            // Perhaps of a connection that was idle too long: its client is told even if the RST it was sent
            // then is lost, or the record gone since.
            DropReason::OutOfState => service().is_some_and(|service| service.on_idle == OnIdle::Reset),
            // A VIP's port that nobody serves stays silent, like the cloud balancers': a scan of all ports
            // is not worth an answer each.
            _ => false,
        };
        if answered { self.refuse(memory, frame, packet, reason, from, now) } else { Verdict::Drop(reason) }
    }

    /// Drops a packet for `reason`, and makes of it the answer of a host where nobody listens: for TCP a RST
    /// (never about a RST), for UDP ICMP port unreachable, for SCTP an ABORT (RFC 9260 section 5.1: stacks take
    /// it at once, and ICMP unreachable seldom). It leaves by the way the packet came, and is part of the
    /// budget of ICMP errors. For packets not translated yet.
    #[cold]
    #[inline(never)]
    pub(super) fn refuse(
        &mut self,
        memory: &PacketMemory,
        frame: &mut Frame,
        packet: &Packet,
        reason: DropReason,
        from: PortId,
        now: Now,
    ) -> Verdict {
        let answer: fn(&mut [u8], &Packet) -> Option<usize> = match packet.transport {
            Transport::Udp => return self.complain(memory, frame, packet, PORT_UNREACHABLE, reason, from, now),
            Transport::Tcp if packet.tcp_flags & TCP_RST == 0 => wire::reset::answer,
            Transport::Sctp if packet.tcp_flags & wire::sctp::OPENS != 0 => wire::sctp::refuse,
            _ => return Verdict::Drop(reason),
        };
        if !icmp::may_complain(memory.bytes(frame), packet) {
            return Verdict::Drop(reason);
        }
        if !self.icmp.allows(now) {
            self.stats.count_drop(DropReason::RateLimited);
            self.stats.generated.add(1);
            return Verdict::Drop(reason);
        }
        let Some(len) = answer(memory.room_mut(frame), packet) else { return Verdict::Drop(reason) };
        memory.resize(frame, len);
        self.answered = reason;
        self.stats.count_drop(reason);
        self.stats.generated.add(1);
        Verdict::Tx(from)
    }
}
