#!/usr/bin/env bash
# The kernel's packet generator (module pktgen) against the box, one thread per core. UDP only; it receives nothing: read
# the sink's and the box's counters (`penstock counters`, `ethtool -S`).
#   pktgen.sh CASE IFACE BOX_MAC [SECONDS] [CORES] [PPS]
#     CASE     udp4-64 udp4-imix udp4-1518 udp6-78 flood4     the cases of README.md
#     CORES    "0-3"; default: core 0        PPS   for each core; default 0: flat out
# In the environment: FLOWS (default 1000), flows of the case; flood4 ignores it, and of udp6-78 there are 1,000 at most.
# BURST (default 1), copies of each packet sent in a row, for more packets/s where one flow will do: refused elsewhere.
# No interface of the machine's own network: what pktgen sends, it sends.
set -euo pipefail

[ $# -ge 3 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
case_name=$1 iface=$2 mac=$3 seconds=${4:-10} cores=${5:-0} pps=${6:-0}
flows=${FLOWS:-1000} burst=${BURST:-1}
proc=${PKTGEN:-/proc/net/pktgen} # another directory: what would be said to the kernel, for a test

# pktgen sends one and the same packet `burst` times: runs of one flow, which are in the cache; and its rate counts bursts.
if [ "$burst" != 1 ] && { [ "$pps" != 0 ] || [[ $case_name != udp4-1518 && $flows -gt 1 ]]; }; then
    echo "BURST=$burst would repeat each packet: only for udp4-1518 or FLOWS=1, flat out" >&2
    exit 2
fi
if [[ $case_name = udp6-* && $flows -gt 1000 ]]; then
    echo "pktgen varies no IPv6 source address: at most 1,000 flows, by port; TRex has more" >&2
    exit 2
fi

[ -d "$proc" ] || modprobe pktgen 2>/dev/null || true
[ -d "$proc" ] || { echo "no pktgen in this kernel (CONFIG_NET_PKTGEN): use testpmd.sh or TRex" >&2; exit 1; }

tell() { # file, line
    if ! echo "$2" >>"$proc/$1"; then
        echo "pktgen refuses \"$2\": $(grep -m1 Result "$proc/$1")" >&2
        exit 1
    fi
}

# 1,000 source ports at most per source address, then more addresses: clients as they are.
ports=$((flows < 1000 ? flows : 1000))
clients=$(((flows + ports - 1) / ports))

stop() { echo stop >>"$proc/pgctrl"; }
stopper=''
# Whoever ends early leaves nobody behind who would stop the next run.
trap '[ -z "$stopper" ] || kill "$stopper" 2>/dev/null || true' EXIT
trap 'stop; exit 130' INT TERM

first=${cores%-*} last=${cores#*-}
tell pgctrl reset
for ((core = first; core <= last; core++)); do
    device=$iface@$core
    tell kpktgend_"$core" "add_device $device"
    tell "$device" "count 0"
    tell "$device" "clone_skb 0"
    tell "$device" "burst $burst"
    tell "$device" "dst_mac $mac"
    tell "$device" "queue_map_min $((core - first))"
    tell "$device" "queue_map_max $((core - first))"
    tell "$device" "udp_dst_min 80"
    tell "$device" "udp_dst_max 80"
    tell "$device" "udp_src_min 10000"
    # Drawn at random, the upper bound is not among them; nor is src_max.
    tell "$device" "udp_src_max $((10000 + ports))"
    tell "$device" "flag UDPCSUM"
    # Without it every thread sends the same sequence; with it, sources are spread evenly.
    tell "$device" "flag UDPSRC_RND"
    [ "$pps" = 0 ] || tell "$device" "ratep $pps"
    case $case_name in
        udp6-*)
            tell "$device" "dst6 2001:db8:203::10"
            tell "$device" "src6 2001:db8:100::2"
            ;;
        flood4)
            tell "$device" "dst 203.0.113.10"
            tell "$device" "src_min 1.0.0.1"
            tell "$device" "src_max 99.255.255.254"
            tell "$device" "flag IPSRC_RND"
            ;;
        *)
            tell "$device" "dst 203.0.113.10"
            tell "$device" "src_min 198.18.0.1"
            beyond=$((clients + 1))
            tell "$device" "src_max 198.$((18 + beyond / 65536)).$((beyond / 256 % 256)).$((beyond % 256))"
            tell "$device" "flag IPSRC_RND"
            ;;
    esac
    # Without the frame check sequence, which pktgen does not count.
    case $case_name in
        udp4-64 | flood4) tell "$device" "pkt_size 60" ;;
        udp4-1518) tell "$device" "pkt_size 1514" ;;
        # pktgen's own header makes it 82 on the wire; less is made more, with a line in the kernel's log.
        udp6-78) tell "$device" "pkt_size 78" ;;
        # 7:4:1 of 64, 594 and 1518 bytes.
        udp4-imix) tell "$device" "imix_weights 60,7 590,4 1514,1" ;;
        *) echo "no case $case_name" >&2; exit 2 ;;
    esac
done

echo "$case_name: $flows flows from cores $cores, $([ "$pps" = 0 ] && echo flat out || echo "$pps packets/s each"), $seconds s"
(sleep "$seconds"; stop) &
stopper=$!
tell pgctrl start
wait
total=0
for ((core = first; core <= last; core++)); do
    rate=$(grep -oE '[0-9]+pps' "$proc/$iface@$core" | tail -1)
    echo "  core $core: $rate"
    total=$((total + ${rate%pps}))
done
echo "  sent $total packets/s"
