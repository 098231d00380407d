#!/usr/bin/env bash
# Shows and sets one NIC for poll-mode workers.
#   nic.sh show IFACE
#   nic.sh tune IFACE QUEUES [FIRST_CORE [busy-poll]]   queues, rings, hash, coalescing; queue n's IRQ on core FIRST_CORE + n.
#                                            busy-poll: that is worker n's core; interrupts wait for the worker to poll
#   nic.sh snat IFACE QUEUES ADDRESS...      ntuple rules: replies to SNAT addresses reach their flow's worker in hardware
#   nic.sh unsnat IFACE                      removes those rules, and no others
# A refusal is printed and the rest goes on: no two NICs can do the same.
set -uo pipefail

# Where things are; tests say otherwise.
net=${NET:-/sys/class/net} interrupts=${INTERRUPTS:-/proc/interrupts} irqs=${IRQS:-/proc/irq} run=${RUN:-/run}
answer=''

try() { # what, command...; leaves its answer
    local what=$1
    shift
    if answer=$("$@" 2>&1); then
        printf 'ok    %s\n' "$what"
    else
        printf 'no    %s: %s\n' "$what" "$(head -1 <<<"$answer")"
        return 1
    fi
}

set_to() { # what, value, file
    try "$1" sh -c 'echo "$0" >"$1"' "$2" "$3"
}

# Queue, number and name of each IRQ of a queue. Drivers name them after the interface (i40e-eth0-TxRx-0, eth0-Tx-Rx-0) or after the
# device (mlx5_comp0@pci:0000:01:00.0, virtio1-input.0). Others of the same card (mlx5_async0@pci:.., ena-mgmnt@pci:.., a bare
# eth0) are of no queue.
queue_irqs() { # interface
    local device=none
    [ ! -e "$net/$1/device" ] || device=$(basename "$(readlink -f "$net/$1/device")")
    awk -v iface="$1" -v device="$device" '
        $NF ~ "(^|-)(" iface "|" device ")-.*[0-9]$" || $NF ~ "^mlx5_comp[0-9]+@pci:" device "$" {
            name = $NF
            sub(/@pci:.*/, "", name)
            match(name, /[0-9]+$/)
            print substr(name, RSTART) + 0, $1 + 0, $NF
        }' "$interrupts"
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
    queue_irqs "$iface" | while read -r queue irq name; do
        printf 'queue %s: IRQ %s %s on core %s\n' "$queue" "$irq" "$name" "$(cat "$irqs/$irq/smp_affinity_list" 2>/dev/null)"
    done
    printf 'interrupts put off: %s times, for %s ns\n' "$(cat "$net/$iface/napi_defer_hard_irqs" 2>/dev/null)" \
        "$(cat "$net/$iface/gro_flush_timeout" 2>/dev/null)"
    printf 'NUMA node %s; cores of it: %s\n' "$(cat "$net/$iface/device/numa_node" 2>/dev/null)" \
        "$(cat "$net/$iface/device/local_cpulist" 2>/dev/null)"
}

tune() {
    local iface=$1 queues=$2 first=${3:-} busy=${4:-} queue irq name placed
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
    # With SO_PREFER_BUSY_POLL (`workers.busy_poll_budget`) the worker polls the driver, and interrupts stand back for it. Without,
    # the same settings would leave packets lying for 200 us.
    local times=0 nanos=0
    if [ "$busy" = busy-poll ]; then times=2 nanos=200000; fi
    set_to "interrupts put off $times times" $times "$net/$iface/napi_defer_hard_irqs"
    set_to "for $nanos ns" $nanos "$net/$iface/gro_flush_timeout"
    [ -n "$first" ] || return 0
    placed=0
    while read -r queue irq name; do
        [ "$queue" -lt "$queues" ] || continue
        set_to "queue $queue: IRQ $irq $name on core $((first + queue))" $((first + queue)) "$irqs/$irq/smp_affinity_list" && placed=$((placed + 1))
    done < <(queue_irqs "$iface")
    [ "$placed" -ge "$queues" ] || printf 'no    IRQs: %s placed for %s queues; see %s\n' "$placed" "$queues" "$interrupts"
}

# A SNAT port belongs to worker (port % workers), and worker n serves queue n: the low bits of the port are the
# queue, which a mask can say when there is a power of two of them. `m` names the bits NOT compared.
snat() {
    local iface=$1 queues=$2 address type queue
    shift 2
    unsnat "$iface"
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
                    dst-ip "$address" dst-port "$queue" m "$(printf '0x%04x' $((0xffff & ~(queues - 1))))" action "$queue" || continue
                # "Added rule with ID 1023"
                echo "${answer##* }" >>"$(rules_of "$iface")"
            done
        done
    done
}

# The rules `snat` added; a box may have others.
rules_of() { echo "$run/penstock-lab-nic-$1"; }

unsnat() {
    local file rule
    file=$(rules_of "$1")
    [ -e "$file" ] || return 0
    while read -r rule; do try "rule $rule removed" ethtool -N "$1" delete "$rule"; done <"$file"
    rm "$file"
}

case ${1:-} in
    show) show "${2:?an interface}" ;;
    tune) tune "${2:?an interface}" "${3:?how many queues}" "${4:-}" "${5:-}" ;;
    snat) snat "${2:?an interface}" "${3:?how many queues}" "${@:4}" ;;
    unsnat)
        [ -e "$(rules_of "${2:?an interface}")" ] || echo "none of snat's rules are known here"
        unsnat "$2"
        ;;
    *) sed -n '2,8s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
