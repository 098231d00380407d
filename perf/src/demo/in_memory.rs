//! Where namespaces or AF_XDP are not to be had: the same pipeline between user-space TCP stacks.

use anyhow::{Result, ensure};

use super::DemoArgs;
use super::narrator::{Narrator, thousands};
use super::report;
use crate::clients::Tally;
use crate::config;
use crate::memlab::{Impairment, MemLab, MemLabConfig};

const VICTIM: &str = "node1";
/// Fetched by each connection.
const BYTES: u64 = 2000;

pub fn run(reason: &str, args: &DemoArgs) -> Result<()> {
    let narrator = Narrator::default();
    println!("Penstock, without a network: {reason}.");
    println!("As root on a machine with network namespaces, the demo sends real packets through AF_XDP.");

    narrator.step(
        "The network",
        "A client and three nodes are TCP/IP stacks in this process (smoltcp); the box is the dataplane's own two
         workers, reading and writing memory instead of network cards. Time is virtual. The cables lose 1 % of
         the frames and let 2 % overtake others; a frame may arrive at either worker.",
    );
    let impairment = Impairment { lost: 10, reordered: 20, ..Impairment::default() };
    let mut lab = MemLab::new(&MemLabConfig { impairment, ..MemLabConfig::default() })?;

    narrator.step("Connections", "Each fetches 2,000 bytes and compares them with what the node should send.");
    let before = traffic(&narrator, &mut lab, args);

    narrator.step("One node less", &format!("{VICTIM} is taken out of the config."));
    lab.reconfigure(|config| config::without_node(config, VICTIM))?;
    if let Some((moved, size)) = lab.slots_moved() {
        narrator.say(report::slots_moved(moved, size));
    }

    narrator.step("The same connections again", "None may go to the missing node, none may fail.");
    let after = traffic(&narrator, &mut lab, args);

    println!("\nWhere the connections went:\n\n{}", report::table(&before, &after, VICTIM));
    lab.settle()?;
    let (wire, (virtual_time, sent)) = (lab.impaired(), lab.totals());
    println!(
        "     {} frames on the wires, {} lost, {} delayed; the box sent {} packets in {:.0} virtual seconds",
        thousands(wire.frames),
        thousands(wire.lost),
        thousands(wire.reordered),
        thousands(sent),
        virtual_time.as_secs_f64(),
    );
    println!("     every packet is accounted for: the ledger of both workers balances");
    let failed = before.failed() + after.failed();
    ensure!(failed == 0, "{failed} connections failed: {:?} {:?}", before.failures, after.failures);
    ensure!(!after.by_node.contains_key(VICTIM), "{VICTIM} still got connections");
    Ok(())
}

fn traffic(narrator: &Narrator, lab: &mut MemLab, args: &DemoArgs) -> Tally {
    let mut sum = Tally::default();
    for (name, v6, share) in [("TCP over IPv4", false, 2), ("TCP over IPv6", true, 1)] {
        let count = args.connections * share / 3;
        let progress = narrator.progress(name, count);
        let mut tally = Tally::default();
        while tally.answered() + tally.failed() < count {
            let batch = (count - tally.answered() - tally.failed()).min(100);
            tally.merge(lab.connections(v6, batch, 16, BYTES));
            progress.at(tally.answered());
        }
        progress.done(&report::outcome(&tally, "connections"));
        sum.merge(tally);
    }
    sum
}
