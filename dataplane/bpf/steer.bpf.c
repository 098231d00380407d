// SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0
/* Which packets come to Penstock at all. Runs for every packet the interface receives, before the
 * kernel has looked at it; whatever is not provably ours passes on untouched.
 *
 * Ours: packets to a VIP or a SNAT address, replies of dnat backends (with the ICMP errors about
 * them), ARP and neighbour discovery for addresses we announce. They go to the AF_XDP socket of their
 * receive queue. Where no socket is there, because no process runs, they are dropped: the kernel would
 * answer with RST or port unreachable, and clients would lose connections that the next process
 * still has on record.
 *
 * Cost: one hash lookup by destination, a second by source where dnat backends exist; ARP and ICMP
 * errors may take one more. VLAN tags are matched where they are in the packet; a NIC that strips
 * them (`ethtool -K IF rxvlan off` stops it) hides them from any XDP program.
 */
#include "headers.h"
#include "maps.h"

INLINE int pass(struct counters *count)
{
	count->passed++;
	return XDP_PASS;
}

INLINE int malformed(struct counters *count)
{
	count->malformed++;
	return XDP_PASS;
}

INLINE int redirect(struct xdp_md *ctx, struct counters *count, enum class class)
{
	/* The flags are the verdict for an empty slot. */
	int verdict = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_DROP);

	if (verdict == XDP_REDIRECT)
		count->redirected[class]++;
	else
		count->no_socket[class]++;
	return verdict;
}

INLINE int redirect_local(struct xdp_md *ctx, struct counters *count, struct local *local)
{
	return redirect(ctx, count, local->flags & LOCAL_VIP ? CLASS_VIP : CLASS_SNAT);
}

INLINE bool announced(struct local *local)
{
	return local && local->flags & LOCAL_ANNOUNCE;
}

INLINE bool in_range(struct local *local, __be16 port)
{
	return ntohs(port) >= local->port_first && ntohs(port) <= local->port_last;
}

/* Requests for our addresses, and whatever claims to be one of them: without the latter a probe
 * (RFC 5227 section 2.1.1) could never hear that the address is taken. */
INLINE int steer_arp(struct xdp_md *ctx, struct counters *count, struct cursor c)
{
	struct arp_header *arp = take(&c, sizeof(*arp));
	__be32 address;

	if (!arp)
		return malformed(count);
	if (arp->hardware != htons(1) || arp->protocol != htons(ETH_P_IP) || arp->hardware_length != 6 ||
	    arp->protocol_length != 4)
		return pass(count);
	__builtin_memcpy(&address, arp->target, sizeof(address));
	if (announced(bpf_map_lookup_elem(&local4, &address)))
		return redirect(ctx, count, CLASS_NEIGHBOR);
	__builtin_memcpy(&address, arp->sender, sizeof(address));
	if (announced(bpf_map_lookup_elem(&local4, &address)))
		return redirect(ctx, count, CLASS_NEIGHBOR);
	return pass(count);
}

/* The flow an ICMP error is about, as quoted in it. */
struct quoted4 {
	__be32 source, destination;
	struct ports ports;
	__u8 protocol;
};

struct quoted6 {
	struct in6_addr *source, *destination;
	struct ports ports;
	__u8 protocol;
};

/* Destination unreachable, time exceeded, parameter problem. Redirects concern the kernel's routes. */
INLINE bool quoted4(struct cursor *c, struct quoted4 *out)
{
	struct icmp_header *icmp = take(c, sizeof(*icmp));
	struct iphdr *ip = take(c, sizeof(*ip));
	struct upper upper;

	if (!icmp || !ip)
		return false;
	if (icmp->type != 3 && icmp->type != 11 && icmp->type != 12)
		return false;
	if (ip->version != 4 || !upper4(c, ip, &upper) || upper.fragment == LATER)
		return false;
	out->source = ip->saddr;
	out->destination = ip->daddr;
	out->protocol = upper.protocol;
	return take_ports(c, upper.protocol, &out->ports);
}

