//! Answers to the box's check of the way back from `dnat` backends: heard, and told housekeeping.

use super::Pipeline;
use super::side::Sided;
use crate::neighbor::reply_check::ProbeAnswer;
use crate::tables::Tabled;
use crate::verdict::{DropReason, Verdict};
use crate::wire::Tuple;

impl Pipeline {
    /// What becomes of a `dnat` backend's packet, or of an error about one to it (`reply`: as the backend's own
    /// would be), if it is for the address the check asks from. Any worker may hear it.
    pub(super) fn probe_answer<F: Sided + Tabled>(&self, reply: &Tuple<F::Addr>) -> Option<Verdict> {
        if F::tables(&self.view.tables).probe != Some(reply.dst) {
            return None;
        }
        let source = (F::to_ip(reply.src), reply.src_port, reply.protocol);
        let _ = self.stats.probe_answers.push(ProbeAnswer { source, port: reply.dst_port });
        Some(Verdict::Drop(DropReason::ReplyProbe))
    }
}
