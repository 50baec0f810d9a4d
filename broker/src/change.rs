//! The durable facts: what the journal holds, and the only things that change a broker's state.

use proto_spec::message::{AdminScope, Older, Trust, TrustNews};
use proto_spec::trust::Decision;
use proto_spec::{
    Capability, Digest, Name, NamePattern, Org, Pattern, PublicKey, Signature, Timestamp,
};
use serde::{Deserialize, Serialize};

/// One thing that happened and stays so. Tokens are sealed, in base64url.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "camelCase")]
#[expect(
    missing_docs,
    reason = "fields are named by the protocol; variants say what they record"
)]
#[expect(
    clippy::large_enum_variant,
    reason = "a change is made rarely and moved never"
)]
pub enum Change {
    /// The organisation exists. Always the first record, and only that.
    Founded {
        org: Org,
        broker: PublicKey,
        root: PublicKey,
        recovery: PublicKey,
        admin: Name,
        admin_key: PublicKey,
        at: Timestamp,
    },
    /// An agent has this key and these rights from here on; replaces what its approval gave before.
    Approved {
        name: Name,
        key: PublicKey,
        grant: Option<(Digest, String)>,
        capabilities: Vec<Pattern>,
        expires: Timestamp,
        prefixes: Vec<Pattern>,
        admin: Option<AdminScope>,
        /// Its key was enrolled by the compatibility mode: what it told of itself then.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        older: Option<Older>,
        by: Name,
        at: Timestamp,
    },
    /// This (name, key) was turned down.
    Denied {
        name: Name,
        key: PublicKey,
        reason: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// The agent is gone and its key never comes back.
    AgentRevoked {
        name: Name,
        key: PublicKey,
        reason: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// A grant was issued: kept on record (with the token) or handed out (without).
    Issued {
        id: Digest,
        agent: Name,
        capabilities: Vec<Pattern>,
        checks: Vec<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        not_before: Option<Timestamp>,
        expires: Timestamp,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        calls: Option<u32>,
        record: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// An enrolment token was issued.
    EnrolmentIssued {
        id: Digest,
        name: NamePattern,
        ceiling: Vec<Pattern>,
        uses: u32,
        expires: Timestamp,
        by: Name,
        at: Timestamp,
    },
    /// An agent came in by an enrolment token: one use of it and the approval are one record.
    Enrolled {
        enrolment: Digest,
        name: Name,
        key: PublicKey,
        grant: Option<(Digest, String)>,
        capabilities: Vec<Pattern>,
        expires: Timestamp,
        prefixes: Vec<Pattern>,
        at: Timestamp,
    },
    /// These blocks are dead.
    Revoked {
        ids: Vec<Digest>,
        reason: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// The organisation's recovery key named an admin, offline; the next start gives it everything.
    /// `proof` is that key's signature of [`recovery_statement`].
    Recovered {
        admin: Name,
        admin_key: PublicKey,
        proof: Signature,
        at: Timestamp,
    },
    /// The agent's key has a successor; its grants on record were issued anew to it.
    Rotated {
        name: Name,
        from: PublicKey,
        to: PublicKey,
        grants: Vec<Reissued>,
        at: Timestamp,
    },
    /// An agent, what flows from it, and how it came in are dead, in one act.
    Quarantined {
        name: Name,
        agents: Vec<(Name, PublicKey)>,
        ids: Vec<Digest>,
        reason: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// What was issued up to `before` permits nothing under these patterns any more.
    Barred {
        under: Vec<Pattern>,
        before: Timestamp,
        reason: Option<String>,
        by: Name,
        at: Timestamp,
    },
    /// So many calls more may be made on the budget of this block. A crash loses what is left of them.
    Reserved {
        block: Digest,
        calls: u32,
        at: Timestamp,
    },
    /// An act waits for a second admin.
    Proposed {
        id: Digest,
        act: String,
        body: String,
        by: Name,
        at: Timestamp,
        expires: Timestamp,
    },
    /// It waits no more: the second admin agreed, and its change follows; or it was dropped.
    ProposalClosed {
        id: Digest,
        agreed: bool,
        by: Name,
        at: Timestamp,
    },
    /// The next root key exists, and is accepted.
    RootPrepared {
        key: PublicKey,
        by: Name,
        at: Timestamp,
    },
    /// Tokens are rooted in this key from here on.
    RootActivated {
        key: PublicKey,
        by: Name,
        at: Timestamp,
    },
    /// Grants on record that were rooted in a key that retires were issued anew.
    Reissued {
        name: Name,
        grants: Vec<Reissued>,
        at: Timestamp,
    },
    /// Nothing that is rooted in this key is accepted any more.
    RootRetired {
        key: PublicKey,
        by: Name,
        at: Timestamp,
    },
    /// An organisation is a peer, by this key and at these endpoints.
    PeerAdded {
        org: Org,
        key: PublicKey,
        endpoints: Vec<String>,
        asks: Vec<Pattern>,
        by: Name,
        at: Timestamp,
    },
    /// Its link stays down, or may come up again.
    PeerPaused {
        org: Org,
        paused: bool,
        by: Name,
        at: Timestamp,
    },
    /// It is a peer no longer; these grants of its are dead.
    PeerRemoved {
        org: Org,
        ids: Vec<Digest>,
        by: Name,
        at: Timestamp,
    },
    /// A peer's grants were issued anew, to this key of its broker: these are dead, and others follow.
    PeerReissued {
        org: Org,
        key: PublicKey,
        ids: Vec<Digest>,
        at: Timestamp,
    },
    /// A peer's agents may do this here. The token is unsealed: its broker delegates from it. `follows` is
    /// the id of the grant that it was before it was issued anew.
    PeerGranted {
        id: Digest,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        follows: Option<Digest>,
        org: Org,
        holder: PublicKey,
        capabilities: Vec<Pattern>,
        checks: Vec<String>,
        depth: u32,
        expires: Timestamp,
        token: String,
        by: Name,
        at: Timestamp,
    },
    /// This organisation states how far it trusts another, under this number.
    TrustStated {
        trustee: Org,
        trust: Trust,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        capabilities: Vec<Pattern>,
        seq: u64,
        expires: Timestamp,
        by: Name,
        at: Timestamp,
    },
    /// Where another organisation stands, whatever is said of it; without a decision, as is said.
    TrustDecided {
        org: Org,
        decision: Option<Decision>,
        by: Name,
        at: Timestamp,
    },
    /// A peer told news of trust: whom it vouches for, and statements as their makers signed them.
    TrustHeard {
        from: Org,
        news: TrustNews,
        at: Timestamp,
    },
    /// The broker's next key exists; the active one named it in `succession`, an envelope as text.
    BrokerKeyPrepared {
        key: PublicKey,
        succession: String,
        by: Name,
        at: Timestamp,
    },
    /// The broker signs with this key from here on.
    BrokerKeyActivated {
        key: PublicKey,
        by: Name,
        at: Timestamp,
    },
    /// Nobody who has this key is led to the next any more.
    BrokerKeyRetired {
        key: PublicKey,
        by: Name,
        at: Timestamp,
    },
    /// Whoever runs this machine said that it is `at`, although there was a record of `was`.
    ClockAccepted { was: Timestamp, at: Timestamp },
}

/// A grant on record that was issued anew: to a new key, or under another root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reissued {
    /// The old grant.
    pub old: Digest,
    /// The new one's id.
    pub new: Digest,
    /// The new one, sealed.
    pub token: String,
}

impl Change {
    /// Whether taking it over gives the same before and after others of which this is true.
    #[must_use]
    pub fn commutes(&self) -> bool {
        matches!(
            self,
            Self::Issued { .. } | Self::EnrolmentIssued { .. } | Self::Proposed { .. }
        )
    }

    /// The newest time on record after this change, where it was `newest` before.
    #[must_use]
    pub fn newest(&self, newest: Timestamp) -> Timestamp {
        match self {
            Self::ClockAccepted { at, .. } => *at,
            _ => newest.max(self.at()),
        }
    }

    /// When it happened, by the broker's clock.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        match self {
            Self::Founded { at, .. }
            | Self::Approved { at, .. }
            | Self::Denied { at, .. }
            | Self::AgentRevoked { at, .. }
            | Self::Issued { at, .. }
            | Self::EnrolmentIssued { at, .. }
            | Self::Enrolled { at, .. }
            | Self::Revoked { at, .. }
            | Self::Recovered { at, .. }
            | Self::Rotated { at, .. }
            | Self::Quarantined { at, .. }
            | Self::Barred { at, .. }
            | Self::Reserved { at, .. }
            | Self::Proposed { at, .. }
            | Self::ProposalClosed { at, .. }
            | Self::RootPrepared { at, .. }
            | Self::RootActivated { at, .. }
            | Self::Reissued { at, .. }
            | Self::RootRetired { at, .. }
            | Self::PeerAdded { at, .. }
            | Self::PeerPaused { at, .. }
            | Self::PeerRemoved { at, .. }
            | Self::PeerReissued { at, .. }
            | Self::PeerGranted { at, .. }
            | Self::TrustStated { at, .. }
            | Self::TrustDecided { at, .. }
            | Self::TrustHeard { at, .. }
            | Self::BrokerKeyPrepared { at, .. }
            | Self::BrokerKeyActivated { at, .. }
            | Self::BrokerKeyRetired { at, .. }
            | Self::ClockAccepted { at, .. } => *at,
        }
    }
}

/// What the recovery key signs: that this key is an admin's. Its first byte begins nothing else that any
/// key of the protocol signs (SPEC.md, *What one key signs*).
#[must_use]
pub fn recovery_statement(org: &Org, admin: &Name, key: &PublicKey, at: Timestamp) -> Vec<u8> {
    // No part holds a line break, so each reads back in one way only.
    format!("RECOVERY 1\n{org}\n{admin}\n{key}\n{}\n", at.as_ms()).into_bytes()
}

/// The prefixes of an agent that asked for none: its own name.
#[must_use]
pub fn default_prefixes(name: &Name) -> Vec<Pattern> {
    // A dot-separated name is a capability by grammar, unless it has too many segments.
    name.as_str()
        .parse::<Capability>()
        .ok()
        .and_then(|own| format!("{own}.*").parse().ok())
        .into_iter()
        .collect()
}
