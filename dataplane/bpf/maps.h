/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* What the loader (src/steer) fills and reads. A change of any key, value or meaning here is a new
 * layout: raise LAYOUT in src/steer/layout.rs, so that a pinned older set of maps is never adopted. */
#pragma once

#include "bpf.h"

/* struct local.flags */
#define LOCAL_WHOLE 1u	  /* every packet to the address is ours: a VIP or a dedicated SNAT address */
#define LOCAL_ANNOUNCE 2u /* ARP and neighbour discovery for it are ours too */
#define LOCAL_VIP 4u	  /* counted as VIP, else as SNAT */

/* An address packets are sent to. Ports (host order, both included) count only where not WHOLE:
 * a SNAT address shared with the kernel.
 *
 * A VIP with a quota is policed: of packets that belong to no established flow so many pass in a slice of
 * time, counted in its bucket. */
struct local {
	__u32 flags;
	__u16 port_first;
	__u16 port_last;
	__u32 quota; /* packets a slice; 0: not policed */
	__u32 bucket;
};

/* 16.8 ms: a 60th of a second. */
#define SLICE_SHIFT 24

/* What a VIP has let through of its quota. Shared by all CPUs, without a lock: when several begin a slice
 * at once, or charge the last packet of one, a few more than the quota pass, as many as there are CPUs. */
struct bucket {
	__u64 slice;
	__u64 spent;
};

/* Which flows are established: one bit for each, in one of two generations of 2^24 by the hash of the tuple
 * its client's packets have (see hash.h). Workers set bits of the current one, housekeeping clears the
 * other when it becomes current, so that flows that are gone fade. A bit that two flows share lets a packet of
 * a flood through, never stops one of a flow. */
#define GENERATIONS 2u
#define GENERATION_WORDS (1u << 18)

/* A dnat backend as the source of replies. Port and protocol 0: the address alone, for fragments,
 * which carry no ports. No padding: keys are compared as bytes. */
struct dnat4 {
	__be32 address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

struct dnat6 {
	struct in6_addr address;
	__be16 port;
	__u8 protocol;
	__u8 zero;
};

/* Non-zero: the dnat map of that family has entries. Saves most packets a lookup. */
struct settings {
	__u32 dnat4;
	__u32 dnat6;
	__u64 seed; /* of the hash that flows are marked by */
};

enum class {
	CLASS_VIP,
	CLASS_SNAT,
	CLASS_SNAT_SHARED,
	CLASS_DNAT,
	CLASS_NEIGHBOR,
	CLASSES,
};

struct counters {
	__u64 passed;
	__u64 unserved; /* passed because the queue is none of ours */
	__u64 malformed; /* passed because headers are cut short or contradict themselves */
	__u64 policed; /* dropped: to a VIP beyond its quota, and of no established flow */
	__u64 split; /* passed because the headers that decide are not all in the first of several buffers */
	__u64 redirected[CLASSES];
	__u64 no_socket[CLASSES]; /* ours, but dropped: no process has a socket on the queue */
};

/* Not preallocated: the sizes are ceilings set by the loader, memory goes with the entries. */
#define HASH(map_name, key_type, value_type)                                                                           \
	struct {                                                                                                       \
		__uint(type, BPF_MAP_TYPE_HASH);                                                                       \
		__uint(max_entries, 1);                                                                                \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                                                  \
		__type(key, key_type);                                                                                 \
		__type(value, value_type);                                                                             \
	} map_name SEC(".maps")

HASH(local4, __be32, struct local);
HASH(local6, struct in6_addr, struct local);
HASH(dnat4, struct dnat4, __u32);
HASH(dnat6, struct dnat6, __u32);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct settings);
} settings SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct bucket);
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, GENERATIONS * GENERATION_WORDS);
	__uint(map_flags, BPF_F_MMAPABLE);
	__type(key, __u32);
	__type(value, __u64);
} established SEC(".maps");

/* One per interface: the program is loaded once per interface, each with its own. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

/* Receive queues served on this interface; set at load. Packets of the rest pass to the kernel. */
volatile const __u32 queues = 0;
