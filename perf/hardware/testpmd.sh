#!/usr/bin/env bash
# DPDK's testpmd as generator, as reflector (the nodes), or as the forwarder to compare with. Debian: dpdk-dev.
#   testpmd.sh generate  PORT BOX_MAC [CORES] [SECONDS]   64-byte UDP to the VIP, 16 flows, flat out; receives nothing
#   testpmd.sh reflect   PORT         [CORES] [SECONDS]   swaps MACs, addresses and ports: every packet is answered
#   testpmd.sh forward   PORT PORT    [CORES] [SECONDS]   MAC swap from port to port: what the box could do at most
#   PORT   a PCI address (0000:01:00.0: bound to vfio-pci) or an interface name: net_af_xdp
#   CORES  default 1,2: the first is testpmd's own, the others forward
# QUEUES=4 in the environment: queues of each port, default 1; a queue takes one of the cores. To compare with: as many queues
# and forwarding cores as the box has workers. Needs huge pages for PCI ports (host.sh apply). SECONDS, default 10, bounds every
# run. Two at a time, on cores of their own, are no trouble.
set -euo pipefail

usage() { sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2; }
[ $# -ge 2 ] || usage
testpmd=$(command -v dpdk-testpmd || command -v testpmd) || {
    echo "no dpdk-testpmd: apt-get install dpdk-dev" >&2
    exit 1
}
mode=$1
shift

queues=${QUEUES:-1} net=${NET:-/sys/class/net}
ports=() eal=()
number=0
add_port() {
    if [[ $1 == *:*:*.* ]]; then
        eal+=(-a "$1")
        pci=yes
    else
        eal+=("--vdev=net_af_xdp$number,iface=$1,queue_count=$queues")
    fi
    ports+=("$1")
    number=$((number + 1))
}
pci=''
add_port "$1"
shift
case $mode in
    generate)
        mac=${1:?the MAC of the box}
        shift
        # 64 bytes with the check sequence. --txonly-multi-flow writes the source address: the VIP's, its third octet or-ed with a
        # counter's bits. 113 leaves 16 values; no choice of addresses makes that more than 256 clients of one port each.
        arguments=(--forward-mode=txonly --txpkts=60 --txonly-multi-flow "--tx-ip=198.18.0.1,203.0.113.10" "--tx-udp=10000,80" "--eth-peer=0,$mac")
        ;;
    reflect) arguments=(--forward-mode=5tswap) ;;
    forward)
        add_port "${1:?two ports}"
        shift
        arguments=(--forward-mode=macswap)
        # What comes on a queue that has no socket goes to the kernel: a ratio to the rest would flatter the box.
        for port in "${ports[@]}"; do
            there=("$net/$port/queues/"rx-*)
            if [ -e "${there[0]}" ] && [ ${#there[@]} -gt "$queues" ]; then
                echo "$port has ${#there[@]} receive queues, testpmd would take $queues: QUEUES=${#there[@]}, and a core for each" >&2
                exit 2
            fi
        done
        ;;
    *) usage ;;
esac
cores=${1:-1,2} seconds=${2:-10}
# Reflector and generator are two of them at a time: each has files of its own, or none.
eal+=("--file-prefix=lab$$")
if [ -n "$pci" ]; then
    eal+=(--in-memory)
else
    # net_af_xdp copies into memory of its own: no huge pages, no PCI devices needed.
    eal+=(--no-pci --no-huge -m 512 --no-shconf)
fi
workers=$(($(tr , '\n' <<<"$cores" | wc -l) - 1))
echo "testpmd $mode on ${ports[*]}, $queues queue(s) each, $workers core(s), $seconds s"
# Else a NIC's hash is over addresses alone, and a client has all its flows on one queue.
[ "$queues" = 1 ] || arguments+=(--rss-udp)
dir=$(mktemp -d)
log=$dir/log running=()
finish() {
    kill "${running[@]}" 2>/dev/null || true
    # testpmd leaves its directory behind.
    rm -rf "$dir" "/var/run/dpdk/lab$$"
}
trap finish EXIT
fail() {
    echo "testpmd $mode: $1" >&2
    cat "$log" >&2
    exit 1
}
# It stops at a line of input and then prints its statistics.
mkfifo "$dir/input"
exec {input}<>"$dir/input"
# stdbuf: into a file it would say nothing until a page is full.
# Left to itself it would take the lowest core for its own.
stdbuf -oL "$testpmd" -l "$cores" --main-lcore "${cores%%,*}" "${eal[@]}" -- --nb-cores="$workers" --rxq="$queues" --txq="$queues" \
    --burst=64 --txd=1024 --rxd=1024 --total-num-mbufs=65536 --no-flush-rx --no-lsc-interrupt "${arguments[@]}" \
    <"$dir/input" >"$log" 2>&1 &
pid=$! running=($!)
# Starting takes a second or more: time runs from when it forwards.
for ((tenths = 0; ; tenths++)); do
    if grep -q 'packet forwarding - ports' "$log"; then break; fi
    kill -0 "$pid" 2>/dev/null || fail "it ended before it forwarded"
    [ "$tenths" -lt 300 ] || fail "it does not forward after 30 s"
    sleep 0.1
done
sleep "$seconds" &
running+=($!)
wait -n || true
kill -0 "$pid" 2>/dev/null || fail "it ended before its time"
echo >&"$input"
wait "$pid" || fail "it failed"
running=()
awk -v seconds="$seconds" '
    /forward statistics for all ports/ { show = 1; next }
    show && /packets:/ { print "  " $0 }
    show && /RX-packets/ { rx = $2 }
    show && /TX-packets/ { tx = $2 }
    END { printf "  received %.3f, sent %.3f million packets/s\n", rx / seconds / 1e6, tx / seconds / 1e6 }' "$log"
