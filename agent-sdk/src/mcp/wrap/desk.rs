//! Who waits for what on one connection, and whose it is that comes: pure.
//!
//! Over stdio a server's words name no request but in their content, so whose they are is decided here:
//! an answer by its id, progress by its token, what belongs to a subscription by its id, and a question
//! or a log message only where it can be but one caller's. What might be another's goes to nobody. A task speaks
//! longer than its call lasts: what names one is its owner's, and while another's is open, what names none is nobody's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{broadcast, watch};

use super::mailbox::{Mailbox, Outcome, Question, Said};
use super::tasks::{self, AtHome};
use crate::mcp::rpc::{METHOD_NOT_FOUND, Message, Object, RpcError};

/// Questions that no request can be told to have caused: they wait for the connection's next call.
const EARLY_QUESTIONS_MAX: usize = 16;
/// Notifications about no request that one listener may be behind.
pub(super) const NEWS_MAX: usize = 256;
/// What a notification of a subscription names it by.
pub(super) const SUBSCRIPTION: &str = "io.modelcontextprotocol/subscriptionId";

/// What whoever makes a request wants to be told of it.
#[derive(Debug, Clone, Default)]
pub(super) struct Wants {
    /// In whose name it is made; empty for our own.
    pub(super) owner: String,
    /// Log messages.
    pub(super) logs: bool,
    /// The questions that can be answered, by their methods.
    pub(super) questions: Vec<&'static str>,
    /// Whether what it brings are notifications, and its end may never come.
    pub(super) is_endless: bool,
    /// Whether its answer may be a task, which is its owner's then.
    pub(super) begins_task: bool,
}

/// A notification that is about no request.
#[derive(Debug, Clone)]
pub(super) struct News {
    pub(super) method: String,
    pub(super) params: Object,
}

/// What connections have in common that lead to one home.
#[derive(Debug, Clone)]
pub(super) struct House {
    /// Is told what is about no request.
    pub(super) news: broadcast::Sender<News>,
    pub(super) tasks: AtHome,
}

impl Default for House {
    fn default() -> Self {
        Self {
            news: broadcast::Sender::new(NEWS_MAX),
            tasks: AtHome::default(),
        }
    }
}

/// Who waits for what on one connection.
#[derive(Debug)]
pub(super) struct Desk {
    state: Mutex<State>,
    house: House,
    over: watch::Sender<bool>,
    doubt: watch::Sender<Doubt>,
}

/// Whether the server hears: how often that was doubted, and which doubt it has dispelled.
#[derive(Debug, Default)]
struct Doubt {
    raised: u64,
    settled: u64,
}

#[derive(Debug, Default)]
struct State {
    last: u64,
    waiting: HashMap<u64, Waiting>,
    /// Whose request was the last: what the server asks when nobody waits is about that, if about any.
    owner: Option<String>,
    early: Vec<(Question, usize, Option<String>)>,
    /// Why nothing comes any more.
    over: Option<String>,
}

#[derive(Debug)]
struct Waiting {
    wants: Wants,
    mailbox: Arc<Mailbox>,
}

impl Desk {
    pub(super) fn new(house: House) -> Self {
        Self {
            state: Mutex::default(),
            house,
            over: watch::Sender::new(false),
            doubt: watch::Sender::default(),
        }
    }

    /// A place for a request that is about to be sent: its number, and where what comes of it is put.
    /// What the server asked before falls to it, where it can answer that.
    pub(super) fn open(&self, wants: Wants) -> (u64, Arc<Mailbox>) {
        let mut state = self.state();
        let early = std::mem::take(&mut state.early).into_iter();
        let (own, others): (Vec<_>, _) = early.partition(|(question, _, owner)| {
            let is_own = owner.as_ref().is_none_or(|owner| *owner == wants.owner);
            is_own && wants.can(&question.method)
        });
        state.early = others;
        state.owner = Some(wants.owner.clone());
        let (id, mailbox) = state.wait(wants);
        for (question, bytes, _) in own {
            mailbox.put(Said::Question(question), bytes);
        }
        (id, mailbox)
    }

