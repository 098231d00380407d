/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* Policing: to a VIP with a quota, packets of established flows pass, of all others so many a slice. It keeps
 * a flood that is faster than the workers off their queues, at the price of some new flows. */
#pragma once

#include "headers.h"
#include "maps.h"

/* The hash a flow is marked by; src/steer/marks.rs has the same. Words are what stands in the packet, read as the
 * machine reads them. */
INLINE __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ull;
	return hash ^ hash >> 29;
}

INLINE __u64 finish(__u64 hash, struct ports ports, __u8 protocol)
{
	hash = mix(hash, (__u64)ports.source << 32 | (__u64)ports.destination << 16 | protocol);
	hash *= 0xbf58476d1ce4e5b9ull;
	return hash ^ hash >> 32;
}

INLINE __u64 mix6(__u64 hash, const struct in6_addr *address)
{
	const __be32 *words = address->in6_u.u6_addr32;

	hash = mix(hash, (__u64)words[0] << 32 | words[1]);
	return mix(hash, (__u64)words[2] << 32 | words[3]);
}

INLINE bool marked(__u64 hash)
{
	__u64 bit = 1ull << (hash & 63), *word;
	__u32 at = hash >> 6 & (GENERATION_WORDS - 1);

	word = bpf_map_lookup_elem(&established, &at);
	if (word && *word & bit)
		return true;
	at += GENERATION_WORDS;
	word = bpf_map_lookup_elem(&established, &at);
	return word && *word & bit;
}

INLINE bool established4(struct settings *set, struct cursor c, struct iphdr *ip)
{
	struct upper upper;
	struct ports ports;

	if (!upper4(&c, ip, &upper) || upper.fragment != WHOLE || !take_ports(&c, upper.protocol, &ports))
		return false;
	return marked(finish(mix(set->seed, (__u64)ip->saddr << 32 | ip->daddr), ports, upper.protocol));
}

/* Unicast neighbour discovery for the VIP is none of the flood (RFC 4861: the hop limit says that no router
 * forwarded it), and without it the VIP would soon have no link-layer address. */
INLINE bool established6(struct settings *set, struct cursor c, struct ipv6hdr *ip, struct upper upper)
{
	struct icmp_header *icmp;
	struct ports ports;

	if (upper.fragment != WHOLE)
		return false;
	if (upper.protocol == PROTO_ICMPV6) {
		icmp = take(&c, sizeof(*icmp));
		return icmp && ip->hop_limit == 255 && (icmp->type == 135 || icmp->type == 136);
	}
	if (!take_ports(&c, upper.protocol, &ports))
		return false;
	return marked(finish(mix6(mix6(set->seed, &ip->saddr), &ip->daddr), ports, upper.protocol));
}

/* Charges a packet to the quota of its VIP; false: it is spent. */
INLINE bool within_quota(struct local *local)
{
	__u64 slice = bpf_ktime_get_ns() >> SLICE_SHIFT;
	__u32 at = local->bucket;
	struct bucket *bucket = bpf_map_lookup_elem(&buckets, &at);

	if (!bucket)
		return true;
	if (bucket->slice != slice) {
		bucket->slice = slice;
		bucket->spent = 0;
	}
	if (bucket->spent >= local->quota)
		return false;
	__sync_fetch_and_add(&bucket->spent, 1);
	return true;
}
