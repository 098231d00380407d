//! The API's state and its one way of changing: judge, check, publish, remember, keep on disk.
//!
//! Three locks, so that status answers while a large snapshot compiles, and health is heard while the disk hangs:
//! `writer` is held for a whole change, `disk` while it is kept, `state` only to look or to commit.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Instant;

use penstock_configs::api::{Accepted, Drain, Drains, OwnerSummary};
use penstock_configs::desired::{Desired, Health};
use penstock_configs::fault::Fault;
use penstock_configs::file::ConfigFile;
use penstock_configs::status::{Status, StatusQuery};
use penstock_configs::validate::{BoxContext, FILE_OWNER};

use super::engine::{Engine, Snapshots};
use super::faults::check_name;
use super::owners::{Judgement, Owners};
use super::refusal::Refusal;
use super::store::{Document, Restored, Store};
use super::{faults, overlay};

/// Notices kept; older ones are in the journal.
const NOTICES: usize = 32;

/// Faults named by one of them.
const FAULTS_NOTICED: usize = 8;

/// Shared by the API server and the watcher of the config file. Its calls compile tables and wait
/// for the disk: make them on a blocking thread.
#[derive(Clone)]
pub struct AdminHandle(Arc<Inner>);

struct Inner {
    engine: Arc<dyn Engine>,
    store: Store,
    writer: Mutex<()>,
    disk: Mutex<()>,
    state: RwLock<State>,
}

#[derive(Debug, Default, Clone)]
struct Overlays {
    /// By who checks: several clusters share a box, each with a control process of its own.
    health: BTreeMap<String, Health>,
    drains: Drains,
}

impl Overlays {
    fn merged(&self) -> Health {
        overlay::merged(self.health.values())
    }
}

#[derive(Default)]
struct State {
    owners: Owners,
    /// The box the snapshots are held against, and the file that says so, as the engine has it.
    context: Arc<BoxContext>,
    file: Option<Arc<ConfigFile>>,
    overlays: Overlays,
    /// Of the last publication; 0: none yet.
    epoch: u64,
    notices: Vec<String>,
    /// What the config file's last reading gave reason to say.
    file_notices: Vec<String>,
    /// Why this process goes on although the next one could serve more.
    start_notice: Option<String>,
    /// What the start had to say of documents that are served in part or not at all, until they are written or removed.
    unread: Vec<(Document, String)>,
    /// What is served and the disk would not take, with its words; tried again until it does.
    unkept: BTreeMap<Document, String>,
}

/// What a change came to.
struct Published {
    generation: Option<u64>,
    epoch: u64,
}

impl AdminHandle {
    /// Restores what `state_dir` holds, puts `file` in the place of the stored config file, and
    /// publishes all of it at once: flows that outlived a restart find their services in the first
    /// publication. The second value is how `file` fared; if badly, the stored one serves.
    #[must_use]
    pub fn start(
        engine: Arc<dyn Engine>,
        state_dir: &Path,
        context: BoxContext,
        file: Option<&ConfigFile>,
    ) -> (Self, Option<Result<Accepted, Refusal>>) {
        let store = Store::new(state_dir);
        let Restored { owners, drains, unread, notices } = store.load();
        let overlays = Overlays { health: BTreeMap::new(), drains };
        let running = file.cloned().map(Arc::new);
        let state = State { overlays, context: Arc::new(context.clone()), file: running, ..State::default() };
        let (writer, disk) = (Mutex::default(), Mutex::default());
        let admin = Self(Arc::new(Inner { engine, store, writer, disk, state: RwLock::new(state) }));
        for notice in notices {
            admin.notice(notice);
        }
        for (document, said) in unread {
            admin.unread(document, said);
        }
        let mut stored: Snapshots = owners.into_iter().map(|(name, desired)| (name, Arc::new(desired))).collect();
        let previous = stored.remove(FILE_OWNER);
        let offered = file.map(|file| Arc::new(next_of(file, previous.as_deref())));
        let files = [offered, previous].into_iter().flatten().collect();
        admin.restore(stored, files);
        let outcome = file.map(|file| admin.apply_file(file, context));
        (admin, outcome)
    }

