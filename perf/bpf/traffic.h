/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* What the generator and the sink share: the stamp's place, checksums, the few declarations libbpf's headers would
 * bring. Helper numbers: include/uapi/linux/bpf.h. */
#pragma once

#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))
#define __uint(name, value) int(*name)[value]
#define __type(name, type_name) typeof(type_name) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;
static long (*bpf_xdp_adjust_tail)(struct xdp_md *ctx, int delta) = (void *)BPF_FUNC_xdp_adjust_tail;
/* The dataplane's and the lab's clock. */
static __u64 (*bpf_ktime_get_boot_ns)(void) = (void *)BPF_FUNC_ktime_get_boot_ns;

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif
#define be16(x) __builtin_bswap16(x)
#define be32(x) __builtin_bswap32(x)
#define be64(x) __builtin_bswap64(x)

#define ETHERNET 14
#define IPV4 20
#define IPV6 40
#define UDP 8
#define TCP 20

#define TCP_SYN 0x02
#define TCP_ACK 0x10

/* A stamp, behind the headers: traffic::packet::Stamp. Big-endian. */
#define STAMP 16
#define STAMP_NUMBER 0
#define STAMP_FLOW 4
#define STAMP_INTENDED 8
/* A bit of the time it was due. */
#define STAMP_TOUCHED (1ULL << 63)

/* Sum of 16-bit words to an Internet checksum, not complemented. */
INLINE __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

INLINE __u64 words32(__u32 value) { return (value >> 16) + (value & 0xffff); }
INLINE __u64 words64(__u64 value) { return words32(value >> 32) + words32(value); }