/* RFC 4443 section 2.1: types below 128 are errors. */
INLINE bool quoted6(struct cursor *c, struct quoted6 *out)
{
	struct icmp_header *icmp = take(c, sizeof(*icmp));
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	struct upper upper;

	if (!icmp || !ip)
		return false;
	if (icmp->type >= 128)
		return false;
	if (ip->version != 6 || !upper6(c, ip->nexthdr, QUOTED_EXTENSION_HEADERS, &upper) || upper.fragment == LATER)
		return false;
	out->source = &ip->saddr;
	out->destination = &ip->daddr;
	out->protocol = upper.protocol;
	return take_ports(c, upper.protocol, &out->ports);
}

/* To an address the kernel has as well: only what is provably about our ports. */
INLINE bool shared4(struct cursor c, struct local *local, struct iphdr *ip)
{
	struct quoted4 quoted;
	struct upper upper;
	struct ports ports;

	if (!upper4(&c, ip, &upper) || upper.fragment == LATER)
		return false;
	if (upper.protocol == PROTO_ICMP)
		return quoted4(&c, &quoted) && quoted.source == ip->daddr && in_range(local, quoted.ports.source);
	return take_ports(&c, upper.protocol, &ports) && in_range(local, ports.destination);
}

INLINE bool equal6(const struct in6_addr *a, const struct in6_addr *b)
{
	return a->in6_u.u6_addr32[0] == b->in6_u.u6_addr32[0] && a->in6_u.u6_addr32[1] == b->in6_u.u6_addr32[1] &&
	       a->in6_u.u6_addr32[2] == b->in6_u.u6_addr32[2] && a->in6_u.u6_addr32[3] == b->in6_u.u6_addr32[3];
}

INLINE bool shared6(struct cursor c, struct local *local, struct ipv6hdr *ip)
{
	struct quoted6 quoted;
	struct upper upper;
	struct ports ports;

	if (!upper6(&c, ip->nexthdr, EXTENSION_HEADERS, &upper) || upper.fragment == LATER)
		return false;
	if (upper.protocol == PROTO_ICMPV6)
		return quoted6(&c, &quoted) && equal6(quoted.source, &ip->daddr) &&
		       in_range(local, quoted.ports.source);
	return take_ports(&c, upper.protocol, &ports) && in_range(local, ports.destination);
}

/* A dnat backend answering a client, or an ICMP error about what a client sent to one. All fragments
 * of a backend's address come, the first ones too: reassembly needs them together. */
INLINE bool from_backend4(struct cursor c, struct iphdr *ip)
{
	struct dnat4 key = { .address = ip->saddr };
	struct quoted4 quoted;
	struct upper upper;
	struct ports ports;

	if (!upper4(&c, ip, &upper))
		return false;
	if (upper.fragment == WHOLE) {
		if (upper.protocol == PROTO_ICMP) {
			if (!quoted4(&c, &quoted))
				return false;
			key.address = quoted.destination;
			key.port = quoted.ports.destination;
			key.protocol = quoted.protocol;
		} else {
			if (!take_ports(&c, upper.protocol, &ports))
				return false;
			key.port = ports.source;
			key.protocol = upper.protocol;
		}
	}
	return bpf_map_lookup_elem(&dnat4, &key);
}

INLINE bool from_backend6(struct cursor c, struct ipv6hdr *ip)
{
	struct dnat6 key = { .address = ip->saddr };
	struct quoted6 quoted;
	struct upper upper;
	struct ports ports;

	if (!upper6(&c, ip->nexthdr, EXTENSION_HEADERS, &upper))
		return false;
	if (upper.fragment == WHOLE) {
		if (upper.protocol == PROTO_ICMPV6) {
			if (!quoted6(&c, &quoted))
				return false;
			key.address = *quoted.destination;
			key.port = quoted.ports.destination;
			key.protocol = quoted.protocol;
		} else {
			if (!take_ports(&c, upper.protocol, &ports))
				return false;
			key.port = ports.source;
			key.protocol = upper.protocol;
		}
	}
	return bpf_map_lookup_elem(&dnat6, &key);
}

