//! The agent's key: made, kept in a file that only its owner can read, and never shown.
//!
//! Files are PKCS#8 PEM in the first version of that form, which OpenSSL 3.0 reads too, plain or
//! encrypted under a passphrase (PBES2: scrypt and AES-256-CBC). A file that others can read or write
//! is refused: its key may be known already.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::pem::{LineEnding, PemLabel as _};
use pkcs8::der::{Decode as _, SecretDocument};
use pkcs8::{
    AlgorithmIdentifierRef, EncryptedPrivateKeyInfoRef, ObjectIdentifier, PrivateKeyInfoRef,
};
use proto_spec::{PublicKey, SigningKey};
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// id-Ed25519, RFC 8410.
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
/// The DER header of the OCTET STRING inside PKCS#8 that holds the seed.
const SEED_HEADER: [u8; 2] = [0x04, 0x20];
/// No key file is longer; a larger file is something else.
pub(crate) const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

/// An Ed25519 key. Wiped from memory when dropped; it has no `Clone` and its `Debug` shows the public
/// half only.
pub struct Key(SigningKey);

impl Key {
    /// A new key from the system's randomness.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where the system gives no randomness.
    pub fn generate() -> Result<Self> {
        let mut seed = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *seed)
            .map_err(|why| Error::Config(vec![format!("no randomness from the system: {why}")]))?;
        Ok(Self::from_seed(&seed))
    }

    /// The key of a 32-byte seed.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_seed(seed))
    }

    /// Reads a key file.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where others can read or write it, where it is encrypted, or where it holds no
    /// Ed25519 key.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let pem = read_private(path, KEY_FILE_BYTES_MAX)?;
        Self::from_pem(&pem, None).map_err(|why| Error::file(path, why))
    }

    /// Reads a key file that is encrypted under `passphrase`. Takes a moment, on purpose.
    ///
    /// # Errors
    ///
    /// [`Error::File`] as for [`Key::load`], and where the passphrase is not the one.
    pub fn load_encrypted(path: impl AsRef<Path>, passphrase: &Passphrase) -> Result<Self> {
        let path = path.as_ref();
        let pem = read_private(path, KEY_FILE_BYTES_MAX)?;
        Self::from_pem(&pem, Some(passphrase)).map_err(|why| Error::file(path, why))
    }

    /// The key in the environment: `FEM_AGENT_PRIVATE_KEY`, as PKCS#8 PEM or as the base64 of its
    /// 32-byte seed, under the passphrase in the file `FEM_KEY_PASSPHRASE_FILE` where it is encrypted.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] where it is absent or not a key.
    pub fn from_env() -> Result<Self> {
        let text = std::env::var("FEM_AGENT_PRIVATE_KEY")
            .map(Zeroizing::new)
            .map_err(|_| {
                Error::Config(vec![
                    "FEM_AGENT_PRIVATE_KEY is not set: give a PKCS#8 PEM or a base64 seed".into(),
                ])
            })?;
        let passphrase = match std::env::var_os("FEM_KEY_PASSPHRASE_FILE") {
            Some(path) => Some(Passphrase::load(Path::new(&path))?),
            None => None,
        };
        Self::from_text(&text, passphrase.as_ref())
            .map_err(|why| Error::Config(vec![format!("FEM_AGENT_PRIVATE_KEY: {why}")]))
    }

    /// A key as text: PKCS#8 PEM, or the base64 of its seed.
    pub(crate) fn from_text(text: &str, passphrase: Option<&Passphrase>) -> Result<Self, String> {
        let text = text.trim();
        if text.starts_with("-----BEGIN") {
            return Self::from_pem(text, passphrase);
        }
        let not_a_key = "neither a PKCS#8 PEM nor the base64 of a 32-byte seed";
        let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| not_a_key)?);
        let seed: &[u8; 32] = bytes.as_slice().try_into().map_err(|_| not_a_key)?;
        Ok(Self::from_seed(seed))
    }

    fn from_pem(pem: &str, passphrase: Option<&Passphrase>) -> Result<Self, String> {
        let not_pem =
            |_| "not a PKCS#8 PEM: make a key with `fem-cli` or `Key::generate`".to_owned();
        let (label, document) = SecretDocument::from_pem(pem.trim()).map_err(not_pem)?;
        let plain = match (label, passphrase) {
            (label, _) if label == PrivateKeyInfoRef::PEM_LABEL => document,
            (label, Some(passphrase)) if label == EncryptedPrivateKeyInfoRef::PEM_LABEL => {
                EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
                    .and_then(|encrypted| encrypted.decrypt(passphrase.0.as_bytes()))
                    .map_err(|_| "the passphrase does not open this key, or the file is damaged")?
            }
            (label, None) if label == EncryptedPrivateKeyInfoRef::PEM_LABEL => {
                return Err("the key is encrypted: name the file with its passphrase in FEM_KEY_PASSPHRASE_FILE".into());
            }
            (label, _) => return Err(format!("holds a {label}, not a PRIVATE KEY")),
        };
        let info = PrivateKeyInfoRef::from_der(plain.as_bytes())
            .map_err(|_| "not a PKCS#8 private key".to_owned())?;
        let seed = info.private_key.as_bytes().strip_prefix(&SEED_HEADER);
        match seed.and_then(|seed| <&[u8; 32]>::try_from(seed).ok()) {
            Some(seed) if info.algorithm.oid == ED25519 => Ok(Self::from_seed(seed)),
            _ => Err("not an Ed25519 key: `openssl genpkey -algorithm ed25519` makes one".into()),
        }
    }

    /// Writes the key to a new file that only its owner can read (mode 0600).
    ///
    /// # Errors
    ///
    /// [`Error::File`] where there is such a file already, or it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let pem = self.with_info(|info| {
            SecretDocument::try_from(info)
                .ok()?
                .to_pem(PrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
                .ok()
        });
        create_private(
            path,
            &pem.ok_or_else(|| Error::file(path, "the key cannot be encoded"))?,
        )
    }

    /// Like [`Key::save`], encrypted under `passphrase`.
    ///
    /// # Errors
    ///
    /// Those of [`Key::save`].
    pub fn save_encrypted(&self, path: impl AsRef<Path>, passphrase: &Passphrase) -> Result<()> {
        let path = path.as_ref();
        let pem = self.with_info(|info| {
            let sealed = info.encrypt(passphrase.0.as_bytes()).ok()?;
            sealed
                .to_pem(EncryptedPrivateKeyInfoRef::PEM_LABEL, LineEnding::LF)
                .ok()
        });
        create_private(
            path,
            &pem.ok_or_else(|| Error::file(path, "the key cannot be encrypted"))?,
        )
    }

    fn with_info<T>(&self, write: impl FnOnce(&PrivateKeyInfoRef<'_>) -> Option<T>) -> Option<T> {
        let mut inner = Zeroizing::new([0; 34]);
        inner[..2].copy_from_slice(&SEED_HEADER);
        inner[2..].copy_from_slice(self.0.seed());
        let algorithm = AlgorithmIdentifierRef {
            oid: ED25519,
            parameters: None,
        };
        // Without the public key this is the first version of the form: OpenSSL 3.0 reads no other.
        write(&PrivateKeyInfoRef::new(
            algorithm,
            OctetStringRef::new(&*inner).ok()?,
        ))
    }

    /// What others verify with.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.0.public()
    }

    /// The key as the protocol core uses it.
    #[must_use]
    pub fn signing(&self) -> &SigningKey {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(of {})", self.public())
    }
}

