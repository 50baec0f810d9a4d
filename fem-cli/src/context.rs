//! Contexts: which broker, as which agent, with which key. A context names its key file, it never
//! holds a key.
//!
//! `--context` and `FEM_CONTEXT` take a file (`acme/admin.toml`) or the name of a context that
//! `fem-cli context add` stored under `$XDG_CONFIG_HOME/fem/contexts`.

use std::path::{Path, PathBuf};

use proto_spec::PublicKey;
use proto_spec::identity::AgentId;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome};
use crate::files::{self, Readers};

/// A context as it is written. Paths are relative to the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    /// As whom. What an organisation hands to its agents' developers names nobody yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) agent: Option<AgentId>,
    /// The organisation, where no agent is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) org: Option<proto_spec::Org>,
    /// `https://host:port`
    pub(crate) broker: String,
    /// What the broker signs with.
    pub(crate) broker_key: PublicKey,
    /// The certificate authority that the broker's certificate comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) ca_file: Option<PathBuf>,
    /// The agent's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) key_file: Option<PathBuf>,
    /// What an encrypted key is opened with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) passphrase_file: Option<PathBuf>,
}

impl Context {
    /// Reads a context file; its paths become absolute.
    pub(crate) fn load(path: &Path) -> Outcome<Self> {
        let text = files::read_text(path)?;
        let mut context: Self = toml::from_str(&text).map_err(|e| {
            Failure::fault(format!(
                "{} is not a context: {}",
                path.display(),
                e.message()
            ))
            .next("a context has: agent, broker, broker_key, ca_file, key_file")
        })?;
        let path = files::absolute(path);
        let directory = path.parent().unwrap_or(Path::new("/"));
        for file in context.files() {
            *file = directory.join(&*file);
        }
        Ok(context)
    }

    /// Writes a new context file; paths below its directory are written relative to it, so that the
    /// directory can be moved.
    pub(crate) fn save(&self, path: &Path) -> Outcome {
        let path = files::absolute(path);
        files::create(&path, self.text_for(&path)?.as_bytes(), Readers::All)
    }

    /// Writes a context in place of the one that is there, as a whole or not at all.
    pub(crate) fn replace(&self, path: &Path) -> Outcome {
        let path = files::absolute(path);
        files::replace(&path, self.text_for(&path)?.as_bytes())
    }

    fn text_for(&self, path: &Path) -> Outcome<String> {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut context = self.clone();
        for file in context.files() {
            if let Ok(below) = file.strip_prefix(directory) {
                *file = below.into();
            }
        }
        toml::to_string(&context)
            .map_err(|e| Failure::fault(format!("the context cannot be written: {e}")))
    }

    fn files(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self {
            ca_file,
            key_file,
            passphrase_file,
            ..
        } = self;
        [ca_file, key_file, passphrase_file].into_iter().flatten()
    }

    /// The organisation that this is about.
    pub(crate) fn org(&self) -> Outcome<&proto_spec::Org> {
        let named = self.agent.as_ref().map(AgentId::org);
        named.or(self.org.as_ref()).ok_or_else(|| {
            Failure::fault("the context names neither an agent nor an organisation")
                .next("add a line: agent = \"name@org\"")
        })
    }
}

/// Where contexts are stored by name.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    directory: PathBuf,
}

impl Store {
    /// `$XDG_CONFIG_HOME/fem`, or `~/.config/fem`.
    pub(crate) fn of_user() -> Outcome<Self> {
        let set = |name: &str| {
            std::env::var_os(name)
                .filter(|v| !v.is_empty())
                .map(PathBuf::from)
        };
        let config = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
        match config {
            Some(config) => Ok(Self {
                directory: config.join("fem"),
            }),
            None => Err(
                Failure::fault("there is no place for contexts: HOME is not set")
                    .next("name a context file with --context FILE"),
            ),
        }
    }

    #[cfg(test)]
    pub(crate) fn at(directory: &Path) -> Self {
        Self {
            directory: directory.into(),
        }
    }

