//! Bytes per flow, all told: what the process grew by when a million flows were opened, and what was set
//! aside for them before.

use penstock_dataplane::flow::Capacity;

use super::report::{Figure, Section};
use super::rig::{self, Member, Site};

pub fn run(quick: bool) -> anyhow::Result<Section> {
    let flows: u32 = if quick { 10_000 } else { 1 << 20 };
    let embryonic: u32 = if quick { 1_000 } else { 1 << 17 };
    let mut section =
        Section::new("memory", format!("a full table: {flows} established flows and {embryonic} half-open ones"));
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        eprintln!("  {family}: opening {flows} flows");
        let mut site = Site::new(v6, 100, 64);
        let view = site.compiled_view()?;
        let before = rig::resident()?;
        let mut member = Member::new(&site, Capacity { established: flows, embryonic }, 0, 1)?;
        drop(member.pipeline.adopt(view));
        let fresh = rig::resident()?;
        member.establish(0..u64::from(flows), |_, _, _| {})?;
        let all = flows + embryonic;
        member.open(u64::from(flows)..u64::from(all))?;
        let full = rig::resident()?;
        anyhow::ensure!(member.flows() == all, "{} flows instead of {all}", member.flows());
        let per_flow = |from: u64| full.saturating_sub(from) as f64 / f64::from(all);
        section.add(
            Figure::new(format!("{family}: resident memory per flow, table and all"), per_flow(before), "bytes")
                .at_most(128.0)
                .beside(format!("of it {:.1} before the first flow", per_flow(before) - per_flow(fresh))),
        );
        let mapped = if v6 {
            member.pipeline.flows_v6().memory_per_flow()
        } else {
            member.pipeline.flows_v4().memory_per_flow()
        };
        section.add(
            Figure::new(format!("{family}: mapped per flow of capacity"), mapped, "bytes")
                .at_most(128.0)
                .beside("records, index, lists, counts"),
        );
    }
    section.note("Resident: what Linux counts for the process, its pages of the records' file among them.");
    Ok(section)
}
