// SPDX-License-Identifier: MIT OR Apache-2.0
/* The nodes' end of a comparison, in the kernel: counts what arrives as it should and what does not, and drops
 * or answers it. No process takes part, so that it costs every peer's box the same, and little. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))

static void *(*bpf_map_lookup_elem)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)BPF_FUNC_redirect;

/* What is right: written by perf/src/compare/sink.rs, in this order. */
struct wanted {
	__be32 address;
	__be16 port;
	/* 0: only take packets; 1: send them back, addresses and ports on the other side. */
	__u16 answer;
};

struct {
	int (*type)[BPF_MAP_TYPE_ARRAY];
	int (*max_entries)[1];
	__u32 *key;
	struct wanted *value;
} wanted SEC(".maps");

/* 0: UDP to the address and port wanted; 1: any other UDP. */
struct {
	int (*type)[BPF_MAP_TYPE_PERCPU_ARRAY];
	int (*max_entries)[2];
	__u32 *key;
	__u64 *value;
} counts SEC(".maps");

struct headers {
	struct ethhdr eth;
	__u8 version_ihl;
	__u8 before_protocol[8];
	__u8 protocol;
	__u8 check[2];
	__be32 source;
	__be32 dest;
	__be16 source_port;
	__be16 dest_port;
} __attribute__((packed));

static void count(__u32 which)
{
	__u64 *counter = bpf_map_lookup_elem(&counts, &which);

	if (counter)
		(*counter)++;
}

SEC("xdp")
int arrivals(struct xdp_md *ctx)
{
	struct headers *packet = (void *)(long)ctx->data;
	struct wanted *right;
	__u8 mac[ETH_ALEN];
	__be32 address;
	__be16 port;
	__u32 zero = 0;

	if ((void *)(packet + 1) > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (packet->eth.h_proto != __builtin_bswap16(ETH_P_IP) || packet->version_ihl != 0x45 ||
	    packet->protocol != IPPROTO_UDP)
		return XDP_PASS;
	right = bpf_map_lookup_elem(&wanted, &zero);
	if (!right)
		return XDP_PASS;
	if (packet->dest != right->address || packet->dest_port != right->port) {
		count(1);
		return XDP_DROP;
	}
	count(0);
	if (!right->answer)
		return XDP_DROP;
	__builtin_memcpy(mac, packet->eth.h_dest, ETH_ALEN);
	__builtin_memcpy(packet->eth.h_dest, packet->eth.h_source, ETH_ALEN);
	__builtin_memcpy(packet->eth.h_source, mac, ETH_ALEN);
	/* No checksum notices that two of its words have changed places. */
	address = packet->source;
	packet->source = packet->dest;
	packet->dest = address;
	port = packet->source_port;
	packet->source_port = packet->dest_port;
	packet->dest_port = port;
	/* Not XDP_TX: a veth wakes its peer for that only where the peer has an XDP program too. */
	return bpf_redirect(ctx->ingress_ifindex, 0);
}

char _license[] SEC("license") = "Dual MIT/GPL";