    /// The file of the context `name`.
    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.directory.join("contexts").join(format!("{name}.toml"))
    }

    /// The names of all stored contexts, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.join("contexts"))
            .into_iter()
            .flatten();
        let name = |entry: std::fs::DirEntry| {
            Some(
                entry
                    .file_name()
                    .to_str()?
                    .strip_suffix(".toml")?
                    .to_owned(),
            )
        };
        let mut names: Vec<String> = entries.flatten().filter_map(name).collect();
        names.sort();
        names
    }

    /// Stores a context under a new name.
    pub(crate) fn add(&self, name: &str, context: &Context) -> Outcome {
        check_name(name)?;
        files::private_directory(&self.directory.join("contexts"))?;
        context.save(&self.path_of(name))
    }

    fn unknown(&self, name: &str) -> Failure {
        let place = self.directory.join("contexts");
        Failure::not_found(format!(
            "there is no context {name:?} in {}",
            place.display()
        ))
        .next("see `fem-cli context list`, or name a file: --context acme/admin.toml")
    }

    /// The one that is used where none is named.
    pub(crate) fn current(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.directory.join("current")).ok()?;
        Some(text.trim().to_owned()).filter(|name| check_name(name).is_ok())
    }

    /// Makes `name` the one that is used where none is named.
    pub(crate) fn use_by_default(&self, name: &str) -> Outcome {
        check_name(name)?;
        if !self.path_of(name).exists() {
            return Err(self.unknown(name));
        }
        let temporary = self
            .directory
            .join(format!("current.{}", std::process::id()));
        std::fs::write(&temporary, format!("{name}\n"))?;
        Ok(std::fs::rename(temporary, self.directory.join("current"))?)
    }
}

/// A stored context's name is one path segment of plain characters.
fn check_name(name: &str) -> Outcome {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'@' | b'.');
    if (1..=128).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.') {
        return Ok(());
    }
    Err(Failure::usage(format!("{name:?} is no name for a context"))
        .next("use letters, digits and - _ @ ."))
}

/// Which context file is meant: a file, a stored name, or the current one where nothing is named.
pub(crate) fn find(named: Option<&str>) -> Outcome<PathBuf> {
    let Some(named) = named else {
        let store = Store::of_user()?;
        return store
            .current()
            .map(|name| store.path_of(&name))
            .ok_or_else(|| {
                Failure::usage("no context is chosen: which broker, and as whom?").next(
                    "give --context FILE (init writes acme/admin.toml), set FEM_CONTEXT, \
                 or choose one with `fem-cli context use NAME`",
                )
            });
    };
    if Path::new(named).is_file() {
        return Ok(named.into());
    }
    if named.contains('/') || named.ends_with(".toml") {
        return Err(Failure::not_found(format!("{named} does not exist")).next(
            "`fem-cli init ORG` makes ORG/admin.toml; `fem-cli context list` shows what is stored",
        ));
    }
    check_name(named)?;
    let store = Store::of_user()?;
    let path = store.path_of(named);
    if path.is_file() {
        Ok(path)
    } else {
        Err(store.unknown(named))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> Context {
        Context {
            agent: Some("fs@acme".parse().unwrap()),
            org: None,
            broker: "https://127.0.0.1:7443".into(),
            broker_key: proto_spec::SigningKey::from_seed(&[7; 32]).public(),
            ca_file: Some("/srv/acme/tls/ca.pem".into()),
            key_file: Some("/srv/acme/keys/fs.pem".into()),
            passphrase_file: None,
        }
    }

    #[test]
    fn a_context_moves_with_its_directory_and_holds_no_key() {
        let directory = tempfile::tempdir().unwrap();
        let mut written = context();
        written.ca_file = Some(directory.path().join("tls/ca.pem"));
        let path = directory.path().join("fs.toml");
        written.save(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("ca_file = \"tls/ca.pem\""), "{text}");
        assert!(
            text.contains("key_file = \"/srv/acme/keys/fs.pem\""),
            "{text}"
        );
        assert_eq!(Context::load(&path).unwrap().ca_file, written.ca_file);
    }

    #[test]
    fn a_stored_context_is_found_by_name_and_can_become_the_current_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        assert_eq!(store.current(), None);
        assert!(store.use_by_default("acme").is_err());
        store.add("acme", &context()).unwrap();
        assert!(store.add("acme", &context()).is_err(), "never overwritten");
        store.use_by_default("acme").unwrap();
        assert_eq!(
            (store.names(), store.current()),
            (vec!["acme".into()], Some("acme".into()))
        );
    }

    #[test]
    fn a_context_name_cannot_leave_its_directory() {
        for name in ["", "..", "../x", "a/b", ".hidden", "a\nb"] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
