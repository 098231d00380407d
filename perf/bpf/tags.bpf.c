// SPDX-License-Identifier: MIT OR Apache-2.0
/* VLAN tags for a lab on a kernel without the 8021q module: clsact programs at the far end of the
 * box's interface. Egress pushes what the box shall see, ingress pops what the box sent. */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <linux/types.h>

#define SEC(name) __attribute__((section(name), used))
#define INNER_VID 100
#define OUTER_VID 200

static __be16 to_be16(__u16 value) { return __builtin_bswap16(value); }

static long (*skb_vlan_push)(struct __sk_buff *skb, __be16 proto, __u16 tci) =
	(void *)BPF_FUNC_skb_vlan_push;
static long (*skb_vlan_pop)(struct __sk_buff *skb) = (void *)BPF_FUNC_skb_vlan_pop;

SEC("tc/push_vlan")
int push_vlan(struct __sk_buff *skb)
{
	return skb_vlan_push(skb, to_be16(ETH_P_8021Q), INNER_VID) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc/push_qinq")
int push_qinq(struct __sk_buff *skb)
{
	if (skb_vlan_push(skb, to_be16(ETH_P_8021Q), INNER_VID))
		return TC_ACT_SHOT;
	return skb_vlan_push(skb, to_be16(ETH_P_8021AD), OUTER_VID) ? TC_ACT_SHOT : TC_ACT_OK;
}

/* An untagged frame, or one of another VLAN, does not belong to this segment: dropping it shows a
 * box that forgot the tag, where popping whatever is there would hide it. */
SEC("tc/pop_vlan")
int pop_vlan(struct __sk_buff *skb)
{
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != INNER_VID)
		return TC_ACT_SHOT;
	return skb_vlan_pop(skb) ? TC_ACT_SHOT : TC_ACT_OK;
}

SEC("tc/pop_qinq")
int pop_qinq(struct __sk_buff *skb)
{
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != OUTER_VID || skb->vlan_proto != to_be16(ETH_P_8021AD))
		return TC_ACT_SHOT;
	/* The second tag moves from the frame to the metadata when the first is popped. */
	if (skb_vlan_pop(skb))
		return TC_ACT_SHOT;
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != INNER_VID)
		return TC_ACT_SHOT;
	return skb_vlan_pop(skb) ? TC_ACT_SHOT : TC_ACT_OK;
}

char _license[] SEC("license") = "Dual MIT/GPL";
