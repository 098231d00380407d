/* SPDX-License-Identifier: (MIT OR Apache-2.0) OR GPL-2.0 */
/* The few declarations libbpf's headers would bring, so that building needs clang and the kernel's
 * own headers (linux-libc-dev) only. Helper numbers: include/uapi/linux/bpf.h, FN(...) list. */
#pragma once

#include <linux/bpf.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define INLINE static inline __attribute__((always_inline))

/* BTF-defined maps encode integers as array lengths of pointer members. */
#define __uint(name, value) int(*name)[value]
#define __type(name, type_name) typeof(type_name) *name

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static __u64 (*bpf_ktime_get_ns)(void) = (void *)5;
static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)51;
/* Linux 5.18; called by penstock_frags only. */
static __u64 (*bpf_xdp_get_buff_len)(void *ctx) = (void *)188;
static long (*bpf_xdp_load_bytes)(void *ctx, __u32 offset, void *to, __u32 length) = (void *)189;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define ntohs(x) __builtin_bswap16(x)
#else
#define ntohs(x) (x)
#endif
#define htons(x) ntohs(x)

typedef _Bool bool;
#define true 1
#define false 0
