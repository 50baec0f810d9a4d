//! Development certificates: a certificate authority of this organisation's own, and one broker.
//!
//! For trying FEM out and for networks where you hand out the authority yourself. Clients trust
//! exactly this authority and nothing else; the broker's own key is checked besides, in every answer.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use crate::failure::{Failure, Outcome};

/// Days that a development certificate is good for.
pub(crate) const VALID_DAYS: u64 = 397;

/// PEM texts: what `init` writes under `tls/`.
pub(crate) struct Development {
    pub(crate) ca: String,
    pub(crate) ca_key: String,
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// Makes an authority for `org` and a server certificate for `hosts` (names or addresses), good from
/// yesterday, so that a client whose clock is a little slow still takes it.
pub(crate) fn development(
    org: &str,
    hosts: &[String],
    today: jiff::Timestamp,
) -> Outcome<Development> {
    make(org, hosts, today)
        .map_err(|e| Failure::fault(format!("the development certificates cannot be made: {e}")))
}

fn make(org: &str, hosts: &[String], today: jiff::Timestamp) -> Result<Development, rcgen::Error> {
    let mut authority = params(Vec::new(), &format!("{org} development CA"), today)?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;

    let mut broker = params(hosts.to_vec(), &format!("broker of {org}"), today)?;
    broker.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    broker.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    broker.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = broker.signed_by(&key, &authority)?;
    Ok(Development {
        ca: authority.pem(),
        ca_key: authority.key().serialize_pem(),
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

fn params(
    hosts: Vec<String>,
    name: &str,
    today: jiff::Timestamp,
) -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(hosts)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let day = |offset: i64| {
        let hours = jiff::SignedDuration::from_hours(24 * offset);
        let date = today
            .saturating_add(hours)
            .unwrap_or(today)
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date();
        date_time_ymd(
            date.year().into(),
            date.month().unsigned_abs(),
            date.day().unsigned_abs(),
        )
    };
    params.not_before = day(-1);
    params.not_after = day(i64::try_from(VALID_DAYS).unwrap_or(i64::MAX));
    Ok(params)
}

/// Until when a DER certificate is good: read from its `validity`, the fifth part of what is signed.
pub(crate) fn good_until(der: &[u8]) -> Option<proto_spec::Timestamp> {
    let (certificate, _) = element(der)?;
    let (signed, _) = element(certificate)?;
    // version [0], serialNumber, signature, issuer, validity.
    let skip = if signed.first() == Some(&0xa0) { 4 } else { 3 };
    let mut rest = signed;
    for _ in 0..skip {
        rest = element(rest)?.1;
    }
    let (validity, _) = element(rest)?;
    let (_, not_after) = element(validity)?;
    let (text, _) = element(not_after)?;
    let text = std::str::from_utf8(text).ok()?;
    // UTCTime has two digits of the year (RFC 5280: below 50 is 20xx), GeneralizedTime four.
    let full = match text.len() {
        13 if text < "50" => format!("20{text}"),
        13 => format!("19{text}"),
        _ => text.to_owned(),
    };
    let at = jiff::civil::DateTime::strptime("%Y%m%d%H%M%SZ", &full).ok()?;
    let ms = at
        .to_zoned(jiff::tz::TimeZone::UTC)
        .ok()?
        .timestamp()
        .as_millisecond();
    Some(proto_spec::Timestamp::from_ms(u64::try_from(ms).ok()?))
}

/// The contents of the DER element that `bytes` begins with, and what follows it.
fn element(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = usize::from(*bytes.get(1)?);
    let (header, length) = match first {
        0..=0x7f => (2, first),
        0x81..=0x83 => {
            let digits = bytes.get(2..2 + (first - 0x80))?;
            (
                2 + digits.len(),
                digits
                    .iter()
                    .fold(0, |sum, digit| sum << 8 | usize::from(*digit)),
            )
        }
        _ => return None,
    };
    Some((
        bytes.get(header..header + length)?,
        bytes.get(header + length..)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_made_for_names_and_addresses() {
        let hosts = ["localhost", "127.0.0.1", "::1", "broker.example"].map(String::from);
        let made = development("acme", &hosts, jiff::Timestamp::now()).unwrap();
        assert!(made.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(made.key.contains("PRIVATE KEY") && made.ca_key.contains("PRIVATE KEY"));
        assert_ne!(made.ca, made.certificate);
    }

    #[test]
    fn the_end_of_a_certificate_is_read_from_it() {
        use rustls::pki_types::{CertificateDer, pem::PemObject as _};
        let today: jiff::Timestamp = "2026-11-22T10:00:00Z".parse().unwrap();
        let made = development("acme", &["localhost".into()], today).unwrap();
        let der = CertificateDer::from_pem_slice(made.certificate.as_bytes()).unwrap();
        let until = good_until(&der).unwrap();
        assert_eq!(crate::time::show(until), "2027-12-24T00:00:00Z");
        assert_eq!(good_until(&der[..40]), None);
        assert_eq!(good_until(b""), None);
    }

    #[test]
    fn a_host_that_is_no_name_is_refused() {
        assert!(development("acme", &["höst".into()], jiff::Timestamp::now()).is_err());
    }
}
