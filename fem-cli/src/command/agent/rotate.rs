//! `agent rotate-key`: the agent of this context goes on under a new key.
//!
//! The order lets it be stopped anywhere and run again: the new key is on disk before the broker hears of
//! it, and the context names it only after the broker took it. Which of the two keys the broker knows is
//! asked, not guessed.

use std::path::{Path, PathBuf};

use agent_sdk::{Error, Key, Passphrase};
use proto_spec::Code;
use proto_spec::message::DiscoverTools;
use serde_json::json;

use crate::connect::{Chosen, agent_of};
use crate::context::Context;
use crate::failure::{Failure, Outcome};
use crate::files::{absolute, quoted};
use crate::output::{Output, note};

/// Replaces the key of this context's agent; its grants on record go with it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Writes the new key file, has the broker take the new key, then lets the context name it. Stopped in
between, run the same command again: it goes on where it was.
Tokens that were handed out to the old key, and delegations to it, are dead: have them issued anew.

Example:
  fem-cli --context files.toml agent rotate-key")]
pub(super) struct RotateKey {
    /// Where to write the new key (0600) [default: beside the old one: files.key2.pem, files.key3.pem, …]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(super) async fn run(args: RotateKey, chosen: &Chosen, output: Output) -> Outcome {
    let file = chosen.file()?;
    let old = Context::load(&file)?;
    let old_file = old.key_file.clone().ok_or_else(|| {
        Failure::usage("the context names no key file")
            .next("name the context of the agent whose key is to change, with --context")
    })?;
    let new_file = args
        .out
        .map_or_else(|| next_after(&old_file), |out| absolute(&out));
    let new = Context {
        key_file: Some(new_file.clone()),
        ..old.clone()
    };
    let is_resumed = new_file.exists();
    let key = key_at(&new_file, old.passphrase_file.as_deref())?;
    if is_resumed {
        note(&format!(
            "{} is there from an earlier run; going on with it.",
            quoted(&new_file)
        ));
    }
    if !(is_resumed && is_known(&new, &file).await?) {
        let agent = agent_of(&old, &file)?;
        agent
            .rotate_key(&key)
            .await
            .map_err(|error| unsettled(error, &new_file))?;
    }
    // What was learnt meanwhile of the broker's key stands in the file.
    let new = Context {
        key_file: new.key_file,
        ..Context::load(&file)?
    };
    new.replace(&file).map_err(|failure| {
        failure.next(format!(
            "the broker has taken the new key: run this again, or set key_file = \"{}\" in {}",
            new_file.display(),
            quoted(&file)
        ))
    })?;
    let value = json!({
        "agent": new.agent, "key": key.public(), "fingerprint": key.public().fingerprint(),
        "key_file": new_file, "context": file,
    });
    output.give(&value, || {
        format!(
            "Rotated. {context} names the new key, {new}.\nfingerprint  {fingerprint}\n\
             Restart what runs with the old one, and let other contexts of this agent name the new file.\n\
             Tokens that were handed out to the old key are dead: have them issued anew.\n\
             The old key is worth nothing: rm {old}",
            context = quoted(&file),
            new = quoted(&new_file),
            fingerprint = key.public().fingerprint(),
            old = quoted(&old_file),
        )
    })
}

/// `files.pem` is followed by `files.key2.pem`, and that by `files.key3.pem`: names that no other agent's
/// key has by the same custom.
fn next_after(old: &Path) -> PathBuf {
    let name = old.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".pem").unwrap_or(&name);
    let numbered = stem
        .rsplit_once(".key")
        .and_then(|(stem, n)| Some((stem, n.parse::<u32>().ok()?.checked_add(1)?)));
    let (stem, number) = numbered.unwrap_or((stem, 2));
    old.with_file_name(format!("{stem}.key{number}.pem"))
}

/// The key that an earlier run left, or a new one: durable before anybody hears of it. It is encrypted
/// where the old one is.
fn key_at(path: &Path, passphrase: Option<&Path>) -> Outcome<Key> {
    let passphrase = passphrase.map(Passphrase::load).transpose()?;
    if path.exists() {
        return Ok(match &passphrase {
            Some(passphrase) => Key::load_encrypted(path, passphrase)?,
            None => Key::load(path)?,
        });
    }
    let key = Key::generate()?;
    match &passphrase {
        Some(passphrase) => key.save_encrypted(path, passphrase)?,
        None => key.save(path)?,
    }
    Ok(key)
}

/// Whether the broker knows the agent by the key that this context names.
async fn is_known(context: &Context, file: &Path) -> Outcome<bool> {
    let question = DiscoverTools {
        limit: Some(1),
        ..DiscoverTools::default()
    };
    match agent_of(context, file)?.discover(question).await {
        Ok(_) => Ok(true),
        Err(Error::Refused {
            code: Code::NotAuthentic,
            ..
        }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Whatever happened, the new key is on disk and a second run finds out.
fn unsettled(error: Error, new_file: &Path) -> Failure {
    Failure::from(error).next(format!(
        "run the same command again: it goes on with {}, and asks the broker which key it knows",
        quoted(new_file)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_are_numbered_in_their_order() {
        for (old, next) in [
            ("/k/files.pem", "/k/files.key2.pem"),
            ("/k/files.key2.pem", "/k/files.key3.pem"),
            ("/k/build-7.pem", "/k/build-7.key2.pem"),
            ("/k/a.keys", "/k/a.keys.key2.pem"),
        ] {
            assert_eq!(next_after(Path::new(old)), Path::new(next));
        }
    }
}
