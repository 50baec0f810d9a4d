//! An MCP server becomes an agent: what it offers are the agent's tools, and calls of them its requests.
//!
//! Nothing that the server says is trusted: `stdio` bounds what it prints, `hear` what can be carried, `desk`
//! decides whose it is, `offer` and `schema` which of its tools can be offered. `server` finds out which era of MCP
//! it speaks, `pool` keeps callers' connections to a legacy one apart, and `relay` makes the calls: what a legacy
//! server asks in mid-call is `parked` until its caller comes back with the answers, and `tasks` knows whose a task is
//! that outlives its call.
//!
//! What a server keeps in a connection is its caller's alone, unless [`Sharing`] says otherwise; what it keeps
//! elsewhere (on disk, in another service) is its own affair. A caller who can be asked has a connection to itself while a call
//! runs: two calls at once are two connections. One that was idle for long may be ended for another's sake, with what
//! the server kept in it.

mod connection;
mod desk;
mod hear;
mod http;
mod listen;
mod mailbox;
mod offer;
mod parked;
mod pool;
mod relay;
mod schema;
mod server;
mod site;
mod sse;
mod stdio;
mod tasks;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use proto_spec::Name;
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;

use self::connection::Exchange;
use self::desk::{House, Wants};
use self::mailbox::{Next, Outcome, Said};
use self::offer::Catalogue;
use self::parked::{PARKED_FOR, Parked};
pub use self::pool::NoServer;
use self::pool::{Key, Lease, Pool};
use self::relay::{Talk, every_capability};
pub use self::server::Source;
pub(crate) use self::server::discovery_message;
use self::server::{Era, Server};
pub use self::site::Site;
pub use self::stdio::Program;
use self::tasks::{Home, Tasks};
use crate::agent::Offered;
use crate::link::backoff::Backoff;
use crate::mcp::MODERN;
use crate::mcp::rpc::Object;
use crate::tool::Tool;

/// The code of a call for which there is no connection to the server: all are in use.
pub const SERVER_BUSY: &str = "SERVER_BUSY";
/// The code of a call that the server did not answer before it was gone: it may or may not have acted.
pub const SERVER_LOST: &str = "SERVER_LOST";
/// The code of a call that the server refuses until whoever runs this has logged in there.
pub const SERVER_LOGIN_NEEDED: &str = "SERVER_LOGIN_NEEDED";
/// The code of a call that the server did not answer in time. It was told that nobody waits.
pub const SERVER_SILENT: &str = "SERVER_SILENT";

/// How long the server may take to answer a question of our own.
const ASK_PATIENCE: Duration = Duration::from_secs(30);
/// What a server offers is read again so often at most.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who speaks to the server.
fn client_info() -> Box<RawValue> {
    let mut info = Object::default();
    info.put("name", "fem");
    info.put("version", env!("CARGO_PKG_VERSION"));
    info.raw()
}

/// Whose the state is that a server keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sharing {
    /// What it keeps in a connection is each caller's own. Servers of 2026-07-28 keep nothing there: all callers
    /// have one.
    #[default]
    ByEra,
    /// All callers have one connection.
    Shared,
    /// Each caller has a connection of its own also to a server of 2026-07-28: a process, where it is a program.
    Apart,
}

/// How a server is wrapped.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whose the state is that it keeps.
    pub sharing: Sharing,
    /// Connections to it at once, the one included with which it is looked at: at least 2.
    pub connections: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            sharing: Sharing::default(),
            connections: 8,
        }
    }
}

/// An MCP server whose tools can be offered.
pub struct Wrapped {
    name: Name,
    inner: Arc<Inner>,
    looking: Mutex<Arc<Lease>>,
    catalogue: Mutex<Catalogue>,
}

/// What calls work with.
struct Inner {
    pool: Arc<Pool>,
    parked: Parked<Box<Talk>>,
    tasks: Arc<Tasks>,
    sharing: Sharing,
    sandbox: Option<&'static str>,
    discovered: Mutex<Object>,
}

impl Wrapped {
    /// Starts a server for the agent `name`, and looks at what it offers.
    ///
    /// # Errors
    ///
    /// Why it cannot be spoken to.
    pub async fn open(name: Name, source: Source, options: &Options) -> Result<Self, NoServer> {
        let first = House::default();
        let server = Server::meet(&source, &every_capability(), &first).await?;
        let catalogue = Catalogue::read(&server).await?;
        let sandbox = source.sandbox();
        let tasks = Arc::clone(&first.tasks.all);
        let pool = Pool::new(source, server.era, options.connections.max(2), first);
        let pool = Arc::new(pool);
        let discovered = Mutex::new(server.discovered.clone());
        let looking = pool.adopt(looking_key(server.era), server);
        Ok(Self {
            name,
            looking: Mutex::new(Arc::new(looking)),
            catalogue: Mutex::new(catalogue),
            inner: Arc::new(Inner {
                pool,
                parked: Parked::new(PARKED_FOR),
                tasks,
                sharing: options.sharing,
                sandbox,
                discovered,
            }),
        })
    }

    /// What it offers, each with the capability of its own name.
    #[must_use]
    pub fn tools(&self) -> Vec<Tool> {
        self.catalogue().tools(self.name.as_str(), &self.inner)
    }

