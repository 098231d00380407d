//! The measurements, one after the other, over one cluster.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::ScaleArgs;
use super::cluster::{self, edit, is_done, node_name, service_name};
use super::process::{cpu_time, peak_memory};
use super::report::{Report, median};
use crate::apiserver::ApiServer;
use crate::clients::run_here;
use crate::config;
use crate::dataplane::Dataplane;
use crate::demo::narrator::Narrator;
use crate::kubelab::{Control, Place, V1};
use crate::lab::Lab;

const OWNER: &str = "kubernetes";
/// For a step of thousands of writes, on a machine that does something else as well.
const PATIENCE: Duration = Duration::from_secs(300);
/// Without a request or a snapshot for so long control is at rest.
const QUIET: Duration = Duration::from_secs(2);

/// Fields are dropped in order: processes, API server, network.
struct Bench {
    control: Control,
    dataplane: Dataplane,
    server: std::sync::Arc<ApiServer>,
    lab: Lab,
}

pub(super) fn run(args: &ScaleArgs, narrator: &Narrator) -> Result<Report> {
    let mut report = Report::new(args.services, args.nodes, args.local);
    narrator.step("A cluster", "The API server in this process, the dataplane in a lab.");
    let lab = cluster::lab()?;
    let server = cluster::server(&lab.the_box, args, narrator)?;
    let mut config = config::base(&lab, 2);
    config.nodes.clear();
    config.sets.clear();
    let dataplane = Dataplane::start(&lab, &config)?;
    let control = start_control(&lab, &dataplane, &server)?;
    let mut bench = Bench { control, dataplane, server, lab };

    narrator.step("The first full sync", "Finalizer, address, snapshot, status and Events of each Service.");
    bench.first_sync(args, narrator, &mut report)?;
    narrator
        .step("Single edits", "A port changes; until the dataplane has the snapshot, and until every worker runs it.");
    bench.edits(args, &mut report)?;
    narrator.step("A node flaps", "NotReady and back; then away and back.");
    bench.flap(args, &mut report)?;
    narrator.step("Rest", "Health checks go on.");
    bench.rest(args, &mut report)?;
    narrator.step("Control is started anew", "All is there: one snapshot, and nothing to write.");
    bench.restart(&mut report)?;
    Ok(report)
}

/// With the settings a box comes with.
fn start_control(lab: &Lab, dataplane: &Dataplane, server: &ApiServer) -> Result<Control> {
    let kubeconfig = lab.path("kubeconfig.yaml")?;
    std::fs::write(&kubeconfig, server.kubeconfig(cluster::token()))?;
    let place = Place { ns: &lab.the_box, dir: lab.dir(), box_name: "lab", dataplane: dataplane.socket() };
    Control::with(&place, &format!("[kubernetes]\nkubeconfig = \"{}\"\n", kubeconfig.display()))
}

impl Bench {
    fn pid(&self) -> Result<u32> {
        self.control.pid().context("control does not run")
    }

    fn cpu(&self) -> Result<f64> {
        Ok(cpu_time(self.pid()?)?.as_secs_f64())
    }

    fn first_sync(&self, args: &ScaleArgs, narrator: &Narrator, report: &mut Report) -> Result<()> {
        let began = Instant::now();
        let progress = narrator.progress("Services with their address", args.services as u64);
        let mut done = 0;
        while done < args.services {
            if began.elapsed() > PATIENCE {
                bail!("{done} of {} Services after {PATIENCE:?}\n{}", args.services, self.control.log_tail());
            }
            std::thread::sleep(Duration::from_millis(250));
            done = self.server.count_of(V1, "Service", is_done);
            progress.at(done as u64);
        }
        progress.done(&format!("{} s", began.elapsed().as_secs()));
        let took = began.elapsed();
        self.rests()?;
        report.target("first full sync: control's own time", self.cpu()?, "s", 10.0);
        report.beside("  by the clock, API server and dataplane included", took.as_secs_f64(), "s");
        report.beside("  snapshots", self.generation()? as f64, "");
        let requests = self.server.requests();
        let writes = requests.iter().filter(|r| !is_read(r.asked.verb));
        report.beside("  writes to the API server", writes.count() as f64, "");
        report.beside(
            "  of these refused or in conflict",
            requests.iter().filter(|r| r.code >= 400).count() as f64,
            "",
        );
        Ok(())
    }

    fn edits(&self, args: &ScaleArgs, report: &mut Report) -> Result<()> {
        let (mut reached, mut run) = (Vec::new(), Vec::new());
        let (mut own, mut dataplanes) = (0.0, 0.0);
        let dataplane = self.dataplane.pid().context("the dataplane does not run")?;
        for index in 0..args.edits {
            let place = format!("default/{}", service_name(index * 31 % args.services));
            let generation = self.generation()?;
            let port = 1000 + index;
            let before = (self.cpu()?, cpu_time(dataplane)?);
            let began = Instant::now();
            edit(&self.server, "Service", &place, |s| s["spec"]["ports"][0]["port"] = json!(port))?;
            self.until("the edit's snapshot", || Ok(self.generation()? > generation))?;
            reached.push(began.elapsed());
            self.until("the edit's acknowledgement", || self.acknowledged(generation + 1))?;
            run.push(began.elapsed());
            own += self.cpu()? - before.0;
            dataplanes += (cpu_time(dataplane)? - before.1).as_secs_f64();
            self.rests()?;
        }
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        report.target(
            "one Service edit until the dataplane has it, median",
            milliseconds(median(&mut reached)),
            "ms",
            100.0,
        );
        report.beside("  the slowest", milliseconds(reached.last().copied().unwrap_or_default()), "ms");
        report.beside("  until every worker runs it, median", milliseconds(median(&mut run)), "ms");
        report.beside("  control's own time in it", own * 1e3 / args.edits as f64, "ms");
        report.beside("  the dataplane's, its workers' included", dataplanes * 1e3 / args.edits as f64, "ms");
        Ok(())
    }

