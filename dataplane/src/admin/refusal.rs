//! Why a request was refused, in words for the person who sent it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use penstock_configs::api::{ApiFault, Refused};
use penstock_configs::fault::Fault;
use thiserror::Error;

/// Faults named in one answer; a thousand more would only hide the first.
const FAULTS_SHOWN: usize = 100;

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    #[error("{}; {}", .0.problem, .0.remedy)]
    OwnerName(Box<Fault>),
    #[error(
        "owner `file` is the dataplane's own config file: edit the file and reload (systemctl reload \
         penstock-dataplane), or use another owner name"
    )]
    FileOwner,
    #[error("no owner `{0}`; GET /v1/desired lists those there are")]
    UnknownOwner(String),
    #[error(
        "term {offered} of owner `{owner}` is over: term {held} leads now. The sender is no longer the leader and \
         must stop writing"
    )]
    StaleTerm { owner: String, offered: u64, held: u64 },
    #[error(
        "owner `{owner}` has an elected leader (term {held}), and this snapshot carries no term. To take over by \
         hand, stop penstock-control and DELETE /v1/desired/{owner} first"
    )]
    MissingTerm { owner: String, held: u64 },
    #[error(
        "generation {offered} of owner `{owner}` is older than generation {held}, which is served; send a \
         generation above {held}"
    )]
    StaleGeneration { owner: String, offered: u64, held: u64 },
    #[error(
        "generation {generation} of owner `{owner}` is served already with other content; send changed content \
         under a generation above {generation}"
    )]
    Conflict { owner: String, generation: u64 },
    #[error("{}", summary(.0))]
    Faults(Vec<Fault>),
    #[error("the body {}; {}", .0.problem, .0.remedy)]
    NotJson(Box<Fault>),
    #[error("bad query: {0}")]
    Query(String),
    #[error("the body is larger than {limit} MB")]
    TooLarge { limit: usize },
    #[error("the body did not arrive whole: {0}")]
    Body(String),
    #[error("no owner has a node or backend `{target}`{}", suggestion(.nearest.as_deref()))]
    UnknownTarget { target: String, nearest: Option<String> },
    #[error("`{target}` is the name of different nodes of {owners}; name its address instead")]
    AmbiguousTarget { target: String, owners: String },
    #[error("`{0}` is not drained; `penstock drain` (GET /v1/drain) lists what is")]
    NotDrained(String),
    #[error("no such endpoint: {0}; README.md lists them")]
    NoEndpoint(String),
    #[error("{0} does not take this method")]
    Method(String),
    #[error("internal error: {0}; please report it with the journal of penstock-dataplane")]
    Internal(String),
}

fn summary(faults: &[Fault]) -> String {
    match faults {
        [] => "refused, with no fault named".to_owned(),
        [only] => only.to_string(),
        [first, ..] => format!("{} faults, the first: {first}", faults.len()),
    }
}

fn suggestion(nearest: Option<&str>) -> String {
    nearest.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

impl Refusal {
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::OwnerName(_) | Self::NotJson(_) | Self::Query(_) | Self::Body(_) => StatusCode::BAD_REQUEST,
            Self::UnknownOwner(_) | Self::UnknownTarget { .. } | Self::NotDrained(_) | Self::NoEndpoint(_) => {
                StatusCode::NOT_FOUND
            }
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::FileOwner
            | Self::StaleTerm { .. }
            | Self::MissingTerm { .. }
            | Self::StaleGeneration { .. }
            | Self::Conflict { .. }
            | Self::AmbiguousTarget { .. } => StatusCode::CONFLICT,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Faults(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    #[must_use]
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Faults(faults) => faults,
            Self::OwnerName(fault) | Self::NotJson(fault) => std::slice::from_ref(fault),
            _ => &[],
        }
    }

    fn body(&self) -> Refused {
        let shown = self.faults().iter().take(FAULTS_SHOWN).map(|fault| ApiFault {
            path: fault.path.clone(),
            problem: fault.problem.clone(),
            remedy: fault.remedy.clone(),
        });
        Refused { error: self.to_string(), faults: shown.collect() }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status(), Json(self.body())).into_response()
    }
}
