//! The generators of packet measurements: `traffic`'s AF_XDP sender, and its live frames, on the client host and a
//! core of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::cases::Stage;
use super::peers::{GENERATOR_CORE, mac_of};
use crate::traffic::endpoint::Endpoint;
use crate::traffic::live::{Live, Share};
use crate::traffic::load::{self, Load, Sent};
use crate::traffic::mix::Mix;
use crate::traffic::packet::{Maker, Route};
use crate::traffic::popularity::{Draw, Popularity};
use crate::traffic::track::Outcome;

/// The first generated client, RFC 2544's own network.
const FIRST_CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);

const FLOWS_PER_CLIENT: u32 = 1_000;

/// A load to send.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// The first of its flows: a multiple of 1,000, which is what a client address has.
    pub first: u32,
    pub flows: u32,
    /// Packets per second; `None`: flat out.
    pub rate: Option<f64>,
    pub duration: Duration,
}

/// A sender at work; until it is waited for, which its drop does as well: it would send into the next measurement.
pub struct Sending(Option<JoinHandle<std::io::Result<Result<Books>>>>);

/// Of each run, in their order.
pub type Books = Vec<(Sent, Outcome)>;

/// Sends 64-byte UDP to the peer, one load after the other, on a thread of the client's.
///
/// # Errors
/// No thread.
pub fn start(stage: &Stage, runs: Vec<Run>) -> Result<Sending> {
    let (route, vip_port) = (route(stage)?, stage.running.target.port());
    begin(stage, move |ready| {
        let mut end = Endpoint::open("eth0", 1)?;
        ready();
        let sent = runs.iter().map(|run| {
            let mut load = Load {
                maker: Maker::new(Route { first_client: client_of(run.first), ..route }, Mix::fixed(64)),
                draw: Draw::new(Popularity::Uniform, run.flows, 1),
                flows: run.flows,
                rate: run.rate,
                duration: run.duration,
                vip_port,
            };
            load::run(&mut end, &mut load)
        });
        Ok(sent.collect())
    })
}

/// Sends live frames of 64 bytes to the peer, flat out; nobody keeps books of them.
///
/// # Errors
/// No thread, or no live frames here.
pub fn start_live(stage: &Stage, flows: u32, duration: Duration) -> Result<Sending> {
    let maker = Maker::new(route(stage)?, Mix::fixed(64));
    begin(stage, move |ready| {
        let mut live = Live::open("eth0", &maker, flows, Popularity::Uniform, Share::WHOLE, 1)?;
        ready();
        Ok(vec![(live.run(None, duration, None)?, Outcome::default())])
    })
}

/// A thread of the client's on the generator's core; returns when it is ready to send, or has failed.
fn begin(stage: &Stage, send: impl FnOnce(&dyn Fn()) -> Result<Books> + Send + 'static) -> Result<Sending> {
    let (tell, told) = std::sync::mpsc::channel();
    let work = move || -> Result<_> {
        let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: GENERATOR_CORE });
        ensure!(pinned, "core {GENERATOR_CORE} can't be pinned to");
        // Who waited for it may be gone.
        send(&|| _ = tell.send(()))
    };
    let sending = Sending(Some(stage.lab.clients[0].ns.thread("generator", work)?));
    match told.recv() {
        Ok(()) => Ok(sending),
        Err(_) => bail!("the generator ended before it began: {:?}", sending.finish().err()),
    }
}

fn route(stage: &Stage) -> Result<Route> {
    let client = &stage.lab.clients[0].ns;
    let target = stage.running.target;
    let gateway = match stage.lab.topology() {
        crate::lab::Topology::TwoArm => "clients0",
        crate::lab::Topology::OneArm => "lan0",
    };
    Ok(Route {
        src_mac: mac_of(client, "eth0")?,
        dst_mac: mac_of(&stage.lab.the_box, gateway)?,
        first_client: client_of(0),
        vip: (*target.ip()).into(),
        vip_port: target.port(),
    })
}

/// The client of a flow, as `traffic::packet::Maker` numbers them.
fn client_of(flow: u32) -> IpAddr {
    IpAddr::V4((u32::from(FIRST_CLIENT) + flow / FLOWS_PER_CLIENT).into())
}

impl Sending {
    /// Waits for the end.
    ///
    /// # Errors
    /// It could not send.
    pub fn finish(mut self) -> Result<Books> {
        self.0.take().and_then(|thread| thread.join().ok()).context("the generator panicked")??
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            // Its time is bounded; what it failed with, `finish` tells.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn nobody_sends_into_the_next_measurement() {
        let ended = Arc::new(AtomicBool::new(false));
        let end = Arc::clone(&ended);
        drop(Sending(Some(std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            end.store(true, Ordering::Relaxed);
            Ok(Ok(Books::new()))
        }))));
        assert!(ended.load(Ordering::Relaxed));
    }
}