/// What an encrypted key file is opened with. Wiped when dropped, never shown.
pub struct Passphrase(Zeroizing<String>);

impl Passphrase {
    /// The passphrase `text`.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// Reads it from a file that only its owner can read; one line break at the end is not part of it.
    ///
    /// # Errors
    ///
    /// [`Error::File`] where others can read or write the file.
    pub fn load(path: &Path) -> Result<Self> {
        let text = read_private(path, KEY_FILE_BYTES_MAX)?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        Ok(Self::new(
            line.strip_suffix('\r').unwrap_or(line).to_owned(),
        ))
    }
}

impl fmt::Debug for Passphrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase(…)")
    }
}

/// Reads a file of at most `most` bytes that holds a secret. The mode is looked up on the opened file, so what is checked is
/// what is read.
pub(crate) fn read_private(path: &Path, most: u64) -> Result<Zeroizing<String>> {
    let cannot = |why: std::io::Error| Error::file(path, format!("cannot be read: {why}"));
    let file = File::open(path).map_err(cannot)?;
    let metadata = file.metadata().map_err(cannot)?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::file(
            path,
            format!(
                "others can read or write this file (mode {mode:04o}), so its secret may be known: run `chmod 600 {}`, and replace the secret if the machine is shared",
                path.display()
            ),
        ));
    }
    if metadata.len() > most {
        return Err(Error::file(path, "too long for a secret"));
    }
    let mut text = Zeroizing::new(String::with_capacity(most as usize));
    file.take(most).read_to_string(&mut text).map_err(cannot)?;
    Ok(text)
}