    /// In one line: what the server calls itself, how it is spoken to, and what of it is offered.
    #[must_use]
    pub fn words(&self) -> String {
        let discovered = self.inner.seen();
        let meta = discovered.object("_meta").unwrap_or_default();
        let info = meta
            .object("io.modelcontextprotocol/serverInfo")
            .unwrap_or_default();
        let text = |name: &str| info.read::<String>(name).unwrap_or_default();
        let era = match self.inner.pool.era() {
            Era::Modern => MODERN,
            Era::Legacy => "2025-11-25 or older",
        };
        let catalogue = self.catalogue();
        format!(
            "{} {} (MCP {era}): {} tools, {} left out",
            text("name").escape_debug(),
            text("version").escape_debug(),
            catalogue.count(),
            catalogue.left_out.len(),
        )
    }

    /// Offers what the server offers, whenever that changes and whenever it was started anew. Ends never.
    pub async fn follow(&self, offered: &Offered) {
        let mut backoff = Backoff::default();
        loop {
            self.until_changed().await;
            let mut wait = LOOK_AGAIN;
            if let Err(why) = self.look_again().await {
                tracing::warn!(%why, "what the MCP server offers could not be read again");
                wait += backoff.failed(getrandom::u64().unwrap_or(u64::MAX));
            } else {
                backoff.reset();
                if let Err(why) = offered.replace(self.tools()) {
                    tracing::warn!(%why, "what the MCP server offers now cannot be offered");
                }
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Ends the server.
    pub async fn end(&self) {
        self.inner.pool.end().await;
    }

    /// Done when the server says that its tools are others, or when it has to be started anew.
    async fn until_changed(&self) {
        let looking = Arc::clone(&self.looking());
        let connection = &looking.server.connection;
        let changed = async {
            match looking.server.era {
                Era::Legacy => self.inner.pool.told_of_tools().await,
                Era::Modern => listen(&looking.server).await,
            }
        };
        tokio::select! {
            () = changed => {}
            () = connection.ended() => {}
        }
    }

    async fn look_again(&self) -> Result<(), NoServer> {
        let looking = Arc::clone(&self.looking());
        let lease = match looking.server.connection.is_over() {
            false => looking,
            true => {
                let key = looking_key(self.inner.pool.era());
                let lease = Arc::new(self.inner.pool.take(&key, false).await?);
                *self.looking() = Arc::clone(&lease);
                lease
            }
        };
        let catalogue = Catalogue::read(&lease.server).await?;
        *self.catalogue() = catalogue;
        *self.inner.seen() = lease.server.discovered.clone();
        Ok(())
    }

    fn looking(&self) -> MutexGuard<'_, Arc<Lease>> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Whose connections a caller's calls go over: the caller's own, or nobody's, where others' go too.
    fn owner<'a>(&self, caller: &'a str) -> &'a str {
        match (self.sharing, self.pool.era()) {
            (Sharing::Apart, _) | (Sharing::ByEra, Era::Legacy) => caller,
            (Sharing::Shared, _) | (Sharing::ByEra, Era::Modern) => "",
        }
    }

    /// Over which connections a caller's calls go. What is shared is also what the server is looked at with, so
    /// that it is one state that callers see and that is offered.
    fn key(&self, caller: &str, capabilities: &Object) -> Key {
        let owner = self.owner(caller);
        match owner.is_empty() && capabilities.is_empty() {
            true => looking_key(self.pool.era()),
            false => Key {
                owner: owner.to_owned(),
                capabilities: capabilities.raw().get().into(),
            },
        }
    }

    /// Which server knows a caller's tasks: its own, or one that others reach too.
    fn home<'a>(&self, caller: &'a str) -> &'a Home {
        self.pool.home(self.owner(caller))
    }

    fn seen(&self) -> MutexGuard<'_, Object> {
        self.discovered
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn discovered(&self) -> Box<RawValue> {
        self.seen().raw()
    }

    fn capabilities(&self) -> Object {
        self.seen().object("capabilities").unwrap_or_default()
    }
}

/// The connection with which the server is looked at: nobody's, and with everything that can be bridged, for
/// some servers list more tools to a client that can be asked.
fn looking_key(era: Era) -> Key {
    match era {
        Era::Modern => Key::everybody(),
        Era::Legacy => Key {
            owner: String::new(),
            capabilities: every_capability().get().into(),
        },
    }
}

/// Done when a server of 2026-07-28 says that its tools are others. One that never says so is never done.
async fn listen(server: &Server) {
    let tools = server.capabilities().object("tools").unwrap_or_default();
    if !tools.read("listChanged").unwrap_or(false) {
        return std::future::pending().await;
    }
    let mut wanted = Object::default();
    wanted.put("toolsListChanged", &true);
    let mut params = Object::default();
    params.put("_meta", &offer::own_meta());
    params.put("notifications", &wanted);
    let wants = Wants {
        is_endless: true,
        ..Wants::default()
    };
    let exchange: Exchange = server
        .connection
        .request("subscriptions/listen", wants, Vec::new(), |_| params)
        .await;
    loop {
        match exchange.next().await {
            Next::Said(Said::Notification { method, .. })
                if method == "notifications/tools/list_changed" =>
            {
                return;
            }
            Next::Said(_) => {}
            // It told of changes that it cannot tell of.
            Next::Over(Outcome::Answered(Err(why))) => {
                tracing::warn!(%why, "the MCP server does not say when its tools change");
                return std::future::pending().await;
            }
            // It is looked at again, and then listened to again.
            Next::Over(_) => return,
        }
    }
}

impl Pool {
    /// Done when a connection that is nobody's says that the server's tools are others.
    async fn told_of_tools(&self) {
        let sender = self.news("");
        let mut news = sender.subscribe();
        loop {
            match news.recv().await {
                Ok(news) if news.method == "notifications/tools/list_changed" => return,
                Ok(_) => {}
                Err(RecvError::Lagged(_) | RecvError::Closed) => return,
            }
        }
    }
}
