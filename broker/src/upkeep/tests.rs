//! Backups of journals that nobody has open, and what is refused.

use proto_spec::{Org, Timestamp};

use super::*;
use crate::change::Change;
use crate::journal::{Embedded, Journal as _};

fn org() -> Org {
    "acme".parse().unwrap()
}

/// The data directory of an organisation, founded.
fn data() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = proto_spec::SigningKey::from_seed(&[1; 32]).public();
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
