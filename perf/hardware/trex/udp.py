"""Stateless UDP to the VIP (TRex, STL mode): the cases of perf/hardware/README.md.

    trex> start -f perf/hardware/trex/udp.py -m 50% -d 60 -t case=udp4-64,flows=1000000

Both directions at once need a reflector on port 1 (testpmd.sh reflect); without one the flows stay unanswered.
"""

import argparse

from trex.stl.api import (
    Ether,
    IP,
    IPv6,
    STLFlowLatencyStats,
    STLPktBuilder,
    STLProfile,
    STLScVmRaw,
    STLStream,
    STLTXCont,
    STLVmFixChecksumHw,
    STLVmFlowVar,
    STLVmWrFlowVar,
    CTRexVmInsFixHwCs,
    UDP,
)

VIP4, VIP6 = "203.0.113.10", "2001:db8:203::10"
# Bytes on the wire with the frame check sequence, and their weight.
SIZES = {
    "udp4-64": [(64, 1)],
    "udp4-imix": [(64, 7), (594, 4), (1518, 1)],
    "udp4-1518": [(1518, 1)],
    "udp6-78": [(78, 1)],
    "flood4": [(64, 1)],
}


class Profile:
    def packet(self, case, size, flows):
        six = case.startswith("udp6")
        ip = IPv6(src="2001:db8:100::2", dst=VIP6) if six else IP(src="198.18.0.1", dst=VIP4)
        base = Ether() / ip / UDP(sport=10000, dport=80)
        padding = max(0, size - 4 - len(base)) * b"x"
        if case == "flood4":
            # Every packet another client: none of them ever comes back.
            variables = [
                STLVmFlowVar("src", min_value="1.0.0.1", max_value="99.255.255.254", size=4, op="random"),
                STLVmWrFlowVar("src", pkt_offset="IP.src"),
            ]
        else:
            ports = min(flows, 1000)
            clients = -(-flows // ports)
            first = 2 if six else 0xC6120001
            offset = "IPv6.src" if six else "IP.src"
            variables = [
                STLVmFlowVar("port", min_value=10000, max_value=10000 + ports - 1, size=2, op="inc"),
                STLVmWrFlowVar("port", pkt_offset="UDP.sport"),
                # The address moves on when the ports are through: all flows, one after the other.
                STLVmFlowVar("src", min_value=first, max_value=first + clients - 1, size=4, op="inc", next_var="port"),
                STLVmWrFlowVar("src", pkt_offset=offset, offset_fixup=12 if six else 0),
            ]
        variables.append(
            STLVmFixChecksumHw(
                l3_offset="IPv6" if six else "IP",
                l4_offset="UDP",
                l4_type=CTRexVmInsFixHwCs.L4_TYPE_UDP,
            )
        )
        return STLPktBuilder(pkt=base / padding, vm=STLScVmRaw(variables))

    def get_streams(self, direction=0, tunables=(), **kwargs):
        parser = argparse.ArgumentParser()
        parser.add_argument("--case", default="udp4-64", choices=sorted(SIZES))
        parser.add_argument("--flows", type=int, default=1000)
        args = parser.parse_args(tunables)
        streams = [
            STLStream(packet=self.packet(args.case, size, args.flows), mode=STLTXCont(pps=weight), isg=index * 10.0)
            for index, (size, weight) in enumerate(SIZES[args.case])
        ]
        if args.case != "flood4":
            # A thin stream with time stamps, so that the load does not wait for the measurement.
            streams.append(
                STLStream(
                    packet=self.packet(args.case, 128, 1),
                    mode=STLTXCont(pps=1000),
                    flow_stats=STLFlowLatencyStats(pg_id=7),
                )
            )
        return streams


def register():
    return Profile()
