//! Tokens as files: base64url text, readable by their owner alone.

use std::path::Path;

use proto_spec::PublicKey;
use proto_spec::capability::{Token, decode_text, encode_text, issue};

use crate::failure::{Failure, Outcome};
use crate::files::{self, Readers, quoted};

/// Reads a token's bytes.
pub(crate) fn read(path: &Path) -> Outcome<Vec<u8>> {
    let text = files::read_text(path)?;
    decode_text(text.trim()).map_err(|refusal| {
        Failure::fault(format!("{} is not a token: {refusal}", path.display()))
            .next("a token file is one line of base64url, as `token issue --out` writes it")
    })
}

/// Looks, before anything is issued, whether there is room for its token.
pub(crate) fn check_is_new(path: &Path) -> Outcome {
    if path.exists() {
        return Err(Failure::fault(format!(
            "{} exists, and is never overwritten",
            path.display()
        ))
        .next("name another file with --out; nothing was issued"));
    }
    Ok(())
}

/// Writes a token for its holder.
pub(crate) fn write(path: &Path, token: &str) -> Outcome {
    files::create(path, format!("{token}\n").as_bytes(), Readers::Owner)
}

/// The sealed copy that is presented; the file keeps the unsealed one.
pub(crate) fn presentable(path: &Path) -> Outcome<String> {
    if let Ok(false) = files::is_private(path) {
        return Err(Failure::fault(format!(
            "{}: others can read or write this token",
            path.display()
        ))
        .next(format!(
            "chmod 600 {}, and have it issued anew if the machine is shared",
            quoted(path)
        )));
    }
    let bytes = read(path)?;
    match issue::seal(&bytes) {
        Ok(sealed) => Ok(encode_text(&sealed)),
        // It is sealed already, or whoever gets it says what is wrong with it.
        Err(_) => Ok(encode_text(&bytes)),
    }
}

/// 32 bytes that nobody can guess.
pub(crate) fn entropy() -> Outcome<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| Failure::fault(format!("this machine gives no randomness: {e}")))?;
    Ok(bytes)
}

/// A root key as it is typed: base64 or did:key, or a file that holds one (`keys/root.pub`).
pub(crate) fn root_key(text: &str) -> Result<PublicKey, String> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let file = std::fs::read_to_string(text).map_err(|e| {
        format!("neither a public key nor a file with one ({e}); init writes ORG/keys/root.pub")
    })?;
    file.trim()
        .parse()
        .map_err(|e| format!("{text} holds no public key: {e}"))
}

/// The token with its signatures checked against `root`.
pub(crate) fn open(bytes: &[u8], root: &PublicKey) -> Result<Token, proto_spec::Refusal> {
    Token::open_unsealed(bytes, std::slice::from_ref(root))
}