INLINE int steer_ipv4(struct xdp_md *ctx, struct counters *count, struct settings *set, struct cursor c)
{
	struct iphdr *ip = take(&c, sizeof(*ip));
	struct local *local;

	if (!ip || ip->version != 4)
		return malformed(count);
	local = bpf_map_lookup_elem(&local4, &ip->daddr);
	if (local) {
		if (local->flags & LOCAL_WHOLE)
			return redirect_local(ctx, count, local);
		if (shared4(c, local, ip))
			return redirect(ctx, count, CLASS_SNAT_SHARED);
		return pass(count);
	}
	if (set->dnat4 && from_backend4(c, ip))
		return redirect(ctx, count, CLASS_DNAT);
	return pass(count);
}

/* Solicitations and advertisements (the answer to our own probe, RFC 4862 section 5.4.4, goes to all
 * nodes) about addresses we announce. Unicast ones for a VIP are packets to the VIP like others. */
INLINE int steer_multicast6(struct xdp_md *ctx, struct counters *count, struct cursor c, __u8 next)
{
	struct icmp_header *icmp;
	struct in6_addr *target;
	struct upper upper;

	if (!upper6(&c, next, EXTENSION_HEADERS, &upper))
		return malformed(count);
	if (upper.protocol != PROTO_ICMPV6 || upper.fragment != WHOLE)
		return pass(count);
	icmp = take(&c, sizeof(*icmp));
	if (!icmp)
		return malformed(count);
	if (icmp->type != 135 && icmp->type != 136)
		return pass(count);
	target = take(&c, sizeof(*target));
	if (!target)
		return malformed(count);
	if (announced(bpf_map_lookup_elem(&local6, target)))
		return redirect(ctx, count, CLASS_NEIGHBOR);
	return pass(count);
}

INLINE int steer_ipv6(struct xdp_md *ctx, struct counters *count, struct settings *set, struct cursor c)
{
	struct ipv6hdr *ip = take(&c, sizeof(*ip));
	struct local *local;

	if (!ip || ip->version != 6)
		return malformed(count);
	if (ip->daddr.in6_u.u6_addr8[0] == 0xff)
		return steer_multicast6(ctx, count, c, ip->nexthdr);
	local = bpf_map_lookup_elem(&local6, &ip->daddr);
	if (local) {
		if (local->flags & LOCAL_WHOLE)
			return redirect_local(ctx, count, local);
		if (shared6(c, local, ip))
			return redirect(ctx, count, CLASS_SNAT_SHARED);
		return pass(count);
	}
	if (set->dnat6 && from_backend6(c, ip))
		return redirect(ctx, count, CLASS_DNAT);
	return pass(count);
}

INLINE bool is_vlan(__be16 protocol)
{
	return protocol == htons(ETH_P_8021Q) || protocol == htons(ETH_P_8021AD);
}

INLINE int steer_packet(struct xdp_md *ctx)
{
	struct cursor c = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };
	struct ethhdr *ethernet = take(&c, sizeof(*ethernet));
	const __u32 zero = 0;
	struct counters *count = bpf_map_lookup_elem(&counters, &zero);
	struct settings *set = bpf_map_lookup_elem(&settings, &zero);
	struct vlan_header *vlan;
	__be16 protocol;

	if (!count || !set)
		return XDP_PASS;
	if (ctx->rx_queue_index >= queues) {
		count->unserved++;
		return XDP_PASS;
	}
	if (!ethernet)
		return malformed(count);
	protocol = ethernet->h_proto;
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		if (!is_vlan(protocol))
			break;
		vlan = take(&c, sizeof(*vlan));
		if (!vlan)
			return malformed(count);
		protocol = vlan->protocol;
	}
	if (protocol == htons(ETH_P_IP))
		return steer_ipv4(ctx, count, set, c);
	if (protocol == htons(ETH_P_IPV6))
		return steer_ipv6(ctx, count, set, c);
	if (protocol == htons(ETH_P_ARP))
		return steer_arp(ctx, count, c);
	return pass(count);
}

SEC("xdp")
int penstock_steer(struct xdp_md *ctx)
{
	return steer_packet(ctx);
}

/* The same for packets in several buffers (jumbo frames); the headers are all in the first one. */
SEC("xdp.frags")
int penstock_frags(struct xdp_md *ctx)
{
	return steer_packet(ctx);
}

char _license[] SEC("license") = "Dual MIT/GPL";
