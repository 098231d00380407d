// SPDX-License-Identifier: MIT OR Apache-2.0
/* The generator in the kernel: run by BPF_PROG_TEST_RUN with live frames, each run makes one packet and redirects it
 * out of an interface, or drops an empty page when no packet is due yet. Pages come back as whoever had them left
 * them, so every header is written each time. traffic::packet::Maker writes the same packets, byte for byte. */
#include "traffic.h"

#define FLOWS_PER_CHUNK 1024
/* Nanoseconds. */
#define GRACE 50000000
#define PER_READING 16
/* A packet so late shows a pause: the kernel makes a batch of packets and sends it in some tens of microseconds. */
#define LATE 100000

/* Headers with everything that never changes, from the Ethernet header on. */
const volatile __u64 headers[10];
/* Sums over what the checksums cover, but for lengths, client, and stamp. */
const volatile __u64 ip_sum;
const volatile __u64 l4_sum;
/* The first client's address: its low 32 bits, and the sum of the rest. */
const volatile __u32 first_client;
const volatile __u32 first_port;
const volatile __u32 is_v6;
const volatile __u32 is_tcp;
const volatile __u32 ifindex;
/* Sizes that take turns. */
const volatile __u32 sizes[16];
const volatile __u32 turns;
/* Flows from `flow_first` in steps of `flow_step`, or as the table of `draws` says, if it is not 0. */
const volatile __u32 flows;
const volatile __u32 flow_first;
const volatile __u32 flow_step;
const volatile __u32 draws;
/* Packet n of this generator has the number `number_first + n * number_step`. */
const volatile __u32 number_first;
const volatile __u32 number_step;

struct run {
	/* 0: the first turn sets it, once pages are there. */
	__u64 start;
	/* Written by the lab before a run. */
	__u64 length;
	/* Nanoseconds between packets, in 1/1024; 0: flat out. */
	__u64 each;
	__u64 most;
	/* Written here. */
	__u64 packets;
	__u64 bytes;
	/* How late the latest packet was. */
	__u64 latest;
	/* When this call's first and its last packet were made. */
	__u64 first;
	__u64 last;
	/* Pages that could not be made as long as they had to be. */
	__u64 refused;
	/* Since when packets have been late; 0: they are not. */
	__u64 late_since;
	/* Packets due before this met others that came late. */
	__u64 calm_since;
	__u64 pauses;
	__u64 paused;
	__u32 flow;
	__u32 turn;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct run);
} runs SEC(".maps");

struct chunk {
	__u32 flows[FLOWS_PER_CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chunk);
} drawn SEC(".maps");

/* The flow of the next packet. */
INLINE __u32 next_flow(struct run *run)
{
	__u32 at = run->flow, key = at / FLOWS_PER_CHUNK;

	if (draws) {
		const struct chunk *chunk = bpf_map_lookup_elem(&drawn, &key);

		run->flow = at + 1 >= draws ? 0 : at + 1;
		return chunk ? chunk->flows[at % FLOWS_PER_CHUNK] : 0;
	}
	at = at < flow_first ? flow_first : at;
	run->flow = at + flow_step >= flows ? flow_first : at + flow_step;
	return at;
}

/* Whether the packet comes late by this generator's fault, or meets others that do. Late packets leave in one burst,
 * which a box at half its rate works off in the time it took to make up for them. */
INLINE __u64 touched(struct run *run, __u64 due, __u64 now)
{
	if (!run->late_since && now - due > LATE) {
		run->late_since = due;
		run->pauses++;
		run->paused += now - due;
	}
	return run->late_since || due < run->calm_since ? STAMP_TOUCHED : 0;
}

/* No packet is due: the generator is on time. */
INLINE void on_time(struct run *run, __u64 now)
{
	if (!run->late_since)
		return;
	run->calm_since = now + (now - run->late_since);
	run->late_since = 0;
}

