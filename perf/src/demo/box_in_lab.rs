//! The box in a lab of namespaces: real TCP and UDP through AF_XDP workers, then one node less.

use std::net::SocketAddr;

use anyhow::{Result, ensure};

use super::DemoArgs;
use super::narrator::Narrator;
use super::report;
use crate::clients::Tally;
use crate::clients::http::Volley;
use crate::clients::udp::UdpVolley;
use crate::config;
use crate::dataplane::Dataplane;
use crate::lab::{Lab, plan};
use crate::rig::wait_for_addresses;
use crate::servers::{NodePorts, NodeServer};

const VICTIM: &str = "node1";
const QUEUES: u16 = 2;

pub fn run(args: &DemoArgs) -> Result<()> {
    let narrator = Narrator::default();
    println!("Penstock: a load balancer in front of three nodes, on this machine, in network namespaces.");

    let (lab, _servers) = bring_up(&narrator)?;
    let mut config = config::base(&lab, QUEUES);
    config.services = config::web_services();
    let mut dataplane = start(&narrator, &lab, &config)?;

    narrator.step("Connections", "Every one is a connection of its own, as curl would open it.");
    let before = traffic(&narrator, &lab, args)?;

    narrator.step(
        "One node less",
        &format!("{VICTIM} is taken out of the config file; SIGHUP makes the box read it again, without a restart."),
    );
    config::without_node(&mut config, VICTIM);
    dataplane.reload(&config)?;
    narrator.say("every worker runs the new table");
    if let Some(service) = dataplane.status()?.services.first() {
        narrator.say(report::slots_moved(service.disrupted, service.table_size));
    }

    narrator.step("The same connections again", "None may go to the missing node, none may fail.");
    let after = traffic(&narrator, &lab, args)?;

    println!("\nWhere the connections went:\n\n{}", report::table(&before, &after, VICTIM));
    let failed = before.failed() + after.failed();
    println!("     {failed} failed connections; RSTs sent by any host: {}", lab.resets_sent()?);
    dataplane.stop()?;
    ensure!(failed == 0, "{failed} exchanges failed: {:?} {:?}", before.failures, after.failures);
    ensure!(!after.by_node.contains_key(VICTIM), "{VICTIM} still got connections");
    Ok(())
}

fn bring_up(narrator: &Narrator) -> Result<(Lab, Vec<NodeServer>)> {
    narrator.step(
        "The network",
        "Hosts are network namespaces with kernel TCP/IP stacks of their own, joined by virtual cables (veth).",
    );
    let lab = Lab::builder().queues(QUEUES).build()?;
    let servers = NodeServer::start_all(&lab, &NodePorts::both([config::NODE_PORT]))?;
    let vip = plan::vip(0);
    narrator.say(format!("client0  {:<15} {}", lab.clients[0].addr.v4, lab.clients[0].addr.v6));
    narrator.say(format!("VIP      {:<15} {}   port 80, TCP and UDP", vip.v4, vip.v6));
    for node in &lab.nodes {
        narrator.say(format!(
            "{}    {:<15} {}   NodePort {}",
            node.name,
            node.addr.v4,
            node.addr.v6,
            config::NODE_PORT
        ));
    }
    narrator.say(format!("up after {} ms", lab.bring_up().as_millis()));
    Ok((lab, servers))
}

fn start(narrator: &Narrator, lab: &Lab, config: &penstock_configs::file::ConfigFile) -> Result<Dataplane> {
    narrator.step(
        "The box",
        "penstock-dataplane starts from a config file: an XDP program steers packets for the VIPs to AF_XDP sockets;
         one worker per queue rewrites them (full NAT) and sends them on. The kernel's stack never sees them.",
    );
    let dataplane = Dataplane::start(lab, config)?;
    wait_for_addresses(lab, config)?;
    let status = dataplane.status()?;
    for port in &status.ports {
        let copy = if port.zero_copy { "zero-copy" } else { "copy mode" };
        narrator.say(format!("{:<9} {} queues, XDP {}, {copy}", port.interface, port.queues, port.xdp));
    }
    narrator.say(format!("{} workers, {} services", status.workers.len(), status.services.len()));
    for notice in &status.notices {
        narrator.say(format!("notice: {notice}"));
    }
    Ok(dataplane)
}

/// HTTP over IPv4 and IPv6, and UDP; one sum.
fn traffic(narrator: &Narrator, lab: &Lab, args: &DemoArgs) -> Result<Tally> {
    let client = &lab.clients[0].ns;
    let vip = plan::vip(0);
    let mut sum = Tally::default();
    for (name, v6, share) in [("HTTP over IPv4", false, 2), ("HTTP over IPv6", true, 1)] {
        let count = args.connections * share / 3;
        let progress = narrator.progress(name, count);
        let tally = Volley::new(SocketAddr::new(vip.ip(v6), 80), count).run(client, |done| progress.at(done));
        progress.done(&report::outcome(&tally, "connections", "second"));
        sum.merge(tally);
    }
    let volley = UdpVolley { per_flow: 1, ..UdpVolley::new(SocketAddr::new(vip.ip(false), 80), args.udp_flows) };
    let progress = narrator.progress("UDP", args.udp_flows);
    let tally = volley.run(client, |done| progress.at(done));
    progress.done(&report::outcome(&tally, "exchanges", "second"));
    sum.merge(tally);
    Ok(sum)
}
