//! Floods: SYNs or datagrams from sources that do not exist, as fast as wanted.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use penstock_dataplane::clock::Now;
use penstock_dataplane::io::Burst;
use penstock_dataplane::schedule::Random;

use super::bench::mac;
use super::endpoint::Endpoint;
use super::pace::Pace;
use super::packet::{fold, sum};
use crate::lab::Lab;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Syn,
    Udp,
}

/// Where a flood goes, and as what.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    pub kind: Kind,
    pub target: SocketAddr,
    /// Packets per second; `None`: flat out.
    pub rate: Option<f64>,
    pub queues: u16,
}

/// A flood under way, which ends with this.
#[derive(Debug)]
pub struct Flooding {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    /// Until it is waited for.
    thread: Option<JoinHandle<std::io::Result<Result<()>>>>,
}

impl Flood {
    /// Sends from a client's interface, whose kernel takes no part in it: answers are swallowed.
    ///
    /// # Errors
    /// No AF_XDP sockets there.
    pub fn start(self, lab: &Lab, client: usize) -> Result<Flooding> {
        let ns = &lab.clients[client].ns;
        let src = mac(&ns.sh("ip -br link show eth0")?)?;
        let dst = mac(&lab.the_box.sh("ip -br link show clients0")?)?;
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = ns.thread("flood", move || {
            Endpoint::open("eth0", self.queues).map(|mut end| {
                let _ = ready.send(());
                self.run(&mut end, dst, src, &until, &count);
            })
        })?;
        let flooding = Flooding { stop, sent, thread: Some(thread) };
        match is_ready.recv() {
            Ok(()) => Ok(flooding),
            Err(_) => {
                flooding.finish()?;
                anyhow::bail!("the flood ended before it began")
            }
        }
    }

    fn run(&self, end: &mut Endpoint, dst: [u8; 6], src: [u8; 6], stop: &AtomicBool, sent: &AtomicU64) {
        let mut random = Random::new(Now::read().ns);
        let mut pace = Pace::new(Now::read(), self.rate);
        let mut bursts: Vec<Burst> = (0..end.queues()).map(|_| Burst::new()).collect();
        let mut frame = [0; 128];
        while !stop.load(Ordering::Relaxed) {
            let now = Now::read();
            let room = bursts.iter().map(arrayvec::ArrayVec::remaining_capacity).min().unwrap_or(0);
            for _ in 0..pace.due(now, room) {
                let len = packet(&mut frame, self.kind, dst, src, self.target, random.draw());
                let Some(mut place) = end.frame(len) else { break };
                end.pool.memory().bytes_mut(&mut place).copy_from_slice(&frame[..len]);
                let at = pace.sent() as usize % bursts.len();
                pace.next(now);
                bursts[at].push(place);
            }
            for (queue, burst) in bursts.iter_mut().enumerate().filter(|(_, burst)| !burst.is_empty()) {
                sent.fetch_add(end.send(queue, burst) as u64, Ordering::Relaxed);
            }
            end.receive(|_| false);
            end.service();
        }
        bursts.into_iter().flatten().for_each(|frame| end.pool.give(frame));
    }
}

impl Flooding {
    /// Packets sent so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it. Returns how many packets were sent.
    ///
    /// # Errors
    /// What the sender failed with.
    pub fn finish(mut self) -> Result<u64> {
        self.end().context("the flood's thread panicked")???;
        Ok(self.sent())
    }

    fn end(&mut self) -> Option<std::io::Result<Result<()>>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take()?.join().ok()
    }
}

impl Drop for Flooding {
    fn drop(&mut self) {
        // Who wanted to know has called `finish`.
        let _ = self.end();
    }
}

/// Writes one packet from a source drawn; returns its length.
fn packet(frame: &mut [u8; 128], kind: Kind, dst: [u8; 6], src: [u8; 6], target: SocketAddr, draw: u64) -> usize {
    let (protocol, header) = if kind == Kind::Syn { (6_u8, 20_usize) } else { (17, 8) };
    let payload = if kind == Kind::Syn { 0 } else { 18 };
    let l4_len = header + payload;
    frame.fill(0);
    frame[..6].copy_from_slice(&dst);
    frame[6..12].copy_from_slice(&src);
    let (l4, addresses) = match target.ip() {
        IpAddr::V4(vip) => {
            frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, (20 + l4_len) as u8, 0, 0, 0x40, 0, 64, protocol]);
            // Of 100.0.0.0/8: nobody in the lab.
            frame[26..30].copy_from_slice(&(0x6400_0000 | draw as u32 & 0x00ff_ffff).to_be_bytes());
            frame[30..34].copy_from_slice(&vip.octets());
            let check = !fold(sum(&frame[14..34]));
            frame[24..26].copy_from_slice(&check.to_be_bytes());
            (34, sum(&frame[26..34]))
        }
        IpAddr::V6(vip) => {
            frame[12..22].copy_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0, 0, l4_len as u8, protocol, 64]);
            let source = 0x2001_0db8_00f1_00d0_u128 << 64 | u128::from(draw);
            frame[22..38].copy_from_slice(&source.to_be_bytes());
            frame[38..54].copy_from_slice(&vip.octets());
            (54, sum(&frame[22..54]))
        }
    };
    let port = 1024 + (draw >> 40) as u16 % 60_000;
    frame[l4..l4 + 2].copy_from_slice(&port.to_be_bytes());
    frame[l4 + 2..l4 + 4].copy_from_slice(&target.port().to_be_bytes());
    let check_at = match kind {
        Kind::Syn => {
            frame[l4 + 4..l4 + 8].copy_from_slice(&((draw >> 8) as u32).to_be_bytes());
            frame[l4 + 12..l4 + 16].copy_from_slice(&[0x50, 2, 0x72, 0x10]);
            l4 + 16
        }
        Kind::Udp => {
            frame[l4 + 4..l4 + 6].copy_from_slice(&(l4_len as u16).to_be_bytes());
            l4 + 6
        }
    };
    let total = addresses + u64::from(protocol) + l4_len as u64 + sum(&frame[l4..l4 + l4_len]);
    let check = match !fold(total) {
        // A datagram of zero would have none (RFC 768).
        0 if kind == Kind::Udp => 0xffff,
        check => check,
    };
    frame[check_at..check_at + 2].copy_from_slice(&check.to_be_bytes());
    l4 + l4_len
}

#[cfg(test)]
mod tests {
    use penstock_dataplane::pipeline::testkit;

    use super::*;

    #[test]
    fn a_flood_ends_with_its_owner() {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            count.store(1, Ordering::Relaxed);
            Ok(Ok(()))
        });
        drop(Flooding { stop, sent: Arc::clone(&sent), thread: Some(thread) });
        assert_eq!(sent.load(Ordering::Relaxed), 1, "it has ended");
    }

    #[test]
    fn packets_are_what_kernels_take() {
        for target in ["203.0.113.10:80", "[2001:db8:1::10]:80"] {
            for kind in [Kind::Syn, Kind::Udp] {
                for draw in 0..200_u64 {
                    let mut frame = [0; 128];
                    let draw = draw.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let target = target.parse().expect("an endpoint");
                    let len = packet(&mut frame, kind, [2; 6], [4; 6], target, draw);
                    // Checks every checksum and length.
                    let seen = testkit::valid(&frame[..len]);
                    assert_eq!(seen.dst, target);
                }
            }
        }
    }
}
