//! The controller's part about answers: what came of the writes it ordered.

use std::time::Instant;

use k8s_openapi::api::core::v1::Service;

use super::backoff;
use super::controller::{Controller, Unwritten};
use super::events::Note;
use super::feed::api_error;
use super::job::{Done, RecordJob, RecordWrite, ServiceJob, Step};
use crate::crd::VipAllocation;
use crate::index::table::Change;
use crate::index::{self, Update, extract};

impl Controller {
    pub fn on_done(&mut self, done: Done, now: Instant, notes: &mut Vec<Note>) {
        match done {
            Done::Service { job, result } => self.on_service_done(job, result, now, notes),
            Done::Record { job, result } => self.on_record_done(job, result, now, notes),
            Done::PoolStatus { name, result: Err(error) } => {
                tracing::debug!(pool = &*name, "{}", api_error(&error));
            }
            Done::Box { result: Err(error) } => tracing::debug!("VipBox: {}", api_error(&error)),
            Done::PoolStatus { .. } | Done::Box { .. } => {}
        }
    }

    fn on_service_done(
        &mut self,
        job: ServiceJob,
        result: Result<Option<Box<Service>>, kube::Error>,
        now: Instant,
        notes: &mut Vec<Note>,
    ) {
        let retry = (self.kubernetes.timing.retry, self.kubernetes.timing.retry_max);
        let work = self.work.entry(job.key.clone()).or_default();
        work.in_flight = work.in_flight.saturating_sub(1);
        self.touched.insert(job.key.clone());
        // What became of a write to a Service that is no more says nothing of the one that has its name now.
        let is_current = work.uid == job.uid;
        match result {
            Ok(object) => {
                if is_current {
                    work.failures = 0;
                    work.not_before = None;
                    if let Step::Status(wanted) = &job.step {
                        work.written = Some(wanted.clone());
                    }
                }
                notes.extend(job.notes);
                if let Some(object) = object {
                    self.on_update(index::wrote_service(*object, &self.kubernetes), now);
                }
            }
            Err(error) if !is_current => tracing::debug!(service = %job.key, "{}", api_error(&error)),
            Err(error) => {
                // What the server will not have now it will not have in a moment either.
                let failures = if is_final(&error) { u32::MAX } else { work.failures };
                work.failures += 1;
                work.pardoned = true;
                work.not_before = Some(now + backoff::after(failures, retry.0, retry.1));
                tracing::debug!(service = %job.key, "{}", api_error(&error));
                // A conflict is the usual way of hearing that something changed meanwhile.
                let conflict = matches!(&error, kube::Error::Api(status) if status.code == 409);
                if (work.failures == 3 || failures == u32::MAX) && !conflict {
                    let message = format!("cannot write: {}", api_error(&error));
                    tracing::warn!(service = %job.key, "{message}");
                    notes.push(Note::warning(&job.key, &job.uid, "SyncLoadBalancerFailed", message));
                }
            }
        }
    }

    fn on_record_done(
        &mut self,
        job: RecordJob,
        result: Result<Option<Box<VipAllocation>>, kube::Error>,
        now: Instant,
        notes: &mut Vec<Note>,
    ) {
        self.records_in_flight.remove(&job.address);
        // Whatever came of it: while it was under way, its address counted as taken.
        self.capacity_changed();
        if let Some(key) = &job.service {
            let work = self.work.entry(key.clone()).or_default();
            work.in_flight = work.in_flight.saturating_sub(1);
            self.touched.insert(key.clone());
        }
        match result {
            Ok(object) => {
                self.record_backoff.remove(&job.address);
                notes.extend(job.notes);
                let change = match (object, &job.write) {
                    (Some(object), _) => match extract::record(&object) {
                        Some(record) => Change::Wrote(job.address, record),
                        None => return,
                    },
                    (None, RecordWrite::Delete { resource_version, .. }) => {
                        Change::Gone(job.address, resource_version.parse().unwrap_or(0))
                    }
                    (None, _) => return,
                };
                self.on_update(Update::Record(change), now);
            }
            Err(error) => {
                tracing::debug!(address = %job.address, "{}", api_error(&error));
                let failures = self.record_backoff.get(&job.address).map_or(0, |unwritten| unwritten.failures);
                let timing = &self.kubernetes.timing;
                let until = now + backoff::after(failures, timing.retry, timing.retry_max);
                let (failures, why) = (failures.saturating_add(1), api_error(&error));
                let exists = matches!(&error, kube::Error::Api(status) if status.code == 409)
                    && matches!(job.write, RecordWrite::Create(_));
                if failures == Unwritten::TOLD {
                    tracing::warn!(address = %job.address, "its record cannot be written: {why}");
                }
                self.record_backoff.insert(job.address, Unwritten { failures, until, why, exists });
            }
        }
    }
}

/// Invalid, or not permitted. (Not 401: a token that has expired is renewed.)
fn is_final(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 400 | 403 | 405 | 422))
}
