#!/usr/bin/env bash
# Shows and sets what a host must have before a figure measured on it means anything.
#   host.sh check            what is, and what it should be; exit 1 if something is off
#   host.sh apply [CORES]    sets what can be set until the next boot; CORES: the workers' ("2-5"), kept free of IRQs
#   host.sh undo             puts back what `apply` found
set -euo pipefail

saved=/run/penstock-lab-host
off=0

say() { # state, subject, what is, what to do
    printf '%-5s %-14s %s\n' "$1" "$2" "$3"
    if [ "$1" != ok ]; then
        printf '      %-14s -> %s\n' '' "$4"
        off=1
    fi
}

value() { cat "$1" 2>/dev/null || echo "$2"; }

check() {
    local governors turbo hugepages isolated smt
    governors=$(cat /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor 2>/dev/null | sort -u | paste -sd,) || true
    case $governors in
        '') say ok governor "none to choose from here" '' ;;
        performance) say ok governor performance '' ;;
        *) say off governor "$governors" "host.sh apply (performance): clocks that change make runs incomparable" ;;
    esac
    turbo=$(value /sys/devices/system/cpu/intel_pstate/no_turbo "$(value /sys/devices/system/cpu/cpufreq/boost -)")
    say ok turbo "setting $turbo; note it with the result (1-core and all-core turbo differ)" ''
    hugepages=$(awk '/^HugePages_Free/ { print $2 }' /proc/meminfo)
    if [ "${hugepages:-0}" -ge 64 ]; then
        say ok 'huge pages' "$hugepages of 2 MiB free" ''
    else
        say off 'huge pages' "${hugepages:-0} of 2 MiB free" "host.sh apply: 512 of them"
    fi
    isolated=$(value /sys/devices/system/cpu/isolated '')
    if [ -n "$isolated" ]; then
        say ok isolcpus "$isolated" ''
    else
        say off isolcpus none "kernel command line: isolcpus=2-5 nohz_full=2-5 rcu_nocbs=2-5 (the workers' cores), and reboot"
    fi
    smt=$(value /sys/devices/system/cpu/smt/active 0)
    if [ "$smt" = 0 ]; then
        say ok SMT 'off' ''
    else
        say off SMT 'on: two workers may share a core' "echo off > /sys/devices/system/cpu/smt/control, or pin to one thread of each"
    fi
    if pgrep -x irqbalance >/dev/null; then
        say off irqbalance running "systemctl stop irqbalance: it moves IRQs onto the workers' cores"
    else
        say ok irqbalance 'not running' ''
    fi
    if grep -qs 'Vulnerable\|Mitigation' /sys/devices/system/cpu/vulnerabilities/*; then
        say ok mitigations "$(grep -l Mitigation /sys/devices/system/cpu/vulnerabilities/* 2>/dev/null | wc -l) active; note it with the result" ''
    fi
    if [ "$(value /proc/sys/kernel/numa_balancing 0)" != 0 ]; then
        say off 'NUMA balancing' on "host.sh apply"
    else
        say ok 'NUMA balancing' off ''
    fi
    return $off
}

# Remembers a setting the first time it is changed.
set_to() { # file, value
    [ -w "$1" ] || return 0
    mkdir -p "$saved"
    local key
    key=$(tr / : <<<"$1")
    [ -e "$saved/$key" ] || cat "$1" >"$saved/$key"
    echo "$2" >"$1" || echo "      $1 refuses $2" >&2
}

# "2-5,8" without those, as a mask in the kernel's groups of 32 bits.
mask_without() {
    local cores=$1 count mask=() core first last part
    count=$(getconf _NPROCESSORS_CONF)
    local -A busy=()
    IFS=, read -ra parts <<<"$cores"
    for part in "${parts[@]}"; do
        first=${part%-*} last=${part#*-}
        for ((core = first; core <= last; core++)); do busy[$core]=1; done
    done
    for ((core = 0; core < count; core++)); do
        [ -n "${busy[$core]:-}" ] || mask[core / 32]=$((${mask[core / 32]:-0} | 1 << core % 32))
    done
    local text='' group
    for ((group = (count - 1) / 32; group >= 0; group--)); do
        text+=$(printf '%s%08x' "${text:+,}" "${mask[group]:-0}")
    done
    echo "$text"
}

apply() {
    local governor irq mask
    for governor in /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor; do set_to "$governor" performance; done
    set_to /proc/sys/vm/nr_hugepages 512
    set_to /proc/sys/kernel/numa_balancing 0
    if [ -n "${1:-}" ]; then
        mask=$(mask_without "$1")
        # The NIC's own queue IRQs are placed by nic.sh; some others cannot be moved at all.
        for irq in /proc/irq/[0-9]*/smp_affinity; do set_to "$irq" "$mask" 2>/dev/null; done
        set_to /proc/irq/default_smp_affinity "$mask"
    fi
    check || true
}

undo() {
    [ -d "$saved" ] || { echo "nothing to undo"; return 0; }
    local file
    for file in "$saved"/*; do
        cat "$file" >"$(basename "$file" | tr : /)" 2>/dev/null || true
    done
    rm -r "$saved"
    echo "put back as found"
}

# Else what can't be written would be passed over, and said to be for `apply` to set.
as_root() { [ "$(id -u)" = 0 ] || { echo "$1 wants root" >&2; exit 1; }; }

case ${1:-} in
    check) check ;;
    apply) as_root apply; apply "${2:-}" ;;
    undo) as_root undo; undo ;;
    *) sed -n '2,5s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
