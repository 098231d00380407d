// SPDX-License-Identifier: MIT OR Apache-2.0
/* A load's other end in the kernel: counts what arrives, and drops it or sends it back. Of one number in
 * 2^sample_shift it keeps the books: whether it came before, how long it took; of one flow in 2^sample_shift, whether a
 * packet of it was overtaken (of a flow's numbers alone neighbours would hardly ever be in a sample). What is no packet of the
 * load (ARP, neighbour discovery) goes to the kernel. */
#include "traffic.h"

#define LATENCY_BITS 5
#define LATENCY_BUCKETS (64 << LATENCY_BITS)

/* The load's port, on either side of a packet. */
const volatile __u32 port;
const volatile __u32 answers;
const volatile __u32 sample_shift;

struct books {
	__u64 packets;
	__u64 bytes;
	__u64 sampled;
	__u64 duplicates;
	__u64 reordered;
	/* Numbers beyond the bits there are: not judged. */
	__u64 beyond;
	/* Of packets no pause of the sender's touched, and of those one did. */
	__u64 latency_max[2];
	/* Packets of flows whose order is looked at. */
	__u64 followed;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct books);
} books SEC(".maps");

/* Histograms, of untouched packets and of touched ones: 32 buckets per power of two, in nanoseconds. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * LATENCY_BUCKETS);
	__type(key, __u32);
	__type(value, __u64);
} latency SEC(".maps");

/* 64 numbers of the sample each. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} seen SEC(".maps");

/* The number last seen of each flow, plus one. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} newest SEC(".maps");

/* floor(log2(value)) of a value that is not 0. */
INLINE __u32 log2(__u64 value)
{
	__u32 bits = 0;

#pragma unroll
	for (__u32 step = 32; step; step /= 2)
		if (value >> step) {
			value >>= step;
			bits += step;
		}
	return bits;
}

INLINE void note_latency(struct books *book, __u64 nanos, __u32 touched)
{
	__u32 bucket = nanos;
	__u64 *count, *longest = touched ? &book->latency_max[1] : &book->latency_max[0];

	if (nanos > *longest)
		*longest = nanos;
	if (nanos >> LATENCY_BITS) {
		__u32 shift = log2(nanos) - LATENCY_BITS;

		bucket = ((shift + 1) << LATENCY_BITS) + ((__u32)(nanos >> shift) & ((1 << LATENCY_BITS) - 1));
	}
	bucket += touched ? LATENCY_BUCKETS : 0;
	count = bpf_map_lookup_elem(&latency, &bucket);
	if (count)
		++*count;
}

/* The newest packet once more, as far as it is not seen to be a duplicate, overtook nothing. */
INLINE void note_order(struct books *book, __u32 number, __u32 flow)
{
	__u32 *last;

	if (flow & ((1 << sample_shift) - 1))
		return;
	book->followed++;
	last = bpf_map_lookup_elem(&newest, &flow);
	if (!last)
		return;
	if (number + 1 < *last)
		book->reordered++;
	else
		*last = number + 1;
}

INLINE void note(struct books *book, const __u8 *stamp)
{
	__u32 number = be32(*(__be32 *)(stamp + STAMP_NUMBER));
	__u32 flow = be32(*(__be32 *)(stamp + STAMP_FLOW));
	__u64 now, intended, bit;
	__u32 sample = number >> sample_shift, word = sample / 64, touched;
	__u64 *bits;

	if (number & ((1 << sample_shift) - 1)) {
		note_order(book, number, flow);
		return;
	}
	book->sampled++;
	bits = bpf_map_lookup_elem(&seen, &word);
	if (!bits) {
		book->beyond++;
		return;
	}
	bit = 1ULL << (sample % 64);
	/* Packets of one word may come on two cores; what is set now need not be set again. */
	if (*bits & bit) {
		book->duplicates++;
		return;
	}
	__sync_fetch_and_add(bits, bit);
	note_order(book, number, flow);
	now = bpf_ktime_get_boot_ns();
	intended = be64(*(__be64 *)(stamp + STAMP_INTENDED));
	touched = intended >> 63;
	intended &= ~STAMP_TOUCHED;
	note_latency(book, now > intended ? now - intended : 1, touched);
}

