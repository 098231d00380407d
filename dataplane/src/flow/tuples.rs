//! The tuples of a flow's packets: those they come with, by which it is found, and those they leave with.

use super::{Direction, Flags, Record, Word, dsr};
use crate::wire::{Family, Rewrite, Tuple};

/// The tuple that packets of a flow have in one direction.
#[inline(always)]
pub fn key<F: Family>(record: &Record<F::Addr>, word: Word, direction: Direction, snats: &[F::Addr]) -> Tuple<F::Addr> {
    match direction {
        Direction::Forward => Tuple {
            src: record.client,
            dst: record.vip,
            src_port: record.client_port,
            dst_port: record.vip_port,
            protocol: word.protocol,
        },
        Direction::Reverse => {
            if word.flags.has(Flags::DSR) {
                return dsr::reverse_key::<F>(record, word);
            }
            let (dst, dst_port) = if word.flags.has(Flags::DNAT) {
                (record.client, record.client_port)
            } else {
                (snat_of::<F>(record, snats), record.snat_port)
            };
            Tuple { src: record.node, dst, src_port: record.node_port, dst_port, protocol: word.protocol }
        }
    }
}

/// The tuple a flow's packets of one direction leave with.
#[inline(always)]
pub fn translation<F: Family>(
    record: &Record<F::Addr>,
    word: Word,
    direction: Direction,
    snats: &[F::Addr],
) -> Rewrite<F::Addr> {
    match direction {
        Direction::Forward if word.flags.has(Flags::DNAT) => {
            let stays = word.flags.has(Flags::DSR);
            Rewrite {
                src: record.client,
                dst: if stays { record.vip } else { record.node },
                src_port: record.client_port,
                dst_port: if stays { record.vip_port } else { record.node_port },
            }
        }
        Direction::Forward => Rewrite {
            src: snat_of::<F>(record, snats),
            dst: record.node,
            src_port: record.snat_port,
            dst_port: record.node_port,
        },
        Direction::Reverse => {
            Rewrite { src: record.vip, dst: record.client, src_port: record.vip_port, dst_port: record.client_port }
        }
    }
}

#[inline(always)]
fn snat_of<F: Family>(record: &Record<F::Addr>, snats: &[F::Addr]) -> F::Addr {
    snats.get(usize::from(record.snat)).copied().unwrap_or_default()
}
