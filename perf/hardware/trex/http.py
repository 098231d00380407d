"""Short TCP connections through the VIP (TRex, ASTF mode): client and server are TRex's own TCP stack.

    $ ./t-rex-64 -i --astf
    trex> start -f perf/hardware/trex/http.py -m 1000 -d 60 -t size=128

`-m 1000` opens 1,000 connections a second. The servers are the nodes: 10.0.0.11 to 10.0.0.13, NodePort 30000; they see the
SNAT address, so TRex must not expect the client's (no `--learn` mode; clients and servers on separate ports).
TRex refuses address pools smaller than its threads, and the VIP is one address: should it do so, start it with `-c 1`.
"""

import argparse

from trex.astf.api import (
    ASTFAssociationRule,
    ASTFIPGen,
    ASTFIPGenDist,
    ASTFIPGenGlobal,
    ASTFProgram,
    ASTFProfile,
    ASTFTCPClientTemplate,
    ASTFTCPServerTemplate,
    ASTFTemplate,
)

REQUEST = b"GET / HTTP/1.1\r\nHost: vip\r\nConnection: close\r\n\r\n"


class Profile:
    def get_profile(self, tunables=(), **kwargs):
        parser = argparse.ArgumentParser()
        parser.add_argument("--size", type=int, default=128, help="bytes of an answer's body")
        args = parser.parse_args(tunables)
        answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % args.size + args.size * b"x"

        client = ASTFProgram()
        client.send(REQUEST)
        client.recv(len(answer))
        server = ASTFProgram()
        server.recv(len(REQUEST))
        server.send(answer)

        addresses = ASTFIPGen(
            glob=ASTFIPGenGlobal(ip_offset="0.0.0.0"),
            dist_client=ASTFIPGenDist(ip_range=["198.18.0.1", "198.18.3.254"], distribution="seq"),
            dist_server=ASTFIPGenDist(ip_range=["203.0.113.10", "203.0.113.10"], distribution="seq"),
        )
        return ASTFProfile(
            default_ip_gen=addresses,
            templates=ASTFTemplate(
                client_template=ASTFTCPClientTemplate(program=client, ip_gen=addresses, port=80, cps=1),
                server_template=ASTFTCPServerTemplate(
                    program=server, assoc=ASTFAssociationRule(port=30000)
                ),
            ),
        )


def register():
    return Profile()
