//! Where packets end. Every packet ends in exactly one [`Verdict`], and the ledger balances:
//! rx + generated + handoff_in = tx + handoff_out + kernel + drops + held.

/// An interface the box serves, by its place in the config's list of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortId(pub u8);

/// A worker thread, counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct WorkerId(pub u16);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Tx(PortId),
    /// Another worker owns the flow.
    Handoff(WorkerId),
    /// Another worker knows the client of a flow to be opened here: to it and back, with its advice.
    Ask(WorkerId),
    /// Kept by the pipeline in this slot until its datagram's first fragment comes.
    Held(u16),
    /// Not ours after all: back to the kernel by the TAP.
    Kernel,
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($variant:ident = $name:literal: $help:literal,)*) => {
        /// Why a packet was dropped. Closed, and the index of a counter array.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum DropReason { $(#[doc = $help] $variant,)* }

        impl DropReason {
            pub const ALL: &[DropReason] = &[$(DropReason::$variant,)*];
            pub const COUNT: usize = Self::ALL.len();

            /// The name in metrics and `penstock explain`.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for the operator.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

drop_reasons! {
    TruncatedEthernet = "truncated_ethernet": "the frame ends before its Ethernet or VLAN header does",
    TooManyTags = "too_many_tags": "more than two VLAN tags",
    TruncatedIp = "truncated_ip": "the frame ends before its IP header does",
    BadIpVersion = "bad_ip_version": "the IP version does not match the EtherType",
    BadHeaderLength = "bad_header_length": "the IPv4 header length is below 20 or beyond the packet",
    BadTotalLength = "bad_total_length": "the IP total length is beyond the frame or shorter than the headers",
    BadExtensionHeaders = "bad_extension_headers": "IPv6 extension headers are broken or more than the box reads",
    HeadersSplit = "headers_split": "a packet in several frames whose headers, or those it quotes, are not all in the first",
    TruncatedTransport = "truncated_transport": "the packet ends before its TCP, UDP or ICMP header does",
    BadTcpOffset = "bad_tcp_offset": "the TCP data offset is below 5 or beyond the packet",
    BadUdpLength = "bad_udp_length": "the UDP length is below 8 or beyond the packet",
    BadSctpChunk = "bad_sctp_chunk": "an SCTP chunk beyond the packet, or an INIT that is not alone, or a verification tag of 0 without INIT",
    BadTcpFlags = "bad_tcp_flags": "the TCP flags contradict each other (SYN with FIN or RST, or none at all)",
    PortZero = "port_zero": "port 0 as source or destination",
    Martian = "martian": "a source address no packet on a wire may have (loopback, multicast, unspecified, broadcast)",
    SpoofedSource = "spoofed_source": "the packet claims one of the box's VIPs or SNAT addresses as its source",
    FragmentMalformed = "fragment_malformed": "a fragment that is empty, not a multiple of 8 bytes, or ends beyond 65,535",
    FragmentTiny = "fragment_tiny": "a first fragment without its whole TCP, UDP or SCTP header, or a later one that would overwrite it",
    FragmentOverlap = "fragment_overlap": "fragments that overlap, with the rest of their datagram (RFC 5722)",
    FragmentCopy = "fragment_copy": "a fragment seen before",
    FragmentOrphan = "fragment_orphan": "a fragment whose first one was lost on the way to the flow's worker",
    FragmentTimeout = "fragment_timeout": "a fragment held in vain for the first one of its datagram",
    FragmentLimit = "fragment_limit": "more datagrams under way, fragments of one, or frames waiting than the box follows",
    UnsupportedProtocol = "unsupported_protocol": "a protocol the box does not balance, sent to a VIP or SNAT address",
    NoService = "no_service": "the VIP has no service on this port and protocol; or the box's own kernel sent it to an address that is no VIP any more",
    SourceDenied = "source_denied": "the client is outside the service's source_ranges",
    Denied = "denied": "the client is on the box's deny list (box.deny, box.deny_file)",
    ServiceConnections = "service_connections": "the service has as many flows as its limits.connections; answered as no_backend says",
    ServiceRate = "service_rate": "the service opened as many flows in the last second as its limits.new_per_second",
    SourceConnections = "source_connections": "the client's prefix has as many flows as the service's limits.per_source.connections; answered as no_backend says",
    SourceRate = "source_rate": "the client's prefix opened as many flows in the last second as the service's limits.per_source.new_per_second",
    NoBackend = "no_backend": "the service has no backend that takes new flows; refused, unless no_backend = \"drop\"",
    OutOfState = "out_of_state": "a TCP or SCTP packet that belongs to no flow and does not open one",
    NoFlow = "no_flow": "a packet to a SNAT address that belongs to no flow",
    FlowRevoked = "flow_revoked": "the flow's service or backend is gone or down",
    FlowExpired = "flow_expired": "a packet of a connection that was idle too long and was reset (on_idle = \"reset\"); answered with a RST",
    FlowTableFull = "flow_table_full": "the worker's flow table is full, and no closed flow was found to make room (limits.flows_*)",
    SnatExhausted = "snat_exhausted": "every SNAT port towards the backend is an established flow's or resting; add `[[snat]]` addresses",
    TupleTaken = "tuple_taken": "mode dnat: the client's port is in use towards the same backend by way of another VIP",
    NoSnatAddress = "no_snat_address": "no SNAT address of the backend's family; add one under `[[snat]]`",
    TtlExceeded = "ttl_exceeded": "TTL or hop limit ran out; time exceeded was sent if the rate limit allowed",
    NoNeighbor = "no_neighbor": "the next hop's link-layer address is not known yet",
    NotAdjacent = "not_adjacent": "mode dsr: the node is behind a router, and only its own link leads to it",
    Hairpin = "hairpin": "a node is the client of a service of mode dnat or dsr on its own link: no reply would come back by the box; use mode nat",
    ReplyProbe = "reply_probe": "what a node answered to the box's check that replies of mode dnat come back through it",
    TooBig = "too_big": "the packet is larger than the egress port's MTU",
    IcmpUnmatched = "icmp_unmatched": "an ICMP error about no flow of ours, or of a kind not translated",
    RateLimited = "rate_limited": "a generated packet held back by its rate limit",
    HandoffFull = "handoff_full": "the hand-off ring to the flow's worker is full, or half full and the packet only asks where its client sticks",
    TxFull = "tx_full": "the transmit ring stayed full",
    KernelPathFull = "kernel_path_full": "the TAP to the kernel is missing or its queue is full",
    NeighborIgnored = "neighbor_ignored": "an ARP or neighbour-discovery packet that is malformed or needs no answer",
    NoFrame = "no_frame": "no free frame to build or copy the packet in",
}
