/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* Bounded readers of the headers the program looks at. */
#pragma once

#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include "bpf.h"

enum {
	PROTO_HOP_BY_HOP = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AH = 51,
	PROTO_ICMPV6 = 58,
	PROTO_DESTINATION = 60,
	PROTO_SCTP = 132,
};

#define IPV4_OFFSET_MASK 0x1fff
#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV6_OFFSET_MASK 0xfff8
#define IPV6_MORE_FRAGMENTS 0x0001

/* RFC 8200 names seven extension headers for a packet at most, Destination Options twice. A longer
 * chain is treated as a protocol unknown to us. */
#define EXTENSION_HEADERS 8
/* Of the packet quoted in an ICMPv6 error: what a sane sender puts there. */
#define QUOTED_EXTENSION_HEADERS 4

struct cursor {
	void *at;
	void *end;
};

/* The next `length` bytes, or null where the packet ends before. */
INLINE void *take(struct cursor *c, __u32 length)
{
	void *header = c->at;

	if (header + length > c->end)
		return 0;
	c->at = header + length;
	return header;
}

struct vlan_header {
	__be16 tci;
	__be16 protocol;
};

struct arp_header {
	__be16 hardware, protocol;
	__u8 hardware_length, protocol_length;
	__be16 operation;
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

struct icmp_header {
	__u8 type, code;
	__be16 checksum;
	__be32 rest;
};

/* FIRST is the bit IPv6 says it with. */
enum fragment { WHOLE = 0, FIRST = 1, LATER = 2 };

/* What lies behind the IP header; the cursor stands at the first byte of it. */
struct upper {
	__u8 protocol;
	__u8 fragment;
};

struct ports {
	__be16 source, destination;
};

/* Stands before the ports; false where there are none to read. */
INLINE bool take_ports(struct cursor *c, __u8 protocol, struct ports *out)
{
	struct ports *p;

	if (protocol != PROTO_TCP && protocol != PROTO_UDP && protocol != PROTO_SCTP)
		return false;
	p = take(c, sizeof(*p));
	if (!p)
		return false;
	*out = *p;
	return true;
}

/* From behind the fixed header to behind the options. */
INLINE bool upper4(struct cursor *c, struct iphdr *ip, struct upper *out)
{
	__u16 fragment = ntohs(ip->frag_off);

	if (ip->ihl < 5)
		return false;
	c->at = (void *)ip + ip->ihl * 4;
	out->protocol = ip->protocol;
	out->fragment = (fragment & IPV4_OFFSET_MASK) ? LATER : (fragment & IPV4_MORE_FRAGMENTS) ? FIRST : WHOLE;
	return true;
}

#define EXTENSIONS                                                                                                     \
	(1ull << PROTO_HOP_BY_HOP | 1ull << PROTO_ROUTING | 1ull << PROTO_FRAGMENT | 1ull << PROTO_AH |                \
	 1ull << PROTO_DESTINATION)

/* Hides a value's origin from the compiler, which would turn arithmetic back into branches. */
#define OPAQUE(x) asm volatile("" : "+r"(x))

/* 1 where equal, else 0, for values below 2^63. */
INLINE __u64 equal(__u64 a, __u64 b)
{
	__u64 difference = a ^ b;

	OPAQUE(difference);
	return (difference - 1) >> 63;
}

/* From behind the fixed header along the extension headers, `limit` of them (a constant). RFC 6946:
 * an atomic fragment (offset 0, no more to come) is a whole packet.
 *
 * One path through each header, whatever its kind, by arithmetic: with a branch per kind the verifier
 * follows three to the power of `limit` chains, half of the instructions it allows itself. */
INLINE bool upper6(struct cursor *c, __u8 first, const int limit, struct upper *out)
{
	__u64 next = first, more = 0;
	__u64 extensions, is_ah, is_fragment, fragment, units, length;
	__u8 *header;

#pragma unroll
	for (int i = 0; i <= limit; i++) {
		extensions = EXTENSIONS;
		OPAQUE(extensions);
		if (next > 63 || !(extensions >> next & 1)) {
			out->protocol = next;
			out->fragment = more;
			return true;
		}
		header = take(c, 8);
		if (!header)
			return false;
		is_ah = equal(next, PROTO_AH);
		is_fragment = equal(next, PROTO_FRAGMENT);
		next = header[0];
		fragment = (header[2] << 8 | header[3]) & -is_fragment;
		if (fragment & IPV6_OFFSET_MASK) {
			out->protocol = next;
			out->fragment = LATER;
			return true;
		}
		more |= fragment & IPV6_MORE_FRAGMENTS;
		/* A fragment header's second byte is reserved; its length is 8. */
		units = header[1] & (is_fragment - 1);
		length = ((units + 1) * 8 & (is_ah - 1)) | ((units + 2) * 4 & -is_ah);
		/* No news but to the verifier. */
		OPAQUE(length);
		length &= 0xfff;
		c->at = header + length;
	}
	return false;
}
