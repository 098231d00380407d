#!/usr/bin/env bash
# Shows and sets one NIC for poll-mode workers.
#   nic.sh show IFACE
#   nic.sh tune IFACE QUEUES [FIRST_CORE]    queues, rings, hash, coalescing; queue n's IRQ on core FIRST_CORE + n
#   nic.sh snat IFACE QUEUES ADDRESS...      ntuple rules: replies to SNAT addresses reach their flow's worker in hardware
#   nic.sh unsnat IFACE                      removes those rules
# A refusal is printed and the rest goes on: no two NICs can do the same.
set -uo pipefail

try() { # what, command...
    local what=$1 answer
    shift
    if answer=$("$@" 2>&1); then
        printf 'ok    %s\n' "$what"
    else
        printf 'no    %s: %s\n' "$what" "$(head -1 <<<"$answer")"
    fi
}

show() {
    local iface=$1
    ethtool -i "$iface" | grep -E '^(driver|firmware-version|bus-info)'
    ethtool "$iface" | grep -E 'Speed|Link detected'
    ethtool -l "$iface" 2>/dev/null | sed -n '/Current/,$p'
    ethtool -g "$iface" 2>/dev/null | sed -n '/Current/,$p'
    ethtool -x "$iface" 2>/dev/null | tail -n 12
    for proto in tcp4 udp4 tcp6 udp6; do ethtool -n "$iface" rx-flow-hash $proto 2>/dev/null | grep -E 'use these|IP|bytes'; done
    ethtool -n "$iface" 2>/dev/null | tail -n 20
    printf 'NUMA node %s; cores of it: %s\n' "$(cat /sys/class/net/"$iface"/device/numa_node 2>/dev/null)" \
        "$(cat /sys/class/net/"$iface"/device/local_cpulist 2>/dev/null)"
}

tune() {
    local iface=$1 queues=$2 first=${3:-} n irq device
    # AF_XDP takes every queue: one that has no worker would pass its packets to the kernel.
    try "queues $queues" ethtool -L "$iface" combined "$queues"
    # Deep rings hide overload as latency: under it rings of 4096 cost 18 % (copy mode, veth).
    try "rings 1024" ethtool -G "$iface" rx 1024 tx 1024
    # The dataplane computes the NIC's Toeplitz to choose SNAT ports whose replies come home: it wants the
    # plain 4-tuple hash, and reads key and table. A symmetric hash works and is read, too.
    for proto in tcp4 udp4 tcp6 udp6; do try "hash of $proto over addresses and ports" ethtool -N "$iface" rx-flow-hash $proto sdfn; done
    try "equal spread" ethtool -X "$iface" equal "$queues"
    try "no pause frames" ethtool -A "$iface" autoneg off rx off tx off
    try "no adaptive coalescing" ethtool -C "$iface" adaptive-rx off adaptive-tx off rx-usecs 8
    try "no large receive" ethtool -K "$iface" lro off gro off
    # Driver and application on one core need these (busy_poll = true in the config).
    echo 2 >"/sys/class/net/$iface/napi_defer_hard_irqs" 2>/dev/null
    echo 200000 >"/sys/class/net/$iface/gro_flush_timeout" 2>/dev/null
    if [ -n "$first" ]; then
        n=0
        # Drivers name a queue's IRQ after the interface (i40e-eth0-TxRx-0) or after the device
        # (mlx5_comp0@pci:0000:01:00.0, virtio1-input.0). What has no device has no IRQ.
        device=$(basename "$(readlink -f "/sys/class/net/$iface/device")")
        [ -e "/sys/class/net/$iface/device" ] || device=none
        while read -r irq; do
            [ $n -lt "$queues" ] || break
            try "IRQ $irq on core $((first + n))" sh -c "echo $((first + n)) > /proc/irq/$irq/smp_affinity_list"
            n=$((n + 1))
        done < <(grep -E "[ -]$iface(-|\$)|@pci:$device|$device-input" /proc/interrupts | awk -F: '{ print $1 + 0 }')
    fi
}

# A SNAT port belongs to worker (port % workers), and worker n serves queue n: the low bits of the port are the
# queue, which a mask can say when there is a power of two of them. `m` names the bits NOT compared.
snat() {
    local iface=$1 queues=$2 address type queue
    shift 2
    if ((queues & (queues - 1))); then
        echo "no    $queues queues: only a power of two has a mask; replies then come by hash, or are handed over" >&2
        return 1
    fi
    try "ntuple filters" ethtool -K "$iface" ntuple on
    for address; do
        case $address in *:*) type=6 ;; *) type=4 ;; esac
        for ((queue = 0; queue < queues; queue++)); do
            for proto in tcp udp; do
                try "$proto to $address, port = $queue mod $queues, on queue $queue" ethtool -N "$iface" flow-type $proto$type \
                    dst-ip "$address" dst-port "$queue" m "$(printf '0x%04x' $((0xffff & ~(queues - 1))))" action "$queue"
            done
        done
    done
}

unsnat() {
    local rule
    for rule in $(ethtool -n "$1" | awk '/^Filter:/ { print $2 }'); do try "rule $rule removed" ethtool -N "$1" delete "$rule"; done
}

case ${1:-} in
    show) show "${2:?an interface}" ;;
    tune) tune "${2:?an interface}" "${3:?how many queues}" "${4:-}" ;;
    snat) snat "${2:?an interface}" "${3:?how many queues}" "${@:4}" ;;
    unsnat) unsnat "${2:?an interface}" ;;
    *) sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
