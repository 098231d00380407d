//! Faults on purpose.

use std::time::Duration;

use super::object::ApiError;
use super::request::Asked;

/// Which requests a fault befalls; an empty field means any.
#[derive(Debug, Clone, PartialEq)]
pub struct Fault {
    verb: String,
    resource: String,
    name: String,
    act: Act,
    left: Option<u32>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Act {
    /// The connection ends without an answer. The write, if it is one, has not happened.
    Drop,
    /// The write happens, and then the connection ends: the client cannot know.
    DropAfter,
    /// No answer, for as long as the client waits.
    Hang,
    Delay(Duration),
    Refuse(ApiError),
    /// 410 at the start: of a watch or a list the HTTP answer itself, as some servers and proxies do.
    Gone,
    /// Of a watch: HTTP 200, then an ERROR event with code 410.
    GoneInStream,
    /// Of a watch: HTTP 200, then this as an ERROR event.
    ErrorInStream(ApiError),
    /// Of a watch: HTTP 200 and the end.
    EndAtOnce,
}

impl Fault {
    /// `verb` and `resource` (`services`, `services/status`) as in RBAC.
    #[must_use]
    pub fn on(verb: &str, resource: &str) -> FaultBuilder {
        FaultBuilder { verb: verb.into(), resource: resource.into(), name: String::new(), left: None }
    }

    fn befalls(&self, asked: &Asked) -> bool {
        let fits = |wanted: &str, is: &str| wanted.is_empty() || wanted == is;
        fits(&self.verb, asked.verb) && fits(&self.resource, &asked.resource) && fits(&self.name, &asked.name)
    }
}

#[derive(Debug, Clone)]
pub struct FaultBuilder {
    verb: String,
    resource: String,
    name: String,
    left: Option<u32>,
}

impl FaultBuilder {
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Only so often; else until [`super::ApiServer::clear_faults`].
    #[must_use]
    pub fn times(mut self, times: u32) -> Self {
        self.left = Some(times);
        self
    }

    /// The connection ends without an answer; nothing has happened.
    #[must_use]
    pub fn drop_connection(self) -> Fault {
        self.act(Act::Drop)
    }

    /// The request is carried out, but its answer is lost.
    #[must_use]
    pub fn lose_answer(self) -> Fault {
        self.act(Act::DropAfter)
    }

    #[must_use]
    pub fn hang(self) -> Fault {
        self.act(Act::Hang)
    }

    #[must_use]
    pub fn delay(self, by: Duration) -> Fault {
        self.act(Act::Delay(by))
    }

    #[must_use]
    pub fn refuse(self, error: ApiError) -> Fault {
        self.act(Act::Refuse(error))
    }

    #[must_use]
    pub fn conflict(self) -> Fault {
        let (resource, name) = (self.resource.clone(), self.name.clone());
        self.refuse(ApiError::conflict(&resource, &name))
    }

    /// HTTP 410.
    #[must_use]
    pub fn gone(self) -> Fault {
        self.act(Act::Gone)
    }

    /// HTTP 200 and an ERROR event with code 410.
    #[must_use]
    pub fn gone_in_stream(self) -> Fault {
        self.act(Act::GoneInStream)
    }

    /// HTTP 200 and an ERROR event.
    #[must_use]
    pub fn error_in_stream(self, error: ApiError) -> Fault {
        self.act(Act::ErrorInStream(error))
    }

    /// HTTP 200 and nothing more, as a proxy that closes what is idle.
    #[must_use]
    pub fn end_at_once(self) -> Fault {
        self.act(Act::EndAtOnce)
    }

    fn act(self, act: Act) -> Fault {
        Fault { verb: self.verb, resource: self.resource, name: self.name, act, left: self.left }
    }
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    list: Vec<Fault>,
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        self.list.push(fault);
    }

    pub(super) fn clear(&mut self) {
        self.list.clear();
    }

    /// The first that fits; used up if it is counted.
    pub(super) fn take(&mut self, asked: &Asked) -> Option<Act> {
        let at = self.list.iter().position(|f| f.left != Some(0) && f.befalls(asked))?;
        let fault = &mut self.list[at];
        fault.left = fault.left.map(|left| left - 1);
        Some(fault.act.clone())
    }

    /// Whether every counted fault has happened as often as wanted.
    pub(super) fn are_used_up(&self) -> bool {
        self.list.iter().all(|f| f.left.is_none_or(|left| left == 0))
    }
}