    /// A place for our own question whether the server hears, which is about no request.
    pub(super) fn probe(&self) -> (u64, Arc<Mailbox>) {
        self.state().wait(Wants::default())
    }

    /// Whether somebody waits for it.
    pub(super) fn waits_for(&self, id: u64) -> bool {
        self.state().waiting.contains_key(&id)
    }

    /// Nobody waits for it any more. Whether somebody did.
    pub(super) fn close(&self, id: u64) -> bool {
        self.state().waiting.remove(&id).is_some()
    }

    /// Takes what the server said in `bytes` bytes; `about` is the request on whose own stream it came.
    /// Gives what is to be answered at once.
    pub(super) fn heard(
        &self,
        message: Message,
        bytes: usize,
        about: Option<u64>,
    ) -> Option<Message> {
        match message {
            Message::Response { id, outcome } => {
                let id = id.and_then(|id| id.as_json().parse().ok());
                let waiting = id.and_then(|id| self.state().waiting.remove(&id));
                match waiting {
                    Some(waiting) => {
                        // Before whatever the task says next.
                        if waiting.wants.begins_task
                            && let Some(task) = outcome.as_deref().ok().and_then(tasks::begun)
                        {
                            self.house.tasks.begin(&task, &waiting.wants.owner);
                        }
                        waiting.mailbox.end(Outcome::Answered(outcome));
                    }
                    None => tracing::debug!("an answer that nobody waits for is dropped"),
                }
                None
            }
            Message::Notification { method, params } => {
                self.notified(method, params, bytes, about);
                None
            }
            Message::Request { id, method, .. } if method == "ping" => {
                Some(Message::answer(id, Ok(Object::default().raw())))
            }
            Message::Request { id, method, params } => {
                self.asked(Question { id, method, params }, bytes, about)
            }
        }
    }

    /// A request's answer was said, but cannot be used.
    pub(super) fn spoilt(&self, id: u64, why: RpcError) {
        if let Some(waiting) = self.state().waiting.remove(&id) {
            waiting.mailbox.end(Outcome::Answered(Err(why)));
        }
    }

    /// No answer to this request will come, whatever becomes of the others.
    pub(super) fn abandon(&self, id: u64, why: &str) {
        if let Some(waiting) = self.state().waiting.remove(&id) {
            waiting.mailbox.end(Outcome::Lost(why.to_owned()));
        }
    }

    /// No answer to this request will come before somebody logs in.
    pub(super) fn bar(&self, id: u64, why: &str) {
        if let Some(waiting) = self.state().waiting.remove(&id) {
            waiting.mailbox.end(Outcome::Barred(why.to_owned()));
        }
    }

    /// Nothing comes any more, for those who wait and for those who will.
    pub(super) fn lost(&self, why: &str) {
        let mut state = self.state();
        state.over.get_or_insert_with(|| why.to_owned());
        for (_, waiting) in state.waiting.drain() {
            waiting.mailbox.end(Outcome::Lost(why.to_owned()));
        }
        state.early.clear();
        drop(state);
        self.over.send_replace(true);
    }

    /// Whether nothing comes any more.
    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Done when nothing comes any more.
    pub(super) async fn ended(&self) {
        // The sender is ours, so it does not go while we wait.
        let _ = self.over.subscribe().wait_for(|over| *over).await;
    }

    /// A request was given up: it may be that the server does not hear any more.
    pub(super) fn doubt(&self) {
        self.doubt.send_modify(|doubt| doubt.raised += 1);
    }

    /// Done when there is a doubt: which.
    pub(super) async fn doubted(&self) -> u64 {
        let mut doubt = self.doubt.subscribe();
        let raised = doubt.wait_for(|doubt| doubt.raised > doubt.settled).await;
        // The sender is ours, so it does not go while we wait.
        raised.map_or(0, |doubt| doubt.raised)
    }

