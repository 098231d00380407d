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

enum fragment { WHOLE, FIRST, LATER };

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

	if (protocol != PROTO_TCP && protocol != PROTO_UDP)
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

/* From behind the fixed header along the extension headers, `limit` of them (a constant). RFC 6946:
 * an atomic fragment (offset 0, no more to come) is a whole packet. */
INLINE bool upper6(struct cursor *c, __u8 next, const int limit, struct upper *out)
{
	__u8 *header;
	__u16 fragment;

	out->fragment = WHOLE;
#pragma unroll
	for (int i = 0; i <= limit; i++) {
		switch (next) {
		case PROTO_HOP_BY_HOP:
		case PROTO_ROUTING:
		case PROTO_DESTINATION:
			header = take(c, 8);
			if (!header)
				return false;
			next = header[0];
			c->at = header + (header[1] + 1) * 8;
			break;
		case PROTO_AH:
			header = take(c, 8);
			if (!header)
				return false;
			next = header[0];
			c->at = header + (header[1] + 2) * 4;
			break;
		case PROTO_FRAGMENT:
			header = take(c, 8);
			if (!header)
				return false;
			next = header[0];
			fragment = header[2] << 8 | header[3];
			if (fragment & IPV6_OFFSET_MASK) {
				out->fragment = LATER;
				out->protocol = next;
				return true;
			}
			if (fragment & IPV6_MORE_FRAGMENTS)
				out->fragment = FIRST;
			break;
		default:
			out->protocol = next;
			return true;
		}
	}
	return false;
}