    fn flap(&self, args: &ScaleArgs, report: &mut Report) -> Result<()> {
        let name = node_name(args.nodes / 2);
        let before = self.generation()?;
        for ready in ["False", "True"] {
            edit(&self.server, "Node", &name, |n| n["status"]["conditions"][0]["status"] = json!(ready))?;
            self.rests()?;
        }
        report.target("a node NotReady and back: snapshots", (self.generation()? - before) as f64, "", 0.0);
        let node = self.server.get(V1, "Node", &name).context("the node")?;
        let (before, cpu) = (self.generation()?, self.cpu()?);
        let deleted = self.server.delete(V1, "Node", &name);
        deleted.map_err(|error| anyhow::anyhow!("deleting {name}: {error:?}"))?;
        self.until("the snapshot without the node", || Ok(self.generation()? > before))?;
        self.rests()?;
        let gone = self.generation()?;
        report.target("a node gone: snapshots", (gone - before) as f64, "", 1.0);
        report.beside("  control's own time", (self.cpu()? - cpu) * 1e3, "ms");
        self.server.put_raw(&node).map_err(|error| anyhow::anyhow!("putting {name}: {error:?}"))?;
        self.until("the snapshot with the node", || Ok(self.generation()? > gone))?;
        self.rests()?;
        report.target("and back: snapshots", (self.generation()? - gone) as f64, "", 1.0);
        Ok(())
    }

    fn rest(&self, args: &ScaleArgs, report: &mut Report) -> Result<()> {
        let (before, began) = (self.cpu()?, Instant::now());
        std::thread::sleep(Duration::from_secs(args.rest));
        let share = (self.cpu()? - before) / began.elapsed().as_secs_f64();
        report.target("at rest: of a core", share * 100.0, "%", 1.0);
        report.target("memory, the most it ever had", peak_memory(self.pid()?)? as f64 / 1e6, "MB", 512.0);
        Ok(())
    }

    fn restart(&mut self, report: &mut Report) -> Result<()> {
        let before = self.generation()?;
        self.control.kill()?;
        self.server.forget_requests();
        let began = Instant::now();
        self.control.start_again()?;
        self.until("the snapshot of a new process", || Ok(self.generation()? > before))?;
        let reached = began.elapsed();
        self.rests()?;
        report.beside("a restart: until the dataplane has its snapshot", reached.as_secs_f64(), "s");
        report.beside("  control's own time", self.cpu()?, "s");
        let writes = self.server.requests_that(|r| {
            matches!(r.asked.resource.as_str(), "services/status" | "vipallocations") && !is_read(r.asked.verb)
        });
        report.target("  writes to Services and address records", writes as f64, "", 0.0);
        Ok(())
    }

    fn generation(&self) -> Result<u64> {
        let owners = run_here(self.dataplane.api().owners())?;
        Ok(owners.iter().find(|owner| owner.owner == OWNER).map_or(0, |owner| owner.generation))
    }

    /// Whether every worker runs this generation, or a later one.
    fn acknowledged(&self, generation: u64) -> Result<bool> {
        let query = penstock_configs::status::StatusQuery { services: Some(0), ..Default::default() };
        let status = run_here(self.dataplane.api().status_of(&query))?;
        Ok(status.owners.iter().any(|owner| owner.owner == OWNER && owner.acknowledged >= generation))
    }

    /// Until no request and no snapshot has come for a while.
    fn rests(&self) -> Result<()> {
        // The Lease's renewals and the box's sign of life are no work.
        let is_work = |resource: &str| resource != "leases" && !resource.starts_with("vipboxes");
        let done = || {
            let writes = self.server.requests_that(|r| !is_read(r.asked.verb) && is_work(&r.asked.resource));
            Ok::<_, anyhow::Error>((writes, self.generation()?))
        };
        let (began, mut since, mut last) = (Instant::now(), Instant::now(), done()?);
        while since.elapsed() < QUIET {
            std::thread::sleep(Duration::from_millis(100));
            let now = done()?;
            if now != last {
                (since, last) = (Instant::now(), now);
            }
            if began.elapsed() > PATIENCE {
                bail!("control does not come to rest\n{}", self.control.log_tail());
            }
        }
        Ok(())
    }

    fn until(&self, what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
        let began = Instant::now();
        while !is()? {
            if began.elapsed() > PATIENCE {
                bail!("waited in vain: {what}\n{}\n{}", self.control.log_tail(), self.lab.id());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

fn is_read(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}
