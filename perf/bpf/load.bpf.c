// SPDX-License-Identifier: MIT OR Apache-2.0
/* A load's ends: TCP and UDP to the AF_XDP socket of the queue they came by, the rest (ARP, neighbour
 * discovery) to the kernel, so that the host goes on answering for its addresses. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))

static long (*bpf_redirect_map)(void *map, __u64 key, __u64 flags) = (void *)BPF_FUNC_redirect_map;

struct {
	int (*type)[BPF_MAP_TYPE_XSKMAP];
	int (*max_entries)[64];
	__u32 *key;
	__u32 *value;
} sockets SEC(".maps");

SEC("xdp")
int load(struct xdp_md *ctx)
{
	const __u8 *packet = (void *)(long)ctx->data;
	const __u8 *end = (void *)(long)ctx->data_end;
	__u8 protocol;

	if (packet + 24 > end)
		return XDP_PASS;
	if (packet[12] == 0x08 && packet[13] == 0x00)
		protocol = packet[23];
	else if (packet[12] == 0x86 && packet[13] == 0xdd)
		protocol = packet[20];
	else
		return XDP_PASS;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return XDP_PASS;
	return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "Dual MIT/GPL";