    /// Publishes what lay on disk, with the first of `files` that goes with it: one publication, for
    /// a flow whose service is missing from it would be revoked. What does not go together stays on
    /// disk, and is named. The file is the newcomer here: others hold their VIPs already.
    fn restore(&self, stored: Snapshots, files: Vec<Arc<Desired>>) {
        let _writer = self.writer();
        let context = self.context();
        let mut good = Snapshots::new();
        for (name, desired) in stored {
            match faults::fitting(&name, &desired, &good, &context) {
                Ok((part, faults)) if faults.is_empty() => drop(good.insert(name, Arc::new(part))),
                Ok((part, faults)) => {
                    let said = format!(
                        "owner `{name}`: left out at this start, the rest is served:{}; mend it and send the snapshot again",
                        listed(&faults)
                    );
                    self.unread(Document::Owner(name.clone()), said);
                    // Less than its generation: whoever looks sees that, and is not refused for sending it again.
                    let generation = part.generation.saturating_sub(1);
                    good.insert(name, Arc::new(Desired { generation, ..part }));
                }
                Err(why) => self.leave_out(&name, &why),
            }
        }
        let mut with_file = good.clone();
        for file in files {
            if let Err(why) = faults::check(FILE_OWNER, &file, &good, &context) {
                self.leave_out(FILE_OWNER, &why);
                continue;
            }
            with_file.insert(FILE_OWNER.to_owned(), file);
            if self.restored(&with_file).is_ok() {
                return;
            }
        }
        self.restore_most(with_file);
    }

    fn restored(&self, snapshots: &Snapshots) -> Result<(), Refusal> {
        let epoch = self.publish(None, snapshots)?;
        let mut state = self.write();
        for (name, desired) in snapshots {
            state.owners.accept(name, Arc::clone(desired), epoch);
        }
        Ok(())
    }

    /// Leaves owners out, one by one, until the engine takes the rest.
    fn restore_most(&self, mut snapshots: Snapshots) {
        while !snapshots.is_empty() {
            let Err(refusal) = self.restored(&snapshots) else { return };
            let Some(name) = self.culprit(&snapshots) else { return };
            self.leave_out(&name, &refusal);
            snapshots.remove(&name);
        }
    }

    /// The owner without whom the rest is accepted, else the last one: always some progress.
    fn culprit(&self, snapshots: &Snapshots) -> Option<String> {
        let helps = |name: &&String| {
            let mut rest = snapshots.clone();
            rest.remove(*name);
            !rest.is_empty() && self.publish(None, &rest).is_ok()
        };
        snapshots.keys().rev().find(helps).or_else(|| snapshots.keys().next_back()).cloned()
    }

    fn leave_out(&self, name: &str, why: &Refusal) {
        self.write().owners.refuse(name, why.to_string());
        let said = format!("the snapshot of owner `{name}` can not be served: {why}");
        self.unread(Document::Owner(name.to_owned()), said);
    }

    /// `PUT /v1/desired/{owner}`.
    ///
    /// # Errors
    /// Everything that stands against it; the owner's snapshot before it goes on being served.
    pub fn put(&self, owner: &str, json: &[u8]) -> Result<Accepted, Refusal> {
        check_name(owner)?;
        if owner == FILE_OWNER {
            return Err(Refusal::FileOwner);
        }
        let context = self.context();
        let desired = faults::snapshot(owner, json, &context).inspect_err(|why| self.refused(owner, why))?;
        let desired = Arc::new(desired);
        self.change(Some(Document::Owner(owner.to_owned())), || {
            let outcome = self.replace(owner, &desired, &context);
            self.told(owner, &desired, outcome)
        })
    }

    /// The caller holds the writer's lock; `desired` is valid by itself in the box of `context`.
    fn replace(&self, owner: &str, desired: &Arc<Desired>, context: &Arc<BoxContext>) -> Result<u64, Refusal> {
        self.write().owners.forget_ended(Instant::now());
        let (judgement, mut snapshots) =
            self.read(|state| (state.owners.judge(owner, desired), state.owners.snapshots()));
        if let Judgement::Unchanged { epoch } = judgement? {
            self.write().owners.confirm(owner);
            return Ok(epoch);
        }
        snapshots.remove(owner);
        let now = self.context();
        if Arc::ptr_eq(context, &now) {
            faults::claims(owner, desired, &snapshots)?;
        } else {
            // The file was reloaded meanwhile, and this was not among what it was held against.
            faults::check(owner, desired, &snapshots, &now)?;
        }
        snapshots.insert(owner.to_owned(), Arc::clone(desired));
        let epoch = self.publish(None, &snapshots)?;
        self.write().owners.accept(owner, Arc::clone(desired), epoch);
        Ok(epoch)
    }

