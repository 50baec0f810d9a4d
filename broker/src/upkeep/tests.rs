//! Backups of journals that nobody has open, and what is refused.

use proto_spec::{Name, Org, PublicKey, SigningKey, Timestamp};

use super::*;
use crate::change::Change;
use crate::journal::{Embedded, Journal as _};

fn org() -> Org {
    "acme".parse().unwrap()
}

/// The data directory of an organisation, founded.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::from_seed(&[1; 32]).public();
    let mut journal = Embedded::open(folder.path()).unwrap();
    journal
        .append(&[&Change::Founded {
            org: org(),
            broker: key,
            root: key,
            recovery: key,
            admin: "root-admin".parse().unwrap(),
            admin_key: key,
            at: Timestamp::from_ms(7),
        }])
        .unwrap();
    folder
}

#[test]
fn a_backup_is_a_data_directory_and_is_never_overwritten() {
    let data = data();
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("backup");
    let summary = back_up(data.path(), &target).unwrap();
    assert_eq!(
        (summary.records, summary.first),
        (1, Some(Timestamp::from_ms(7)))
    );
    assert_eq!(verify(&target).unwrap(), summary);
    let error = back_up(data.path(), &target).unwrap_err().to_string();
    assert!(error.contains("never overwritten"), "{error}");
    let left = std::fs::read_dir(place.path()).unwrap().count();
    assert_eq!(left, 1, "nothing unfinished is left");
}

#[test]
fn a_restore_takes_a_whole_backup_of_this_organisation_into_an_empty_directory() {
    let data = data();
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("backup");
    let summary = back_up(data.path(), &target).unwrap();
    let new = place.path().join("new");
    let error = restore(&target, &"globex".parse().unwrap(), &new).unwrap_err();
    assert!(error.to_string().contains("acme's"), "{error}");
    assert_eq!(restore(&target, &org(), &new).unwrap(), summary);
    assert_eq!(verify(&new).unwrap(), summary);
    let error = restore(&target, &org(), &new).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    let left = std::fs::read_dir(&new).unwrap().count();
    assert_eq!(left, 3, "nothing unfinished is left");
}

#[test]
fn a_damaged_backup_is_not_restored() {
    let data = data();
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("backup");
    back_up(data.path(), &target).unwrap();
    let new = place.path().join("new");
    let path = target.join("journal.redb");
    let whole = std::fs::read(&path).unwrap();
    let at = whole.windows(4).position(|at| at == b"acme").unwrap();
    let mut spoilt = whole.clone();
    spoilt[at] = b'A';
    for spoilt in [&spoilt[..], &whole[..whole.len() / 2], &[]] {
        std::fs::write(&path, spoilt).unwrap();
        restore(&target, &org(), &new).unwrap_err();
        assert!(!new.exists(), "nothing was made");
    }
    std::fs::write(&path, &whole).unwrap();
    std::fs::remove_file(target.join("journal.head")).unwrap();
    restore(&target, &org(), &new).unwrap_err();
}

#[test]
fn a_socket_of_a_broker_that_is_gone_is_nobody() {
    let data = data();
    drop(std::os::unix::net::UnixListener::bind(data.path().join("control.sock")).unwrap());
    assert_eq!(verify(data.path()).unwrap().records, 1);
}

const RECOVERY: [u8; 32] = [1; 32];

fn public(seed: u8) -> PublicKey {
    SigningKey::from_seed(&[seed; 32]).public()
}

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

/// That this agent was approved with the key of this seed.
fn approved(agent: &str, seed: u8) -> Change {
    Change::Approved {
        name: name(agent),
        key: public(seed),
        grant: None,
        capabilities: Vec::new(),
        expires: Timestamp::from_ms(1_000),
        prefixes: Vec::new(),
        admin: None,
        older: None,
        by: name("root-admin"),
        at: Timestamp::from_ms(8),
    }
}

#[test]
fn a_recovery_names_no_key_that_is_revoked_or_another_agents() {
    let data = data();
    let revoked = Change::AgentRevoked {
        name: name("gone"),
        key: public(6),
        reason: None,
        by: name("root-admin"),
        at: Timestamp::from_ms(9),
    };
    let mut journal = Embedded::open(data.path()).unwrap();
    journal
        .append(&[&approved("fs", 5), &approved("gone", 6), &revoked])
        .unwrap();
    drop(journal);
    let key = SigningKey::from_seed(&RECOVERY);
    let admit = |admin: &str, seed, at| {
        let recovery = Recovery::begin(data.path(), &key).unwrap();
        recovery.admit(&name(admin), public(seed), Timestamp::from_ms(at))
    };
    for (admin, seed, why) in [("boss", 5, "is fs's"), ("gone", 6, "is revoked")] {
        let error = admit(admin, seed, 10).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
    assert_eq!(
        verify(data.path()).unwrap().records,
        4,
        "nothing was written"
    );
    admit("boss", 7, 11).unwrap();
    // No start has given it anything yet; it is taken all the same.
    let error = admit("deputy", 7, 12).unwrap_err().to_string();
    assert!(error.contains("is boss's"), "{error}");
    admit("boss", 7, 12).unwrap();
    admit("fs", 5, 13).unwrap();
}

#[test]
fn a_recovery_on_record_that_the_recovery_key_did_not_sign_once_is_refused() {
    let key = SigningKey::from_seed(&RECOVERY);
    let (admin, at) = (name("boss"), Timestamp::from_ms(9));
    let signed = |by: &SigningKey, org: &str, key: PublicKey, at| {
        by.sign(&crate::change::recovery_statement(
            &org.parse().unwrap(),
            &admin,
            &key,
            at,
        ))
    };
    let said = |proof| Change::Recovered {
        admin: admin.clone(),
        admin_key: public(7),
        proof,
        at,
    };
    let good = said(signed(&key, "acme", public(7), at));
    let later = Timestamp::from_ms(10);
    for changes in [
        vec![said(signed(
            &SigningKey::from_seed(&[2; 32]),
            "acme",
            public(7),
            at,
        ))],
        vec![said(signed(&key, "globex", public(7), at))],
        vec![said(signed(&key, "acme", public(8), at))],
        vec![said(signed(&key, "acme", public(7), later))],
        vec![good.clone(), good.clone()],
    ] {
        let data = data();
        let mut journal = Embedded::open(data.path()).unwrap();
        journal.append(&changes.iter().collect::<Vec<_>>()).unwrap();
        drop(journal);
        let error = Recovery::begin(data.path(), &key).unwrap_err().to_string();
        assert!(error.contains("recovery that names boss"), "{error}");
    }
    let data = data();
    Embedded::open(data.path())
        .unwrap()
        .append(&[&good])
        .unwrap();
    Recovery::begin(data.path(), &key).unwrap();
}

#[test]
fn what_a_recovery_key_signs_is_neither_an_envelope_nor_a_block() {
    let statement =
        crate::change::recovery_statement(&org(), &name("boss"), &public(7), Timestamp::from_ms(9));
    assert!(![b'{', 0x00, 0x0a, 0x18, b' '].contains(&statement[0]));
}