INLINE void swap16(__u8 *at)
{
	__u16 *half = (__u16 *)at, kept = half[0];

	half[0] = half[1];
	half[1] = kept;
}

INLINE void swap32(__u8 *a, __u8 *b)
{
	__u32 kept = *(__u32 *)a;

	*(__u32 *)a = *(__u32 *)b;
	*(__u32 *)b = kept;
}

/* Turns a request into its answer: sides change, which no checksum notices; a SYN becomes a SYN-ACK. */
INLINE void answer(__u8 *packet, const __u32 l4, __u8 protocol)
{
#pragma unroll
	for (__u32 i = 0; i < 6; i += 2) {
		__u16 kept = *(__u16 *)(packet + i);

		*(__u16 *)(packet + i) = *(__u16 *)(packet + 6 + i);
		*(__u16 *)(packet + 6 + i) = kept;
	}
	if (l4 == ETHERNET + IPV4) {
		swap32(packet + 26, packet + 30);
	} else {
#pragma unroll
		for (__u32 i = 0; i < 16; i += 4)
			swap32(packet + 22 + i, packet + 38 + i);
	}
	swap16(packet + l4);
	if (protocol == IPPROTO_TCP && (packet[l4 + 13] & (TCP_SYN | TCP_ACK)) == TCP_SYN) {
		__u32 sequence = be32(*(__be32 *)(packet + l4 + 4)), acknowledged = sequence + 1;
		__u64 sum = (__u16)~be16(*(__be16 *)(packet + l4 + 16));

		/* Its acknowledgement number was 0. */
		*(__be32 *)(packet + l4 + 8) = be32(acknowledged);
		packet[l4 + 13] |= TCP_ACK;
		sum += words32(acknowledged) + TCP_ACK;
		*(__be16 *)(packet + l4 + 16) = be16((__u16)~fold(sum));
	}
}

SEC("xdp")
int sink(struct xdp_md *ctx)
{
	__u8 *packet = (void *)(long)ctx->data;
	const __u8 *end = (void *)(long)ctx->data_end;
	__u32 key = 0;
	struct books *book;

/* Counts a packet whose transport header is at the constant `l4`. */
#define TAKE(l4, protocol)                                                                                           \
	do {                                                                                                         \
		const __u32 header = (protocol) == IPPROTO_UDP ? UDP : TCP;                                                \
		__be16 want = be16((__u16)port);                                                                     \
		if (packet + (l4) + header + STAMP > end)                                                            \
			return XDP_PASS;                                                                             \
		if (*(__be16 *)(packet + (l4)) != want && *(__be16 *)(packet + (l4) + 2) != want)                    \
			return XDP_PASS;                                                                             \
		book = bpf_map_lookup_elem(&books, &key);                                                            \
		if (!book)                                                                                           \
			return XDP_ABORTED;                                                                          \
		book->packets++;                                                                                     \
		book->bytes += end - packet;                                                                         \
		note(book, packet + (l4) + header);                                                                  \
		if (!answers)                                                                                        \
			return XDP_DROP;                                                                             \
		answer(packet, l4, protocol);                                                                        \
		return XDP_TX;                                                                                       \
	} while (0)

	if (packet + 34 > end)
		return XDP_PASS;
	if (packet[12] == 0x08 && packet[13] == 0x00 && packet[14] == 0x45) {
		if (packet[23] == IPPROTO_UDP)
			TAKE(ETHERNET + IPV4, IPPROTO_UDP);
		if (packet[23] == IPPROTO_TCP)
			TAKE(ETHERNET + IPV4, IPPROTO_TCP);
	} else if (packet[12] == 0x86 && packet[13] == 0xdd) {
		if (packet[20] == IPPROTO_UDP)
			TAKE(ETHERNET + IPV6, IPPROTO_UDP);
		if (packet[20] == IPPROTO_TCP)
			TAKE(ETHERNET + IPV6, IPPROTO_TCP);
	}
	return XDP_PASS;
}

char _license[] SEC("license") = "Dual MIT/GPL";
