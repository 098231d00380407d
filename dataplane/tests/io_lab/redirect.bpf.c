// Every packet goes to the AF_XDP socket of its queue. The smallest program a socket needs.
// SPDX-License-Identifier: GPL-2.0
typedef unsigned int u32;
typedef unsigned long long u64;

struct xdp_md {
    u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

enum { BPF_MAP_TYPE_XSKMAP = 17, XDP_PASS = 2 };

static long (*const bpf_redirect_map)(void *map, u64 key, u64 flags) = (void *)51;

struct {
    int (*type)[BPF_MAP_TYPE_XSKMAP];
    int (*max_entries)[64];
    u32 *key;
    u32 *value;
} sockets __attribute__((section(".maps"), used));

__attribute__((section("xdp"), used)) int redirect_all(struct xdp_md *ctx)
{
    return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

__attribute__((section("xdp.frags"), used)) int redirect_jumbo(struct xdp_md *ctx)
{
    return bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
}

char _license[] __attribute__((section("license"), used)) = "GPL";