    /// The config file changed; `context` is the box it describes. Its generation is counted here. The box and its
    /// services are one change: judged together, with what other owners have on this box, and published together.
    ///
    /// # Errors
    /// Everything that stands against it: the file before it goes on being served, and being what others are held
    /// against.
    pub fn apply_file(&self, file: &ConfigFile, context: BoxContext) -> Result<Accepted, Refusal> {
        let context = Arc::new(context);
        self.change(Some(Document::Owner(FILE_OWNER.to_owned())), || {
            let served = self.read(|state| state.owners.get(FILE_OWNER).cloned());
            let desired = Arc::new(next_of(file, served.as_deref()));
            let outcome = self.replace_file(file, &desired, context);
            self.told(FILE_OWNER, &desired, outcome)
        })
    }

    /// The caller holds the writer's lock.
    fn replace_file(
        &self,
        file: &ConfigFile,
        desired: &Arc<Desired>,
        context: Arc<BoxContext>,
    ) -> Result<u64, Refusal> {
        let (mut snapshots, epoch, same) = self.read(|state| {
            let same = state.file.as_deref() == Some(file) && state.owners.get(FILE_OWNER) == Some(desired);
            (state.owners.snapshots(), state.owners.epoch(FILE_OWNER), same)
        });
        snapshots.remove(FILE_OWNER);
        faults::check(FILE_OWNER, desired, &snapshots, &context)?;
        faults::others(&snapshots, &context)?;
        snapshots.insert(FILE_OWNER.to_owned(), Arc::clone(desired));
        let epoch = match epoch.filter(|_| same) {
            Some(epoch) => epoch,
            None => self.publish(Some(file), &snapshots)?,
        };
        let mut state = self.write();
        state.context = context;
        if same {
            state.owners.confirm(FILE_OWNER);
        } else {
            state.file = Some(Arc::new(file.clone()));
            state.owners.accept(FILE_OWNER, Arc::clone(desired), epoch);
        }
        Ok(epoch)
    }

    /// How a snapshot fared: for the log, and for whoever asks.
    fn told(&self, owner: &str, desired: &Desired, outcome: Result<u64, Refusal>) -> Result<Published, Refusal> {
        let (services, generation) = (desired.services.len(), desired.generation);
        let epoch = outcome.inspect_err(|why| self.refused(owner, why))?;
        tracing::info!(owner, generation, services, epoch, "snapshot accepted");
        Ok(Published { generation: Some(generation), epoch })
    }

    fn refused(&self, owner: &str, why: &Refusal) {
        if self.write().owners.refuse(owner, why.to_string()) {
            tracing::warn!(owner, "snapshot refused: {why}");
        }
    }

    /// A change under the writer's lock. Then the disk follows without it, for it may be slow, and others do not wait.
    fn change(
        &self,
        document: Option<Document>,
        work: impl FnOnce() -> Result<Published, Refusal>,
    ) -> Result<Accepted, Refusal> {
        let writer = self.writer();
        let Published { generation, epoch } = work()?;
        drop(writer);
        // Also of what was there already: an earlier write may have failed, and it is said again rather than claimed
        // to be kept.
        let warnings = document.and_then(|document| self.keep(document)).into_iter().collect();
        Ok(Accepted { generation, epoch, acknowledged: self.0.engine.acknowledged() >= epoch, warnings })
    }

    /// `DELETE /v1/desired/{owner}`. A `term`, if given, fences off an old leader; without one the
    /// operator has the last word. The owner's history goes too, but for its term: a leader of before
    /// can't bring it back. A leader that only wants nothing served sends an empty snapshot instead.
    ///
    /// # Errors
    /// The owner is unknown or the config file's, the term is over, or the rest can't be published.
    pub fn delete(&self, owner: &str, term: Option<u64>) -> Result<Accepted, Refusal> {
        check_name(owner)?;
        if owner == FILE_OWNER {
            return Err(Refusal::FileOwner);
        }
        // What was left out at the start lies on the disk still, for a start that it goes with.
        let stored = if self.desired(owner).is_none() { self.0.store.owner_term(owner) } else { None };
        self.change(Some(Document::Owner(owner.to_owned())), || self.remove(owner, term, stored))
    }

    /// The caller holds the writer's lock. `stored`: the term on disk of an owner that was not served.
    fn remove(&self, owner: &str, term: Option<u64>, stored: Option<Option<u64>>) -> Result<Published, Refusal> {
        let mut snapshots = self.read(|state| state.owners.snapshots());
        let removed = snapshots.remove(owner).map(|removed| removed.term).or(stored);
        let Some(removed) = removed else { return Err(Refusal::UnknownOwner(owner.into())) };
        if let (Some(offered), Some(held)) = (term, removed)
            && offered < held
        {
            return Err(Refusal::StaleTerm { owner: owner.into(), offered, held });
        }
        // What its checker said goes with it.
        self.write().overlays.health.remove(owner);
        let epoch = self.publish(None, &snapshots)?;
        self.write().owners.remove(owner, removed, Instant::now());
        tracing::info!(owner, epoch, "owner deleted");
        Ok(Published { generation: None, epoch })
    }

