//! What one turn does for upkeep is bounded, whatever there is to do: packets wait for it.

use super::*;
use crate::flow::{FIRST_EFFORT, MOST_EFFORT, Record, Swept, Word};

/// Of each family.
const FLOWS: u32 = 500;

fn crowded() -> Rig {
    let mut rig = rig();
    for n in 0..FLOWS {
        Conn::open(&mut rig, &format!("198.51.{}.{}:5555", n / 200, n % 200 + 1), TO_WEB);
        Conn::open(&mut rig, &format!("[2001:db8:2::{n:x}]:5555"), TO_WEB6);
    }
    rig
}

/// Records of both families that are as wanted.
fn count(rig: &Rig, wanted: impl Fn(u16, u32) -> bool) -> u32 {
    fn of<A>((record, _): (&Record<A>, Word)) -> (u16, u32) {
        (record.epoch, record.packets)
    }
    let (v4, v6) = (rig.pipeline.flows_v4().live().map(of), rig.pipeline.flows_v6().live().map(of));
    v4.chain(v6).filter(|(epoch, packets)| wanted(*epoch, *packets)).count() as u32
}

/// Calls upkeep some times behind a nap each, until nothing is left. The most of each of these calls is what `swept`
/// costs.
#[track_caller]
fn goes_on_a_few_at_a_time(rig: &mut Rig, swept: Swept, left: impl Fn(&Rig) -> u32) {
    let most = [0, 1, 2, 2].map(|doubled| (FIRST_EFFORT << doubled) / swept.effort());
    assert_eq!(most[3], MOST_EFFORT / swept.effort());
    let mut before = left(rig);
    assert_eq!(before, 2 * FLOWS);
    let mut worst = [0; 4];
    for _ in 0..4 * before / most.iter().sum::<u32>() + 1 {
        rig.wait(1);
        for worst in &mut worst {
            rig.upkeep();
            *worst = before.abs_diff(left(rig)).max(*worst);
            before = left(rig);
        }
    }
    assert_eq!((before, worst), (0, most), "left, and done in each call behind a nap");
    rig.check();
}

#[test]
fn flows_that_end_together_are_forgotten_a_few_a_turn() {
    let mut rig = crowded();
    rig.wait(7_500);
    goes_on_a_few_at_a_time(&mut rig, Swept::Forgotten, |rig| count(rig, |_, _| true));
}

#[test]
fn a_new_snapshot_touches_no_flow_by_itself_and_a_few_a_turn() {
    let mut rig = crowded();
    rig.change(|plan| _ = plan.serve("203.0.113.99:443/tcp", &["10.0.0.99:31443"]));
    let epoch = rig.pipeline.epoch;
    goes_on_a_few_at_a_time(&mut rig, Swept::Renewed, |rig| count(rig, |of, _| of != epoch));
}

#[test]
fn flows_that_go_on_are_looked_at_so_many_a_turn() {
    let mut rig = crowded();
    goes_on_a_few_at_a_time(&mut rig, Swept::Kept, |rig| count(rig, |_, packets| packets != 0));
}