/// Creates a file that nobody else can open at any moment: exclusively, with its mode from the start.
fn create_private(path: &Path, text: &str) -> Result<()> {
    let open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let mut file = open.map_err(|why| match why.kind() {
        std::io::ErrorKind::AlreadyExists => Error::file(
            path,
            "exists already, and a key is never overwritten: choose another name",
        ),
        _ => Error::file(path, format!("cannot be created: {why}")),
    })?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    written.map_err(|why| {
        // Half a key helps nobody; the file is ours, made a moment ago.
        let _ = std::fs::remove_file(path);
        Error::file(path, format!("cannot be written: {why}"))
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode_of(path: &Path) -> u32 {
        path.metadata().unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_comes_back_from_its_file_and_the_file_is_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let key = Key::generate().unwrap();
        key.save(&path).unwrap();
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(Key::load(&path).unwrap().public(), key.public());
    }

    #[test]
    fn a_key_file_that_others_can_read_or_write_is_refused_with_what_to_run() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        Key::from_seed(&[1; 32]).save(&path).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o644, 0o666, 0o610, 0o601] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let why = Key::load(&path).unwrap_err().to_string();
            assert!(
                why.contains(&format!("chmod 600 {}", path.display())),
                "{why}"
            );
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o400)).unwrap();
        Key::load(&path).unwrap();
    }

    #[test]
    fn a_key_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        Key::from_seed(&[1; 32]).save(&path).unwrap();
        let second = Key::from_seed(&[2; 32]);
        assert!(
            second
                .save(&path)
                .unwrap_err()
                .to_string()
                .contains("exists already")
        );
        assert!(
            second
                .save_encrypted(&path, &Passphrase::new("x".into()))
                .is_err()
        );
        assert_eq!(
            Key::load(&path).unwrap().public(),
            Key::from_seed(&[1; 32]).public()
        );
    }

    #[test]
    fn an_encrypted_key_opens_with_its_passphrase_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");
        let key = Key::from_seed(&[3; 32]);
        key.save_encrypted(&path, &Passphrase::new("open sesame".into()))
            .unwrap();
        assert_eq!(mode_of(&path), 0o600);
        let opened = Key::load_encrypted(&path, &Passphrase::new("open sesame".into()));
        assert_eq!(opened.unwrap().public(), key.public());
        assert!(Key::load_encrypted(&path, &Passphrase::new("open barley".into())).is_err());
        let why = Key::load(&path).unwrap_err().to_string();
        assert!(why.contains("FEM_KEY_PASSPHRASE_FILE"), "{why}");
    }

    /// RFC 8410, section 10.3: with and without the public key.
    #[test]
    fn keys_of_both_versions_of_pkcs8_and_bare_seeds_are_read() {
        let first = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        let second = "-----BEGIN PRIVATE KEY-----\n\
            MHICAQEwBQYDK2VwBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            oB8wHQYKKoZIhvcNAQkJFDEPDA1DdXJkbGUgQ2hhaXJzgSEAGb9ECWmEzf6FQbrB\n\
            Z9w7lshQhqowtrbLDFw4rXAxZuE=\n\
            -----END PRIVATE KEY-----\n";
        let seed = "1O5y2/kTWErVttjx92n4rTr+fCjL8dT74Jeoj0R1WEI=";
        let keys = [first, second, seed].map(|text| Key::from_text(text, None).unwrap().public());
        assert_eq!(
            keys[0].to_string(),
            "Gb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE="
        );
        assert!(keys.iter().all(|key| *key == keys[0]));
    }

    #[test]
    fn what_is_no_ed25519_key_is_refused() {
        let certificate = "-----BEGIN CERTIFICATE-----\nMC4CAQAwBQYDK2VwBCIEINTuctv5E1hK\n-----END CERTIFICATE-----\n";
        // An X25519 key (1.3.101.110) has the very same shape.
        let x25519 = "-----BEGIN PRIVATE KEY-----\n\
            MC4CAQAwBQYDK2VuBCIEINTuctv5E1hK1bbY8fdp+K06/nwoy/HU++CXqI9EdVhC\n\
            -----END PRIVATE KEY-----\n";
        for bad in ["", "hello", "AAAA", certificate, x25519] {
            assert!(Key::from_text(bad, None).is_err(), "{bad:?}");
        }
    }

    /// Runs where `openssl` is installed: the file is a standard one, both ways.
    #[test]
    fn openssl_reads_our_key_files_and_we_read_its() {
        let openssl = |arguments: &[&str]| {
            std::process::Command::new("openssl")
                .args(arguments)
                .output()
                .ok()
        };
        if openssl(&["version"]).is_none() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name).display().to_string();
        let key = Key::generate().unwrap();
        key.save(at("plain")).unwrap();
        key.save_encrypted(at("sealed"), &Passphrase::new("secret".into()))
            .unwrap();
        for file in ["plain", "sealed"] {
            let shown = openssl(&[
                "pkey",
                "-in",
                &at(file),
                "-passin",
                "pass:secret",
                "-pubout",
                "-outform",
                "DER",
            ]);
            assert!(
                shown.unwrap().stdout.ends_with(key.public().as_bytes()),
                "{file}"
            );
        }
        let made = openssl(&["genpkey", "-algorithm", "ed25519", "-out", &at("theirs")]).unwrap();
        assert!(made.status.success());
        std::fs::set_permissions(at("theirs"), std::fs::Permissions::from_mode(0o600)).unwrap();
        let theirs = Key::load(at("theirs")).unwrap().public();
        let shown = openssl(&["pkey", "-in", &at("theirs"), "-pubout", "-outform", "DER"]).unwrap();
        assert!(shown.stdout.ends_with(theirs.as_bytes()));
    }

    #[test]
    fn a_key_does_not_show_itself() {
        let key = Key::from_seed(&[7; 32]);
        assert_eq!(format!("{key:?}"), format!("Key(of {})", key.public()));
        assert_eq!(
            format!("{:?}", Passphrase::new("secret".into())),
            "Passphrase(…)"
        );
    }
}