    /// The server has heard what was said after this doubt.
    pub(super) fn settle(&self, doubt: u64) {
        self.doubt
            .send_modify(|now| now.settled = now.settled.max(doubt));
    }

    /// Done when no doubt is left, or nothing comes any more. Whether the server hears.
    pub(super) async fn hears(&self) -> bool {
        let mut doubt = self.doubt.subscribe();
        tokio::select! {
            _ = doubt.wait_for(|doubt| doubt.raised == doubt.settled) => {}
            () = self.ended() => {}
        }
        !self.is_over()
    }

    /// Whether nobody waits for an end but whoever made this request.
    pub(super) fn is_alone(&self, id: u64) -> bool {
        let state = self.state();
        let mut others = state.waiting.iter().filter(|(other, _)| **other != id);
        others.all(|(_, other)| other.wants.is_endless)
    }

    fn notified(&self, method: String, params: Object, bytes: usize, about: Option<u64>) {
        let state = self.state();
        let about = about.or_else(|| named(&method, &params));
        let task = tasks::named(&method, &params);
        let waiting = match about {
            Some(id) => state
                .waiting
                .get(&id)
                .filter(|one| self.may_tell(one, &task)),
            None if is_news(&method) => {
                // Where nobody listens it is nobody's.
                let _ = self.house.news.send(News { method, params });
                return;
            }
            None if method == "notifications/progress" || tasks::is_told(&method) => None,
            None => state
                .only(|wants| wants.logs)
                .filter(|one| self.may_be_of(&one.wants.owner, &task)),
        };
        match waiting {
            Some(waiting) => {
                let said = Said::Notification { method, params };
                waiting.mailbox.put(said, bytes);
            }
            None => {
                tracing::debug!(method = %method.escape_debug(), "a notification that is nobody's is dropped");
            }
        }
    }

    fn asked(&self, question: Question, bytes: usize, about: Option<u64>) -> Option<Message> {
        let mut state = self.state();
        let Question { id, method, params } = &question;
        let task = tasks::named(method, params);
        let refusal = |why: &str| {
            let error = RpcError::new(METHOD_NOT_FOUND, why);
            Some(Message::answer(id.clone(), Err(error)))
        };
        let waiting = match about {
            Some(about) => state
                .waiting
                .get(&about)
                .filter(|one| one.wants.can(method) && self.may_tell(one, &task)),
            None if state.waiting.is_empty() => {
                let owner = state.owner.clone();
                let may_wait = state.early.len() < EARLY_QUESTIONS_MAX && is_question(method);
                if !may_wait || !self.may_be_of(owner.as_deref().unwrap_or_default(), &task) {
                    return refusal("nobody is there who could be asked");
                }
                state.early.push((question, bytes, owner));
                return None;
            }
            // Whose question it is can be known only while one call runs.
            None if state.waiting.len() > 1 => None,
            None => state
                .only(|wants| wants.can(method))
                .filter(|one| self.may_be_of(&one.wants.owner, &task)),
        };
        match waiting {
            Some(waiting) => {
                let id = id.clone();
                let full = RpcError::new(METHOD_NOT_FOUND, "too much was asked already");
                let put = waiting.mailbox.put(Said::Question(question), bytes);
                (!put).then(|| Message::answer(id, Err(full)))
            }
            None => refusal("the caller did not say that it can be asked this"),
        }
    }

    /// Whether what belongs to this request may be told to it: of a task, where that is its owner's.
    fn may_tell(&self, waiting: &Waiting, task: &Option<String>) -> bool {
        let is_own = |task: &String| self.house.tasks.is_of(task, &waiting.wants.owner);
        task.as_ref().is_none_or(is_own)
    }

