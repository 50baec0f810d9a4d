//! Every bound of the protocol, its unit, and why that number.

use std::time::Duration;

/// Bytes of one envelope unless a broker is configured otherwise. A tool's result with a picture fits.
pub const ENVELOPE_BYTES: usize = 4 << 20;
/// Bytes of one envelope that no configuration may exceed: it is held in memory once per hop.
pub const ENVELOPE_BYTES_MAX: usize = 16 << 20;
/// Bytes of a word that one broker says to another over their link, whatever it takes of agents.
pub const WORD_BYTES_MAX: usize = 4 << 20;
/// Bytes of one tool as it is advertised, with all that is said of it. Whoever adds to it, passes it on.
pub const ADVERTISED_TOOL_BYTES_MAX: usize = 64 << 10;
/// Bytes of all tools that a broker advertises to one peer at once.
pub const ADVERTISED_BYTES_MAX: usize = 16 << 20;
/// Tools that a broker advertises to one peer at once.
pub const ADVERTISED_TOOLS_MAX: usize = 10_000;
/// Bytes that an agent's connection takes until it is attached: an `attach` with a token.
pub const ATTACH_BYTES_MAX: usize = 32 << 10;
/// Bytes that a link takes until it is attached: a `linkAttach` with eight successions.
pub const LINK_ATTACH_BYTES_MAX: usize = 64 << 10;
/// How deep objects and arrays may nest, the envelope itself included. Honest schemas stay below 20.
pub const DEPTH_MAX: usize = 64;
/// How far a sender's clock may be from the verifier's, on either side.
pub const CLOCK_SKEW_MAX: Duration = Duration::from_secs(300);
/// Characters of a nonce: at least 95 bits when chosen at random, short enough to remember.
pub const NONCE_CHARS: std::ops::RangeInclusive<usize> = 16..=128;
/// Integers in a header stay below this, so that every JSON reader sees the same number.
pub const INTEGER_MAX: u64 = 1 << 53;
/// How long a call may take when it does not say, counted from its receipt.
pub const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);
/// How long a call may take at most: a day, for agents that ask people.
pub const DEADLINE_MAX: Duration = Duration::from_secs(86_400);
/// Characters of an agent's name.
pub const NAME_CHARS_MAX: usize = 64;
/// Characters of an organisation's name: one DNS label.
pub const ORG_CHARS_MAX: usize = 63;
/// Segments of a capability.
pub const SEGMENTS_MAX: usize = 16;
/// Segments of a tool's capability: four fewer, so that `peer.<org>.` and its like still fit in front.
pub const TOOL_SEGMENTS_MAX: usize = 12;
/// Characters of one segment of a capability.
pub const SEGMENT_CHARS_MAX: usize = 64;
/// Characters of the `via` and `trace` header members.
pub const NOTE_CHARS_MAX: usize = 128;
/// Tools that one agent may offer at once.
pub const TOOLS_MAX: usize = 512;
/// Topic patterns that one session may be subscribed to.
pub const SUBSCRIPTIONS_MAX: usize = 256;
/// Capabilities in one request, approval or token.
pub const CAPABILITIES_MAX: usize = 64;
/// How long a challenge may be answered.
pub const CHALLENGE_VALIDITY: Duration = Duration::from_secs(10);
/// How long a broker's `credential` may be relied on.
pub const CREDENTIAL_VALIDITY: Duration = Duration::from_secs(300);
/// Keys that a broker may have at once, prepared and retiring ones included.
pub const BROKER_KEYS_MAX: usize = 8;
/// Bytes of a `succession`, and of an `acceptKey`: both together are under 1 KiB.
pub const SUCCESSION_BYTES_MAX: usize = 4 << 10;
/// Tools that an older agent may tell of when it registers: it has one envelope for all that it says.
pub const OLDER_TOOLS_MAX: usize = 64;
/// Characters of a bare tool name of an older agent.
pub const OLDER_TOOL_CHARS_MAX: usize = 256;
/// Characters of an older agent's endpoint.
pub const OLDER_ENDPOINT_CHARS_MAX: usize = 512;
/// Bytes of a token, decoded.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Blocks of a token, the authority block included.
pub const TOKEN_BLOCKS_MAX: usize = 8;
/// Operators in one query of a token's check.
pub const TOKEN_OPERATORS_MAX: usize = 64;
/// Cost units of all checks of a token, about 0.6 µs each: SPEC.md, *Token gate*.
pub const TOKEN_COST_MAX: u64 = 1_000;
/// Predicates in one query of a token's check: the engine nests an iterator for each.
pub const TOKEN_ATOMS_MAX: usize = 8;
/// How deep `&&` and `||` may nest in a token's check: the engine copies what is inside at every level.
pub const TOKEN_CLOSURES_MAX: usize = 6;
/// Strings in the symbol tables of a token: the engine finds each by walking the table.
pub const TOKEN_SYMBOLS_MAX: usize = 256;
/// Bytes of all strings in a token's checks, each counted as often as it is used.
pub const TOKEN_TEXT_MAX: usize = 16 << 10;
/// How long the token engine may take: what the gate admits needs a thousandth, so this is a broken machine.
pub const TOKEN_TIME_MAX: Duration = Duration::from_secs(10);
/// Facts of each of `arg`, `path` and `odd_arg` that a call's arguments may become.
pub const ARGUMENT_FACTS_MAX: usize = 32;
/// Bytes of an argument string that becomes a fact.
pub const ARGUMENT_STRING_MAX: usize = 1 << 10;
/// Tokens that one frame between brokers carries: each is tried until one permits.
pub const RELAY_TOKENS_MAX: usize = 4;
/// Organisations that an envelope may come through: its own and one more. A capability has room for no
/// more names of organisations in front of a tool's.
pub const HOPS_MAX: usize = 2;
/// Endpoints, and TLS keys, that a peer's descriptor may name.
pub const PEER_ENDPOINTS_MAX: usize = 8;
/// Grants of one peer that are in force at once.
pub const PEER_GRANTS_MAX: usize = 64;
/// How long an agent's token for a peer's tools holds: its home broker makes the next one.
pub const INTRODUCTION_VALIDITY: Duration = Duration::from_secs(600);
/// Agents of one peer that may listen to topics at once.
pub const LISTENERS_MAX: usize = 1_024;
/// Statements a path of trust may have: what a friend's friend knows of somebody.
pub const TRUST_HOPS_MAX: usize = 3;
/// How long a statement of trust may hold, and how long one that was replaced is remembered as such.
pub const TRUST_VALIDITY_MAX: Duration = Duration::from_secs(90 * 86_400);
/// Bytes of a `trustStatement` envelope.
pub const TRUST_STATEMENT_BYTES_MAX: usize = 4 << 10;
/// Patterns under which one statement counts. Each is compared whenever a score looks at the statement.
pub const TRUST_CONDITIONS_MAX: usize = 16;
/// Statements of one organisation and of all whom it introduced together: no swarm gains room.
pub const TRUST_STATEMENTS_PER_MAKER_MAX: usize = 256;
/// Statements of all other organisations: some megabytes, and at worst a score costs less than a hundred
/// signatures.
pub const TRUST_STATEMENTS_MAX: usize = 10_000;
/// Organisations that an admin may add as peers.
pub const TRUST_PEERS_MAX: usize = 1_024;
/// Organisations that one peer may introduce.
pub const TRUST_INTRODUCTIONS_MAX: usize = 256;
/// Organisations about which an admin may have decided.
pub const TRUST_DECISIONS_MAX: usize = 1_024;
/// Paths that explain one score.
pub const TRUST_PATHS_MAX: usize = 8;
/// Organisations in one picture: more than that nobody reads.
pub const PICTURE_NODES_MAX: usize = 40;
/// Arrows in one picture.
pub const PICTURE_ARROWS_MAX: usize = 120;
