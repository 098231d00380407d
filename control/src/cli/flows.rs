//! `penstock flows`: who talks to whom through the box.

use std::fmt::Write;

use clap::Args;
use penstock_configs::status::{Endpoint, FlowQuery, FlowStatus};

use super::failure::Outcome;
use super::screen::Screen;
use super::table::{Column, Table};
use super::units::duration;
use crate::client::Dataplane;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Of this client: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    client: Option<Endpoint>,
    /// To this VIP: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<Endpoint>,
    /// On this backend: ADDRESS or ADDRESS:PORT
    #[arg(long, value_name = "ADDRESS")]
    backend: Option<Endpoint>,
    /// Of this service, by its whole name
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// At most this many
    #[arg(short = 'n', long, default_value_t = 100, value_name = "COUNT")]
    limit: usize,
    /// The dataplane's own JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(dataplane: &Dataplane, screen: &Screen, arguments: &Arguments) -> Outcome {
    let query = FlowQuery {
        client: arguments.client,
        vip: arguments.vip,
        backend: arguments.backend,
        service: arguments.service.clone(),
    };
    // One more than shown tells whether there are more.
    let mut flows = dataplane.flows(&query, arguments.limit.saturating_add(1)).await?;
    let more = flows.len() > arguments.limit;
    flows.truncate(arguments.limit);
    if arguments.json {
        return screen.print(&(serde_json::to_string_pretty(&flows)? + "\n"));
    }
    if flows.is_empty() {
        return screen.print(if query == FlowQuery::default() { "no flows\n" } else { "no flows match\n" });
    }
    let mut out = render(&flows, screen);
    if more {
        let _ = writeln!(out, "... and more; narrow the filters or raise --limit");
    }
    screen.print(&out)
}

fn render(flows: &[FlowStatus], screen: &Screen) -> String {
    // SNAT and worker matter to those who debug; on a narrow screen the tuple itself goes first.
    let wide = screen.width.is_none_or(|width| width >= 120);
    let mut columns = vec![
        ("PROTO", Column::Left),
        ("CLIENT", Column::Left),
        ("VIP", Column::Left),
        ("BACKEND", Column::Left),
        ("STATE", Column::Cut),
        ("IDLE", Column::Right),
    ];
    if wide {
        columns.extend([
            ("EXPIRES", Column::Right),
            ("SNAT", Column::Left),
            ("WORKER", Column::Right),
            ("SERVICE", Column::Name),
        ]);
    }
    let mut table = Table::new(&columns);
    for flow in flows {
        let mut cells = vec![
            flow.protocol.as_str().into(),
            flow.client.to_string().into(),
            flow.vip.to_string().into(),
            flow.backend.to_string().into(),
            flow.state.as_str().into(),
            duration(flow.idle_seconds).into(),
        ];
        if wide {
            cells.extend([
                duration(flow.expires_seconds).into(),
                flow.snat.map_or_else(|| "-".to_owned(), |snat| snat.to_string()).into(),
                flow.worker.to_string().into(),
                flow.service.as_str().into(),
            ]);
        }
        table.row(cells);
    }
    table.render(screen)
}
