//! Files that are made once: never overwritten, and secrets readable by their owner alone.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::failure::{Failure, Outcome};

/// Bytes of a file that a command reads whole; above that it is not what was meant.
const READ_BYTES_MAX: u64 = 32 << 20;

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Readers {
    /// Its owner: keys and tokens (0600).
    Owner,
    /// Everybody (0644).
    All,
}

/// Writes a file that does not exist yet, durably.
pub(crate) fn create(path: &Path, contents: &[u8], readers: Readers) -> Outcome {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::All => 0o644,
    };
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path);
    let write = |mut file: File| file.write_all(contents).and_then(|()| file.sync_all());
    file.and_then(write).map_err(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::fault(format!(
            "{} exists, and is never overwritten",
            path.display()
        ))
        .next("move it away, or name another file"),
        std::io::ErrorKind::NotFound => {
            Failure::fault(format!("{}: its directory does not exist", path.display())).next(
                format!("mkdir -p {}", quoted(path.parent().unwrap_or(path))),
            )
        }
        _ => Failure::fault(format!("{} cannot be written: {error}", path.display())),
    })
}

/// Writes a file in place of the one that is there: a crash leaves the old one or the new one. It keeps
/// the old one's mode.
pub(crate) fn replace(path: &Path, contents: &[u8]) -> Outcome {
    let directory = path.parent().unwrap_or(Path::new("/"));
    let write = || {
        let mode = std::fs::metadata(path)?.permissions();
        let mut new = tempfile::NamedTempFile::new_in(directory)?;
        new.write_all(contents)?;
        new.as_file().set_permissions(mode)?;
        new.as_file().sync_all()?;
        new.persist(path)?;
        File::open(directory)?.sync_all()
    };
    write()
        .map_err(|error| Failure::fault(format!("{} cannot be replaced: {error}", path.display())))
}

/// Makes a directory, with its parents, that only its owner may enter.
pub(crate) fn private_directory(path: &Path) -> Outcome {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|e| Failure::fault(format!("{} cannot be made: {e}", path.display())))
}

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> Outcome<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = |bytes: &mut Vec<u8>| {
        if path == Path::new("-") {
            return std::io::stdin()
                .lock()
                .take(READ_BYTES_MAX + 1)
                .read_to_end(bytes);
        }
        File::open(path)?
            .take(READ_BYTES_MAX + 1)
            .read_to_end(bytes)
    };
    match read(&mut bytes) {
        Ok(_) if bytes.len() as u64 > READ_BYTES_MAX => Err(Failure::fault(format!(
            "{} is larger than 32 MiB",
            path.display()
        ))),
        Ok(_) => Ok(bytes),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(Failure::not_found(
            format!("{} does not exist", path.display()),
        )),
        Err(error) => Err(Failure::fault(format!(
            "{} cannot be read: {error}",
            path.display()
        ))),
    }
}

/// Reads a file of text.
pub(crate) fn read_text(path: &Path) -> Outcome<String> {
    String::from_utf8(read(path)?)
        .map_err(|_| Failure::fault(format!("{} is not text", path.display())))
}

/// Whether only the owner may read it.
pub(crate) fn is_private(path: &Path) -> std::io::Result<bool> {
    Ok(std::fs::metadata(path)?.permissions().mode() & 0o077 == 0)
}

/// The same file from anywhere.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.into())
}

/// A path as a shell takes it.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+@%:,=~".contains(&b);
    if !text.is_empty() && text.bytes().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_its_owners_alone_and_nothing_is_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        create(&path, b"secret", Readers::Owner).unwrap();
        assert!(is_private(&path).unwrap());
        assert!(create(&path, b"other", Readers::Owner).is_err());
        assert_eq!(read(&path).unwrap(), b"secret");
    }

    #[test]
    fn a_path_survives_being_pasted_into_a_shell() {
        assert_eq!(quoted(Path::new("acme/admin.toml")), "acme/admin.toml");
        assert_eq!(quoted(Path::new("my org/it's")), r"'my org/it'\''s'");
    }
}