/* Writes the packet; `l4` and `l4_header` are constants at each call. */
INLINE void write(__u8 *packet, const __u32 l4, const __u32 l4_header, __u32 len, __u32 flow, __u32 number, __u64 due)
{
	__u8 *stamp = packet + l4 + l4_header;
	/* flow / 1000, as the compiler would for a machine without division. */
	__u32 above = ((__u64)flow * 274877907) >> 38;
	__u32 client = first_client + above;
	__u16 port = first_port + (flow - above * 1000);
	__u32 l4_len = len - l4;
	__u64 sum = l4_sum + l4_len + port + words32(client) + words32(number) + words32(flow) + words64(due);
	__u16 check;

#pragma unroll
	for (__u32 i = 0; i < 10; i++)
		if (i * 8 < l4 + l4_header)
			*(__u64 *)(packet + i * 8) = headers[i];

	if (l4 == ETHERNET + IPV4) {
		__u16 ip_len = len - ETHERNET;

		*(__be16 *)(packet + 16) = be16(ip_len);
		*(__be16 *)(packet + 24) = be16((__u16)~fold(ip_sum + ip_len + words32(client)));
		*(__be32 *)(packet + 26) = be32(client);
	} else {
		*(__be16 *)(packet + 18) = be16((__u16)l4_len);
		*(__be32 *)(packet + 34) = be32(client);
	}
	*(__be32 *)(stamp + STAMP_NUMBER) = be32(number);
	*(__be32 *)(stamp + STAMP_FLOW) = be32(flow);
	*(__be64 *)(stamp + STAMP_INTENDED) = be64(due);
	*(__be16 *)(packet + l4) = be16(port);
	if (l4_header == UDP) {
		sum += l4_len;
		*(__be16 *)(packet + l4 + 4) = be16((__u16)l4_len);
	}
	check = ~fold(sum);
	/* A datagram's sum of zero is sent as its other form (RFC 768). */
	if (l4_header == UDP)
		check = check ?: 0xffff;
	*(__be16 *)(packet + l4 + (l4_header == UDP ? 6 : 16)) = be16(check);
}

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	__u32 key = 0, number, flow, len, turn;
	struct run *run = bpf_map_lookup_elem(&runs, &key);
	__u8 *packet = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u64 now, due, end_of_run;

	if (!run)
		return XDP_ABORTED;
	/* Flat out the clock is read for some packets only: it costs a good part of the rest. */
	if (run->each || !run->first || run->packets % PER_READING == 0)
		now = bpf_ktime_get_boot_ns();
	else
		now = run->last;
	due = now;
	if (!run->start)
		run->start = now;
	end_of_run = run->start + run->length;
	if (run->packets >= run->most)
		return XDP_DROP;
	if (!run->each) {
		if (now >= end_of_run)
			return XDP_DROP;
	} else {
		due = run->start + ((run->packets * run->each) >> 10);
		if (due > now) {
			on_time(run, now);
			return XDP_DROP;
		}
		/* What was due in time is sent, if it is not much too late for it. */
		if (due >= end_of_run || now >= end_of_run + GRACE)
			return XDP_DROP;
		if (now - due > run->latest)
			run->latest = now - due;
		due |= touched(run, due, now);
	}

	turn = run->turn;
	run->turn = turn + 1 >= turns ? 0 : turn + 1;
	len = sizes[turn & 15];
	if (turns > 1) {
		if (bpf_xdp_adjust_tail(ctx, (int)len - (int)(end - packet))) {
			run->refused++;
			return XDP_DROP;
		}
		packet = (void *)(long)ctx->data;
		end = (void *)(long)ctx->data_end;
	}
	number = number_first + (__u32)run->packets * number_step;
	flow = next_flow(run);

#define WRITE(l4, l4_header)                                                                                         \
	do {                                                                                                         \
		if (packet + (l4) + (l4_header) + STAMP > end)              \
			return XDP_DROP;                                                                             \
		write(packet, l4, l4_header, len, flow, number, due);                                                \
	} while (0)
	if (!is_v6 && !is_tcp)
		WRITE(ETHERNET + IPV4, UDP);
	else if (!is_v6)
		WRITE(ETHERNET + IPV4, TCP);
	else if (!is_tcp)
		WRITE(ETHERNET + IPV6, UDP);
	else
		WRITE(ETHERNET + IPV6, TCP);

	run->packets++;
	run->bytes += len;
	run->first = run->first ?: now;
	run->last = now;
	return bpf_redirect(ifindex, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
