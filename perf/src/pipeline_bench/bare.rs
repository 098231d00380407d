//! The bare limit: what any flow table must do at least for a packet, and nothing more. The same two
//! stages over a burst as the pipeline's: read the header and prefetch one random record; then touch
//! the record and write the header back. No parsing, no lookup, no checks, no checksums. The record
//! has the pipeline's size and lies in memory of the same kind; its number is the packet's sequence
//! number, so that every flow has a record of its own.
//!
//! REVIEWED AND FROZEN: figures are compared with it across commits. Whoever changes this loop
//! changes every ratio ever reported: add another limit beside it instead.

use arrayvec::ArrayVec;
use penstock_configs::desired::Protocol;
use penstock_dataplane::flow::Record;
use penstock_dataplane::io::{BURST, Frame, PacketMemory};
use penstock_dataplane::persist::{Records, Shape, Store};
use penstock_dataplane::sys::prefetch;
use penstock_dataplane::verdict::{PortId, Verdict};

use super::packets::{DATA_V4, SEQ_V4, SEQ_V6};
use super::world::Plan;

/// Ethernet, IP and TCP headers without options.
const HEADERS_V4: usize = 14 + 20 + 20;
const HEADERS_V6: usize = 14 + 40 + 20;
/// Of UDP, and the number behind them.
const DATAGRAM_V4: usize = DATA_V4 + 4;

pub enum Bare {
    V4(Records<u32>),
    V6(Records<u128>),
    Datagrams4(Records<u32>),
}

impl Bare {
    /// A limit over as many records as the plan has flows.
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        let Plan { v6, protocol, flows, .. } = plan;
        let (records_v4, records_v6) = if v6 { (1, flows) } else { (flows, 1) };
        let mut store = Store::anonymous(Shape { worker: 0, workers: 1, records_v4, records_v6 })?;
        let (v4, v6_records) = store.records().ok_or_else(|| anyhow::anyhow!("records are taken once"))?;
        Ok(match (v6, protocol) {
            (false, Protocol::Udp) => Self::Datagrams4(v4),
            (false, _) => Self::V4(v4),
            (true, _) => Self::V6(v6_records),
        })
    }

    pub fn burst(&mut self, memory: &PacketMemory, frames: &mut [Frame], verdicts: &mut ArrayVec<Verdict, BURST>) {
        match self {
            Self::V4(records) => burst::<u32, HEADERS_V4, SEQ_V4>(records, memory, frames, verdicts),
            Self::V6(records) => burst::<u128, HEADERS_V6, SEQ_V6>(records, memory, frames, verdicts),
            Self::Datagrams4(records) => burst::<u32, DATAGRAM_V4, DATA_V4>(records, memory, frames, verdicts),
        }
    }
}

#[inline(never)]
fn burst<A, const HEADERS: usize, const SEQ: usize>(
    records: &mut [Record<A>],
    memory: &PacketMemory,
    frames: &mut [Frame],
    verdicts: &mut ArrayVec<Verdict, BURST>,
) {
    let mut wanted = [0; BURST];
    for (frame, wanted) in frames.iter().zip(&mut wanted) {
        let Some(header) = memory.bytes(frame).first_chunk::<HEADERS>() else { continue };
        let [a, b, c, d] = [header[SEQ], header[SEQ + 1], header[SEQ + 2], header[SEQ + 3]];
        let flow = u32::from_be_bytes([a, b, c, d]) as usize;
        *wanted = flow;
        if let Some(record) = records.get(flow) {
            prefetch(record);
            // The second line of a record that has two.
            prefetch(&record.seen);
        }
    }
    for (frame, flow) in frames.iter_mut().zip(wanted) {
        let verdict = match (memory.bytes_mut(frame).first_chunk_mut::<HEADERS>(), records.get_mut(flow)) {
            (Some(place), Some(record)) => {
                record.packets = record.packets.wrapping_add(1);
                let mut header = *place;
                for (byte, add) in header.iter_mut().zip(record.packets.to_ne_bytes()) {
                    *byte ^= add;
                }
                *place = header;
                Verdict::Tx(PortId(1))
            }
            _ => Verdict::Kernel,
        };
        verdicts.push(verdict);
    }
}