    /// `PUT /v1/health`, of one source, in the place of what it said before; the worse of two sources' verdicts holds.
    ///
    /// # Errors
    /// The faults in it; the health before it holds.
    pub fn put_health(&self, source: &str, json: &[u8]) -> Result<Accepted, Refusal> {
        if !source.is_empty() {
            check_name(source)?;
        }
        let health = faults::health(json)?;
        let set = |overlays: &mut Overlays, _: &Snapshots| {
            if health.backends.is_empty() {
                overlays.health.remove(source);
            } else {
                overlays.health.insert(source.to_owned(), health);
            }
            Ok(())
        };
        self.change(None, || self.put_overlays(set))
    }

    /// `PUT /v1/drain/{target}`, target a node's name or an address.
    ///
    /// # Errors
    /// Nobody has such a node, or several do.
    pub fn drain(&self, target: &str, drain: Drain) -> Result<Accepted, Refusal> {
        self.change_drains(|drains, snapshots| {
            overlay::check_target(target, snapshots)?;
            drains.insert(target.to_owned(), Drain { addresses: Vec::new(), ..drain });
            Ok(())
        })
    }

    /// `DELETE /v1/drain/{target}`.
    ///
    /// # Errors
    /// It was not drained.
    pub fn undrain(&self, target: &str) -> Result<Accepted, Refusal> {
        self.change_drains(|drains, _| {
            drains.remove(target).map(drop).ok_or_else(|| Refusal::NotDrained(target.to_owned()))
        })
    }

    fn change_drains(
        &self,
        change: impl FnOnce(&mut Drains, &Snapshots) -> Result<(), Refusal>,
    ) -> Result<Accepted, Refusal> {
        self.change(Some(Document::Drains), || {
            self.put_overlays(|overlays, snapshots| change(&mut overlays.drains, snapshots))
        })
    }

    /// The caller holds the writer's lock. What changes nothing is not published again: a checker
    /// may repeat itself every second.
    fn put_overlays(
        &self,
        change: impl FnOnce(&mut Overlays, &Snapshots) -> Result<(), Refusal>,
    ) -> Result<Published, Refusal> {
        let (mut overlays, snapshots, epoch) =
            self.read(|state| (state.overlays.clone(), state.owners.snapshots(), state.epoch));
        let before = overlay::effective(&overlays.merged(), &overlays.drains, &snapshots);
        change(&mut overlays, &snapshots)?;
        let health = overlay::effective(&overlays.merged(), &overlays.drains, &snapshots);
        let epoch = if health == before && epoch > 0 { epoch } else { self.apply(None, &snapshots, &health)? };
        self.write().overlays = overlays;
        Ok(Published { generation: None, epoch })
    }

    fn publish(&self, file: Option<&ConfigFile>, snapshots: &Snapshots) -> Result<u64, Refusal> {
        self.apply(file, snapshots, &self.effective(snapshots))
    }

    fn apply(&self, file: Option<&ConfigFile>, snapshots: &Snapshots, health: &Health) -> Result<u64, Refusal> {
        let epoch = self.0.engine.apply(file, snapshots, health).map_err(Refusal::Faults)?;
        self.write().epoch = epoch;
        Ok(epoch)
    }

    fn effective(&self, snapshots: &Snapshots) -> Health {
        self.read(|state| overlay::effective(&state.overlays.merged(), &state.overlays.drains, snapshots))
    }

    /// Brings the disk to what is served now, whichever change that was; what it has against that.
    fn keep(&self, document: Document) -> Option<String> {
        let _disk = self.0.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let store = &self.0.store;
        let outcome = match &document {
            Document::Owner(owner) => match self.desired(owner) {
                Some(desired) => store.save_owner(owner, &desired),
                None => store.remove_owner(owner),
            },
            Document::Drains => store.save_drains(&self.read(|state| state.overlays.drains.clone())),
        };
        let why = outcome.err().map(|error| error.to_string());
        let mut state = self.write();
        let before = match &why {
            Some(why) => state.unkept.insert(document, why.clone()),
            None => {
                state.unread.retain(|(of, _)| *of != document);
                state.unkept.remove(&document)
            }
        };
        drop(state);
        match (&why, before) {
            (Some(why), before) if before.as_ref() != Some(why) => tracing::warn!("{why}"),
            (None, Some(before)) => tracing::info!("mended, it is kept now: {before}"),
            _ => {}
        }
        why
    }