    /// Whether what belongs to no request can be this owner's: about a task of theirs, or about none while no task of
    /// another's is open.
    fn may_be_of(&self, owner: &str, task: &Option<String>) -> bool {
        match task {
            Some(task) => self.house.tasks.is_of(task, owner),
            None => !self.house.tasks.has_others(owner),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wants {
    fn can(&self, method: &str) -> bool {
        self.questions.contains(&method)
    }
}

impl State {
    fn wait(&mut self, wants: Wants) -> (u64, Arc<Mailbox>) {
        self.last += 1;
        let mailbox = Arc::new(Mailbox::default());
        match &self.over {
            Some(why) => mailbox.end(Outcome::Lost(why.clone())),
            None => {
                let mailbox = Arc::clone(&mailbox);
                self.waiting.insert(self.last, Waiting { wants, mailbox });
            }
        }
        (self.last, mailbox)
    }

    /// The newest request that wants it, if all callers' that wait are of one owner: anybody's may have
    /// caused it.
    fn only(&self, wants: impl Fn(&Wants) -> bool) -> Option<&Waiting> {
        let owners = self.waiting.values().map(|one| &one.wants.owner);
        // Our own requests are nobody's.
        let mut owners = owners.filter(|owner| !owner.is_empty());
        let first = owners.next()?;
        if owners.any(|owner| owner != first) {
            return None;
        }
        let eligible = self.waiting.iter().filter(|(_, one)| wants(&one.wants));
        let (_, newest) = eligible.max_by_key(|(id, _)| **id)?;
        Some(newest)
    }
}

/// The request that a notification names: by its progress token, or by its subscription.
fn named(method: &str, params: &Object) -> Option<u64> {
    match method {
        "notifications/progress" => params.read("progressToken"),
        _ => params.object("_meta")?.read(SUBSCRIPTION),
    }
}

/// Whether it is about the server as a whole.
fn is_news(method: &str) -> bool {
    method.ends_with("/list_changed") || method == "notifications/resources/updated"
}

fn is_question(method: &str) -> bool {
    matches!(
        method,
        "elicitation/create" | "sampling/createMessage" | "roots/list"
    )
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::mcp::wrap::mailbox::Next;

    fn desk() -> Desk {
        Desk::new(House::default())
    }

    fn wants(owner: &str, logs: bool, questions: &[&'static str]) -> Wants {
        Wants {
            owner: owner.into(),
            logs,
            questions: questions.to_vec(),
            is_endless: false,
            begins_task: true,
        }
    }

    fn hear(desk: &Desk, text: &str) -> Option<String> {
        let message = Message::parse(text.as_bytes()).unwrap();
        desk.heard(message, text.len(), None)
            .map(|answer| answer.line())
    }

    fn methods(mailbox: &Mailbox) -> Vec<String> {
        let mut found = Vec::new();
        while let Some(Next::Said(said)) = mailbox.now() {
            found.push(match said {
                Said::Notification { method, .. } => method,
                Said::Question(question) => question.method,
            });
        }
        found
    }

    const ASK: &str = r#"{"jsonrpc":"2.0","id":"q","method":"elicitation/create"}"#;
    const LOG: &str = r#"{"jsonrpc":"2.0","method":"notifications/message","params":{}}"#;

    #[test]
    fn answers_find_their_callers_in_any_order_and_once() {
        let desk = desk();
        let (_, first) = desk.open(Wants::default());
        let (_, second) = desk.open(Wants::default());
        for text in [
            r#"{"jsonrpc":"2.0","id":2,"result":{"n":2}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"n":1}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"n":3}}"#,
            r#"{"jsonrpc":"2.0","id":99,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":"x","result":{}}"#,
        ] {
            assert_eq!(hear(&desk, text), None);
        }
        for (mailbox, expected) in [(first, r#"{"n":1}"#), (second, r#"{"n":2}"#)] {
            let Some(Next::Over(Outcome::Answered(Ok(result)))) = mailbox.now() else {
                panic!("an answer");
            };
            assert_eq!(result.get(), expected);
        }
    }

    #[test]
    fn progress_goes_to_the_request_whose_token_it_has() {
        let desk = desk();
        let (_, first) = desk.open(Wants::default());
        let (_, second) = desk.open(Wants::default());
        for token in ["2", "1", "2", "7", "\"2\""] {
            let text = format!(
                r#"{{"jsonrpc":"2.0","method":"notifications/progress","params":{{"progressToken":{token}}}}}"#
            );
            hear(&desk, &text);
        }
        assert_eq!((methods(&first).len(), methods(&second).len()), (1, 2));
    }

    #[test]
    fn a_log_message_that_could_be_another_callers_goes_to_nobody() {
        let desk = desk();
        desk.open(Wants::default());
        let (_, ada) = desk.open(wants("ada", true, &[]));
        hear(&desk, LOG);
        let (id, quiet) = desk.open(wants("bob", false, &[]));
        hear(&desk, LOG);
        desk.close(id);
        let (_, bob) = desk.open(wants("bob", true, &[]));
        hear(&desk, LOG);
        assert_eq!(methods(&ada).len(), 1);
        assert!(methods(&quiet).is_empty() && methods(&bob).is_empty());
    }

    #[test]
    fn a_question_is_asked_of_the_one_call_that_runs_and_of_no_other() {
        let desk = desk();
        let (id, ada) = desk.open(wants("ada", false, &["elicitation/create"]));
        assert_eq!(hear(&desk, ASK), None);
        assert_eq!(methods(&ada), ["elicitation/create"]);
        let (_, bob) = desk.open(wants("bob", false, &["elicitation/create"]));
        assert!(hear(&desk, ASK).unwrap().contains("-32601"));
        desk.close(id);
        let roots = r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#;
        assert!(hear(&desk, roots).unwrap().contains("-32601"));
        assert!(methods(&bob).is_empty());
    }

    #[test]
    fn a_question_out_of_turn_waits_for_the_next_call_and_many_are_refused() {
        let desk = desk();
        for _ in 0..EARLY_QUESTIONS_MAX {
            assert_eq!(hear(&desk, ASK), None);
        }
        assert!(hear(&desk, ASK).unwrap().contains("-32601"));
        let (_, unable) = desk.open(wants("ada", false, &["roots/list"]));
        let (_, able) = desk.open(wants("ada", false, &["elicitation/create"]));
        assert!(methods(&unable).is_empty());
        assert_eq!(methods(&able).len(), EARLY_QUESTIONS_MAX);
    }

    #[test]
    fn a_question_that_comes_too_late_is_not_asked_of_the_next_caller() {
        let desk = desk();
        let (id, _) = desk.open(wants("ada", false, &["elicitation/create"]));
        desk.close(id);
        assert_eq!(hear(&desk, ASK), None);
        let (id, bob) = desk.open(wants("bob", false, &["elicitation/create"]));
        assert!(methods(&bob).is_empty());
        desk.close(id);
        let (_, ada) = desk.open(wants("ada", false, &["elicitation/create"]));
        assert_eq!(methods(&ada), ["elicitation/create"]);
    }

    #[test]
    fn who_waits_is_told_that_nothing_comes_and_so_is_who_comes_later() {
        let desk = desk();
        let (_, early) = desk.open(Wants::default());
        desk.lost("it died");
        let (_, late) = desk.open(Wants::default());
        for mailbox in [early, late] {
            assert!(matches!(mailbox.now(), Some(Next::Over(Outcome::Lost(_)))));
        }
    }

    #[tokio::test]
    async fn a_doubt_lasts_until_the_server_has_heard_what_was_said_after_it() {
        let desk = desk();
        assert!(desk.hears().await, "nobody doubts it");
        desk.doubt();
        let first = desk.doubted().await;
        desk.doubt();
        desk.settle(first);
        let later = desk.doubted().await;
        assert!(desk.hears().now_or_never().is_none());
        desk.settle(later);
        desk.settle(first);
        assert!(desk.hears().await);
        desk.doubt();
        desk.lost("it died");
        assert!(!desk.hears().await);
    }

    #[test]
    fn who_listens_without_end_does_not_keep_a_server_that_does_not_hear() {
        let desk = desk();
        let (ping, _) = desk.open(Wants::default());
        let endless = Wants {
            is_endless: true,
            ..Wants::default()
        };
        let (_, _listening) = desk.open(endless);
        assert!(desk.is_alone(ping));
        let (call, _mailbox) = desk.open(Wants::default());
        assert!(!desk.is_alone(ping));
        desk.close(call);
        assert!(desk.is_alone(ping));
    }

    const TASK: &str = r#"{"jsonrpc":"2.0","id":1,"result":{"resultType":"task","taskId":"t"}}"#;
    const QUESTION: &str = "elicitation/create";

    /// What may be said of the task `t`, with the methods' names: of a request, or of none.
    fn said_of_the_task() -> [String; 3] {
        let about = r#""_meta":{"io.modelcontextprotocol/related-task":{"taskId":"t"}}"#;
        [
            r#"{"jsonrpc":"2.0","method":"notifications/tasks","params":{"taskId":"t"}}"#.into(),
            LOG.replace("\"params\":{", &format!("\"params\":{{{about}")),
            ASK.replace('}', &format!(r#","params":{{{about}}}}}"#)),
        ]
    }

    #[test]
    fn what_a_task_says_after_its_call_is_told_to_no_other_who_waits_alone() {
        let desk = desk();
        let (_, _ada) = desk.open(wants("ada", true, &[QUESTION]));
        hear(&desk, TASK);
        let (id, bob) = desk.open(wants("bob", true, &[QUESTION]));
        for text in said_of_the_task()
            .iter()
            .map(String::as_str)
            .chain([LOG, ASK])
        {
            hear(&desk, text);
        }
        assert_eq!(methods(&bob), Vec::<String>::new());
        desk.close(id);
        let [_, _, ask] = said_of_the_task();
        for text in [ASK, &ask] {
            assert!(hear(&desk, text).unwrap().contains("-32601"), "{text}");
        }
        let (_, ada) = desk.open(wants("ada", true, &[QUESTION]));
        for text in said_of_the_task()
            .iter()
            .map(String::as_str)
            .chain([LOG, ASK])
        {
            hear(&desk, text);
        }
        let told = ["notifications/message", QUESTION];
        assert_eq!(methods(&ada), [told, told].concat());
    }

    #[test]
    fn who_listens_is_told_of_no_task_that_became_anothers() {
        let desk = desk();
        let (_, _ada) = desk.open(wants("ada", false, &[]));
        hear(&desk, TASK);
        let (_, listening) = desk.open(wants("ada", false, &[]));
        let text = r#"{"jsonrpc":"2.0","method":"notifications/tasks","params":{"_meta":{"io.modelcontextprotocol/subscriptionId":2},"taskId":"t"}}"#;
        hear(&desk, text);
        assert_eq!(methods(&listening), ["notifications/tasks"]);
        desk.open(wants("bob", false, &[]));
        hear(&desk, &TASK.replace("\"id\":1", "\"id\":3"));
        hear(&desk, text);
        hear(&desk, &text.replace("\"t\"", "7"));
        assert!(methods(&listening).is_empty());
    }

    #[test]
    fn a_ping_is_answered_and_an_unknown_request_refused() {
        let desk = desk();
        let ping = hear(&desk, r#"{"jsonrpc":"2.0","id":5,"method":"ping"}"#);
        assert_eq!(ping.unwrap(), r#"{"jsonrpc":"2.0","id":5,"result":{}}"#);
        let other = hear(&desk, r#"{"jsonrpc":"2.0","id":6,"method":"admin/all"}"#);
        assert!(other.unwrap().contains("-32601"));
    }
}
