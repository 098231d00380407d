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
 * VIPs may be policed: see police.h.
 *
 * Cost: one hash lookup by destination, a second by source where dnat backends exist; ARP and ICMP
 * errors may take one more. VLAN tags are matched where they are in the packet; a NIC that strips
 * them (`ethtool -K IF rxvlan off` stops it) hides them from any XDP program.
 */
#include "headers.h"
#include "maps.h"
#include "police.h"

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

INLINE int redirect_policed(struct xdp_md *ctx, struct counters *count, struct local *local, bool is_established)
{
	if (is_established || within_quota(local))
		return redirect_local(ctx, count, local);
	count->policed++;
	return XDP_DROP;
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

INLINE bool equal6(const struct in6_addr *a, const struct in6_addr *b)
{
	return a->in6_u.u6_addr32[0] == b->in6_u.u6_addr32[0] && a->in6_u.u6_addr32[1] == b->in6_u.u6_addr32[1] &&
	       a->in6_u.u6_addr32[2] == b->in6_u.u6_addr32[2] && a->in6_u.u6_addr32[3] == b->in6_u.u6_addr32[3];
}

INLINE bool is_backend4(__be32 address, __be16 port, __u8 protocol)
{
	struct dnat4 key = { .address = address, .port = port, .protocol = protocol };

	return bpf_map_lookup_elem(&dnat4, &key);
}

INLINE bool is_backend6(struct in6_addr *address, __be16 port, __u8 protocol)
{
	struct dnat6 key = { .address = *address, .port = port, .protocol = protocol };

	return bpf_map_lookup_elem(&dnat6, &key);
}

/* Two questions about a packet whose destination address does not decide. To an address shared with
 * the kernel (`local`): is it about one of our ports? To anybody's: does a dnat backend answer a
 * client, or is it an ICMP error about what a client sent to one? Asked in one place, because the
 * verifier follows every chain of headers anew wherever one is read.
 *
 * All fragments of a backend's address come, the first ones too: reassembly needs them together. */
INLINE bool ours4(struct cursor c, struct iphdr *ip, struct local *local)
{
	struct quoted4 quoted;
	struct upper upper;
	struct ports ports;

	if (!upper4(&c, ip, &upper))
		return false;
	if (!local && upper.fragment != WHOLE)
		return is_backend4(ip->saddr, 0, 0);
	if (upper.fragment == LATER)
		return false;
	if (upper.protocol == PROTO_ICMP) {
		if (!quoted4(&c, &quoted))
			return false;
		if (local)
			return quoted.source == ip->daddr && in_range(local, quoted.ports.source);
		return is_backend4(quoted.destination, quoted.ports.destination, quoted.protocol);
	}
	if (!take_ports(&c, upper.protocol, &ports))
		return false;
	if (local)
		return in_range(local, ports.destination);
	return is_backend4(ip->saddr, ports.source, upper.protocol);
}

INLINE bool ours6(struct cursor c, struct ipv6hdr *ip, struct upper upper, struct local *local)
{
	struct quoted6 quoted;
	struct ports ports;

	if (!local && upper.fragment != WHOLE)
		return is_backend6(&ip->saddr, 0, 0);
	if (upper.fragment == LATER)
		return false;
	if (upper.protocol == PROTO_ICMPV6) {
		if (!quoted6(&c, &quoted))
			return false;
		if (local)
			return equal6(quoted.source, &ip->daddr) && in_range(local, quoted.ports.source);
		return is_backend6(quoted.destination, quoted.ports.destination, quoted.protocol);
	}
	if (!take_ports(&c, upper.protocol, &ports))
		return false;
	if (local)
		return in_range(local, ports.destination);
	return is_backend6(&ip->saddr, ports.source, upper.protocol);
}

INLINE int steer_ipv4(struct xdp_md *ctx, struct counters *count, struct settings *set, struct cursor c)
{
	struct iphdr *ip = take(&c, sizeof(*ip));
	struct local *local;

	if (!ip || ip->version != 4)
		return malformed(count);
	local = bpf_map_lookup_elem(&local4, &ip->daddr);
	if (local && local->flags & LOCAL_WHOLE) {
		if (!local->quota)
			return redirect_local(ctx, count, local);
		return redirect_policed(ctx, count, local, established4(set, c, ip));
	}
	if (!local && !set->dnat4)
		return pass(count);
	if (ours4(c, ip, local))
		return redirect(ctx, count, local ? CLASS_SNAT_SHARED : CLASS_DNAT);
	return pass(count);
}

/* Solicitations and advertisements (the answer to our own probe, RFC 4862 section 5.4.4, goes to all
 * nodes) about addresses we announce. Unicast ones for a VIP are packets to the VIP like others. */
INLINE int steer_multicast6(struct xdp_md *ctx, struct counters *count, struct cursor c, struct upper upper)
{
	struct icmp_header *icmp;
	struct in6_addr *target;

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
	struct local *local = 0;
	struct upper upper;
	bool multicast;

	if (!ip || ip->version != 6)
		return malformed(count);
	multicast = ip->daddr.in6_u.u6_addr8[0] == 0xff;
	if (!multicast) {
		local = bpf_map_lookup_elem(&local6, &ip->daddr);
		if (local && local->flags & LOCAL_WHOLE && !local->quota)
			return redirect_local(ctx, count, local);
		if (!local && !set->dnat6)
			return pass(count);
	}
	if (!upper6(&c, ip->nexthdr, EXTENSION_HEADERS, &upper)) {
		if (local && local->flags & LOCAL_WHOLE)
			return redirect_policed(ctx, count, local, false);
		return pass(count);
	}
	if (local && local->flags & LOCAL_WHOLE)
		return redirect_policed(ctx, count, local, established6(set, c, ip, upper));
	if (multicast)
		return steer_multicast6(ctx, count, c, upper);
	if (ours6(c, ip, upper, local))
		return redirect(ctx, count, local ? CLASS_SNAT_SHARED : CLASS_DNAT);
	return pass(count);
}

INLINE bool is_vlan(__be16 protocol)
{
	return protocol == htons(ETH_P_8021Q) || protocol == htons(ETH_P_8021AD);
}

#include "split.h"

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

/* The same for packets in several buffers (jumbo frames). Loaded where a port's MTU asks for it. */
SEC("xdp.frags")
int penstock_frags(struct xdp_md *ctx)
{
	__u64 first = ctx->data_end - ctx->data;

	if (first < FIRST_BUFFER && first < bpf_xdp_get_buff_len(ctx))
		return steer_split(ctx);
	return steer_packet(ctx);
}

char _license[] SEC("license") = "Dual MIT/GPL";