    /// Tries again what the disk would not take. Waits for the disk: call it on a blocking thread.
    pub fn keep_again(&self) {
        for document in self.read(|state| state.unkept.keys().cloned().collect::<Vec<_>>()) {
            self.keep(document);
        }
    }

    #[must_use]
    pub fn has_unkept(&self) -> bool {
        self.read(|state| !state.unkept.is_empty())
    }

    #[must_use]
    pub fn engine(&self) -> &dyn Engine {
        &*self.0.engine
    }

    fn context(&self) -> Arc<BoxContext> {
        self.read(|state| Arc::clone(&state.context))
    }

    #[must_use]
    pub fn desired(&self, owner: &str) -> Option<Arc<Desired>> {
        self.read(|state| state.owners.get(owner).cloned())
    }

    #[must_use]
    pub fn summaries(&self) -> Vec<OwnerSummary> {
        self.read(|state| state.owners.summaries())
    }

    #[must_use]
    pub fn health(&self, source: Option<&str>) -> Health {
        self.read(|state| match source {
            Some(source) => state.overlays.health.get(source).cloned().unwrap_or_default(),
            None => state.overlays.merged(),
        })
    }

    /// With the addresses each name stands for now.
    #[must_use]
    pub fn drains(&self) -> Drains {
        self.read(|state| {
            let snapshots = state.owners.snapshots();
            let mut drains = state.overlays.drains.clone();
            for (target, drain) in &mut drains {
                drain.addresses = overlay::resolve(target, &snapshots);
            }
            drains
        })
    }

    /// The engine's status with what only the API knows: owners, and the notices of both.
    #[must_use]
    pub fn status(&self, query: &StatusQuery) -> Status {
        let mut status = self.0.engine.status(query);
        let acknowledged = self.0.engine.acknowledged();
        let mut state = self.write();
        state.owners.settle(acknowledged);
        status.owners = state.owners.status();
        let said = state.notices.iter().chain(&state.file_notices).chain(&state.start_notice);
        let of_documents = state.unread.iter().map(|(_, said)| said).chain(state.unkept.values());
        status.notices.extend(said.chain(of_documents).cloned());
        drop(state);
        for (target, drain) in self.drains() {
            if drain.addresses.is_empty() {
                status.notices.push(format!("drain of `{target}` matches no node now; penstock undrain {target}"));
            }
        }
        status
    }

    fn unread(&self, document: Document, said: String) {
        tracing::warn!("{said}");
        self.write().unread.push((document, said));
    }

    /// Something the operator should see in `penstock status`.
    pub fn notice(&self, text: String) {
        tracing::warn!("{text}");
        let mut state = self.write();
        state.notices.retain(|known| *known != text);
        if state.notices.len() >= NOTICES {
            state.notices.remove(0);
        }
        state.notices.push(text);
    }

    /// Replaces what is said of the config file: another reading, other faults. Logs what is news: a refused file is
    /// read again and again.
    pub fn file_notices(&self, texts: Vec<String>) {
        let before = std::mem::replace(&mut self.write().file_notices, texts.clone());
        for text in texts.iter().filter(|text| !before.contains(text)) {
            tracing::warn!("{text}");
        }
    }

    /// Replaces what stands against ending for the next start, which could serve more.
    pub fn start_notice(&self, text: Option<String>) {
        let before = std::mem::replace(&mut self.write().start_notice, text.clone());
        if let Some(text) = text.filter(|text| before.as_ref() != Some(text)) {
            tracing::error!("{text}");
        }
    }

    // A panic in one request must not take the API away: every guarded value is replaced whole.
    fn writer(&self) -> MutexGuard<'_, ()> {
        self.0.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.0.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.0.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Faults for a notice: most of what one mistake brings about.
fn listed(faults: &[Fault]) -> String {
    let more = faults.len().saturating_sub(FAULTS_NOTICED);
    let mut text: String = faults.iter().take(FAULTS_NOTICED).map(|fault| format!("\n  {fault}")).collect();
    if more > 0 {
        text += &format!("\n  and {more} more");
    }
    text
}

/// The file's snapshot under the generation served now, if it says the same, else the next.
fn next_of(file: &ConfigFile, served: Option<&Desired>) -> Desired {
    let generation = served.map_or(1, |served| {
        let unchanged = *served == file.desired(served.generation);
        served.generation + u64::from(!unchanged)
    });
    file.desired(generation)
}
