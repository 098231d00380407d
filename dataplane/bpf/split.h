/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* Packets in several buffers of which the first is short. A program sees the first one only; how much of a packet
 * that is, is the driver's choice: veth and most cards fill it, a card that writes a packet into a ring of pages
 * (mlx5's striding queues) may show none of it. So where it is short, what decides about a plain packet is
 * copied out. What cannot be decided by that is counted, and passes.
 *
 * The socket does not see this split: the kernel copies a packet into frames that are full but for the last,
 * and zero-copy drivers have the card fill them so.
 */
#pragma once

#include "police.h"

/* A first buffer of so many bytes has the headers of all but freaks: two tags, an IP header with options, an ICMP
 * header and the quote of as much again; or IPv6 with as many bytes of extensions. */
#define FIRST_BUFFER 256

struct split4 {
	struct iphdr ip;
	struct ports ports;
};

struct split6 {
	struct ipv6hdr ip;
	struct ports ports;
};

INLINE int undecided(struct counters *count)
{
	count->split++;
	return XDP_PASS;
}

INLINE bool has_ports(__u8 protocol)
{
	return protocol == PROTO_TCP || protocol == PROTO_UDP || protocol == PROTO_SCTP;
}

INLINE int split_ipv4(struct xdp_md *ctx, struct counters *count, struct settings *set, __u32 l3)
{
	struct split4 h = {};
	struct local *local;
	__u16 fragment;
	bool plain;

	if (bpf_xdp_load_bytes(ctx, l3, &h, sizeof(h)) || h.ip.version != 4)
		return undecided(count);
	fragment = ntohs(h.ip.frag_off) & (IPV4_OFFSET_MASK | IPV4_MORE_FRAGMENTS);
	plain = h.ip.ihl == 5 && !fragment && has_ports(h.ip.protocol);
	local = bpf_map_lookup_elem(&local4, &h.ip.daddr);
	if (local && local->flags & LOCAL_WHOLE) {
		if (!local->quota)
			return redirect_local(ctx, count, local);
		plain = plain && marked(finish(mix(set->seed, (__u64)h.ip.saddr << 32 | h.ip.daddr), h.ports,
					       h.ip.protocol));
		return redirect_policed(ctx, count, local, plain);
	}
	if (!local && !set->dnat4)
		return pass(count);
	if (!local && fragment)
		return is_backend4(h.ip.saddr, 0, 0) ? redirect(ctx, count, CLASS_DNAT) : pass(count);
	if (!plain)
		return undecided(count);
	if (local)
		return in_range(local, h.ports.destination) ? redirect(ctx, count, CLASS_SNAT_SHARED) : pass(count);
	if (is_backend4(h.ip.saddr, h.ports.source, h.ip.protocol))
		return redirect(ctx, count, CLASS_DNAT);
	return pass(count);
}

INLINE int split_ipv6(struct xdp_md *ctx, struct counters *count, struct settings *set, __u32 l3)
{
	struct split6 h = {};
	struct local *local;
	bool plain;

	if (bpf_xdp_load_bytes(ctx, l3, &h, sizeof(h)) || h.ip.version != 6)
		return undecided(count);
	/* Neighbour discovery, were it in such a packet: its target is not looked for. */
	if (h.ip.daddr.in6_u.u6_addr8[0] == 0xff)
		return undecided(count);
	plain = has_ports(h.ip.nexthdr);
	local = bpf_map_lookup_elem(&local6, &h.ip.daddr);
	if (local && local->flags & LOCAL_WHOLE) {
		if (!local->quota)
			return redirect_local(ctx, count, local);
		plain = plain &&
			marked(finish(mix6(mix6(set->seed, &h.ip.saddr), &h.ip.daddr), h.ports, h.ip.nexthdr));
		return redirect_policed(ctx, count, local, plain);
	}
	if (!local && !set->dnat6)
		return pass(count);
	if (!plain)
		return undecided(count);
	if (local)
		return in_range(local, h.ports.destination) ? redirect(ctx, count, CLASS_SNAT_SHARED) : pass(count);
	if (is_backend6(&h.ip.saddr, h.ports.source, h.ip.nexthdr))
		return redirect(ctx, count, CLASS_DNAT);
	return pass(count);
}

INLINE int steer_split(struct xdp_md *ctx)
{
	struct counters *count;
	struct settings *set;
	__be16 words[12] = {};
	const __u32 zero = 0;
	__be16 protocol;
	__u32 l3 = 14;

	count = bpf_map_lookup_elem(&counters, &zero);
	set = bpf_map_lookup_elem(&settings, &zero);
	if (!count || !set)
		return XDP_PASS;
	if (ctx->rx_queue_index >= queues) {
		count->unserved++;
		return XDP_PASS;
	}
	/* Addresses, tags and EtherType. */
	if (bpf_xdp_load_bytes(ctx, 0, words, 22))
		return undecided(count);
	protocol = words[6];
	if (is_vlan(protocol)) {
		protocol = words[8];
		l3 += 4;
		if (is_vlan(protocol)) {
			protocol = words[10];
			l3 += 4;
		}
	}
	if (protocol == htons(ETH_P_IP))
		return split_ipv4(ctx, count, set, l3);
	if (protocol == htons(ETH_P_IPV6))
		return split_ipv6(ctx, count, set, l3);
	return protocol == htons(ETH_P_ARP) ? undecided(count) : pass(count);
}
