//! Laws of tokens over chains that nobody wrote by hand: rights only shrink, only the right key
//! presents, and the table decides what the engine would.

#![expect(clippy::unwrap_used, reason = "a failing test panics")]

use biscuit_auth::format::schema;
use proptest::prelude::*;
use proto_spec::capability::issue::{attenuate, delegate};
use proto_spec::capability::{Arguments, Check, Narrowing, Question, Token, permits};
use proto_spec::{Code, Digest};

mod fixture;
use fixture::*;

/// Things to ask for, and patterns to grant: small enough that they meet.
const ASKED: [&str; 12] = [
    "a",
    "a.b",
    "a.b.c",
    "a.c",
    "b",
    "b.a",
    "admin.a",
    "event.emit.a",
    "a.*",
    "a.b.*",
    "*",
    "admin.*",
];
const HELD: [&str; 9] = [
    "*",
    "a.*",
    "a.b.*",
    "a.b",
    "a.c",
    "b.*",
    "b",
    "admin.*",
    "event.emit.*",
];
const CONDITIONS: [&str; 6] = [
    "check if true",
    "check if tool(\"fs.read_file\")",
    "check if covers(\"a.*\"), proof(\"key\")",
    "check all covers($c), $c.starts_with(\"a\") || $c == \"*\"",
    "reject if covers(\"b.*\")",
    "check if path(\"/path\", $v), $v.starts_with(\"/srv/\")",
];

/// One block more.
#[derive(Debug, Clone)]
enum Step {
    Restrict(Wish),
    /// To the key numbered so.
    Delegate(u8, Wish),
}

#[derive(Debug, Clone)]
struct Wish {
    only: Vec<&'static str>,
    seconds: Option<u64>,
    condition: Option<&'static str>,
}

impl Wish {
    fn narrowing(&self) -> Narrowing {
        Narrowing {
            only: patterns(&self.only),
            expires: self.seconds.map(|s| at(ISSUED + s * 1_000)),
            checks: self.condition.iter().map(|c| c.parse().unwrap()).collect(),
            calls: None,
            agent: None,
        }
    }
}

fn wish() -> impl Strategy<Value = Wish> {
    let only = proptest::sample::subsequence(HELD.to_vec(), 0..4);
    let condition = proptest::option::of(proptest::sample::select(CONDITIONS.to_vec()));
    (only, proptest::option::of(30_u64..4_000), condition).prop_map(|(only, seconds, condition)| {
        Wish {
            only,
            seconds,
            condition,
        }
    })
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        wish().prop_map(Step::Restrict),
        (30_u8..36, wish()).prop_map(|(to, wish)| Step::Delegate(to, wish)),
    ];
    proptest::collection::vec(step, 0..5)
}

fn held() -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(HELD.to_vec(), 1..4)
}

/// What is granted at some times, by what is asked and with which arguments.
fn granted(token: &Token) -> Vec<bool> {
    let times = [0, 60_000, 1_000_000, 3_500_000, 3_700_000];
    let arguments = ["{}", "{\"path\":\"/srv/x\"}", "{\"path\":\"/etc\"}"];
    let mut answers = Vec::new();
    for required in patterns(&ASKED) {
        for (time, arguments) in times.iter().flat_map(|t| arguments.map(|a| (t, a))) {
            let q = Question {
                now: at(ISSUED + time),
                arguments: Arguments::Json(arguments),
                ..question(&required)
            };
            answers.push(token.permits(&q).is_ok());
        }
    }
    answers
}

/// Every token of a chain, unsealed, with the number of the key that holds it. Steps that the issuer refuses
/// are left out.
fn chain(held: &[&str], steps: &[Step]) -> Vec<(Vec<u8>, u8)> {
    let mut tokens = vec![(mint(&terms(held)), HOLDER[0])];
    for (index, step) in steps.iter().enumerate() {
        let (last, holder) = tokens.last().unwrap();
        let entropy = Digest::of(&[index as u8, 99]).0;
        let (longer, holder) = match step {
            Step::Restrict(wish) => (attenuate(last, &wish.narrowing(), entropy), *holder),
            Step::Delegate(to, wish) => {
                let (from, next) = (key([*holder; 32]), key([*to; 32]).public());
                (
                    delegate(last, &from, &next, &wish.narrowing(), entropy),
                    *to,
                )
            }
        };
        tokens.extend(longer.ok().map(|token| (token, holder)));
    }
    tokens
}

/// A condition over arguments, with comparisons of all types mixed.
fn condition() -> impl Strategy<Value = String> {
    let kind = proptest::sample::select(vec!["check if", "check all", "reject if"]);
    let atoms = vec![
        "arg($p, $v)",
        "arg(\"/a\", $v)",
        "path($p, $v)",
        "odd_arg($p)",
        "arg($p, 1)",
        "arg(\"/b\", $w)",
    ];
    let atoms = proptest::sample::subsequence(atoms, 1..3);
    let left = proptest::sample::select(vec!["$v", "$p", "$w", "1", "\"x\"", "true"]);
    let operator = proptest::sample::select(vec!["==", "!=", "<", ">=", "===", "!=="]);
    let right = proptest::sample::select(vec!["$v", "$w", "2", "\"/x\"", "true", "$p"]);
    let one = (left, operator, right).prop_map(|(l, o, r)| format!("{l} {o} {r}"));
    let one = prop_oneof![3 => one, 1 => Just("$v.starts_with(\"/x\")".to_owned()), 1 => Just("!($v == true)".to_owned())];
    let word = proptest::sample::select(vec![" && ", " || ", ", "]);
    let all = (one.clone(), word, one).prop_map(|(a, word, b)| format!("{a}{word}{b}"));
    (kind, atoms, all).prop_map(|(kind, atoms, all)| format!("{kind} {}, {all}", atoms.join(", ")))
}

fn arguments() -> impl Strategy<Value = String> {
    let value =
        proptest::sample::select(vec!["1", "2", "\"x\"", "\"/x\"", "\"/y\"", "true", "false"]);
    proptest::collection::vec(value, 1..6).prop_map(|values| {
        let names = ["a", "b", "c", "d", "e", "f"];
        let members = names
            .iter()
            .zip(&values)
            .map(|(name, value)| format!("\"{name}\":{value}"));
        format!("{{{}}}", members.collect::<Vec<_>>().join(","))
    })
}

/// A block as somebody appends it who has the token's secret and keeps no rule.
#[derive(Debug, Clone)]
enum Forgery {
    /// Signed by the token's holder, by the key numbered so, or by nobody.
    Written(Signer, Vec<u8>, Vec<&'static str>),
    /// What a third party signed for another token of the same first holder.
    Grafted(prop::sample::Index),
}

#[derive(Debug, Clone, Copy)]
enum Signer {
    Nobody,
    Holder,
    Key(u8),
}

const STATEMENTS: [&str; 12] = [
    "check if covers(\"a.*\");",
    "check if tool(\"fs.read_file\");",
    "check if time($t), $t < 2025-06-15T15:30:00Z;",
    "check if time($t), $t < 2030-01-01T00:00:00Z;",
    "calls(1000000);",
    "capability(\"*\");",
    "capability(\"admin.*\");",
    "agent(\"admin@acme\");",
    "kind(\"peer\");",
    "org(\"globex\");",
    "covers(\"*\");",
    "capability(\"*\") <- time($t);",
];

fn forgery() -> impl Strategy<Value = Forgery> {
    let signer = prop_oneof![
        1 => Just(Signer::Nobody),
        5 => Just(Signer::Holder),
        1 => (30_u8..36).prop_map(Signer::Key),
    ];
    let holders = prop_oneof![
        5 => (30_u8..36).prop_map(|holder| vec![holder]),
        2 => Just(Vec::new()),
        1 => proptest::collection::vec(30_u8..36, 2),
    ];
    // Often only what a delegation may say, so that many of these open.
    let honest = proptest::sample::subsequence(STATEMENTS[..5].to_vec(), 0..3);
    let wild = proptest::sample::subsequence(STATEMENTS.to_vec(), 0..4);
    let statements = prop_oneof![3 => honest, 1 => wild];
    let written = (signer, holders, statements)
        .prop_map(|(signer, holders, statements)| Forgery::Written(signer, holders, statements));
    prop_oneof![
        9 => written,
        1 => any::<prop::sample::Index>().prop_map(Forgery::Grafted),
    ]
}

/// The token with the forgery after it; `donor` is where a graft comes from.
fn forged(token: &[u8], holder: u8, forgery: &Forgery, donor: &[u8]) -> Vec<u8> {
    match forgery {
        Forgery::Written(signer, holders, statements) => {
            let holders = holders.iter().map(|holder| holder_fact([*holder; 32]));
            let code = holders.collect::<String>() + &statements.concat();
            match signer {
                Signer::Nobody => first_party(token, &code),
                Signer::Holder => third_party(token, [holder; 32], &code),
                Signer::Key(key) => third_party(token, [*key; 32], &code),
            }
        }
        Forgery::Grafted(at) => {
            let blocks = container(donor).blocks;
            grafted(token, donor, at.index(blocks.len()))
        }
    }
}

proptest! {
    #![proptest_config(laws(48))]

    #[test]
    fn what_is_granted_only_shrinks(held in held(), steps in steps()) {
        let mut before: Option<Vec<bool>> = None;
        for (token, holder) in chain(&held, &steps) {
            let token = open(&sealed(&token)).unwrap();
            let now = granted(&token);
            if let Some(before) = &before {
                prop_assert!(now.iter().zip(before).all(|(now, before)| !now || *before));
            }
            for other in (30..36).chain([HOLDER[0]]) {
                let presents = token.presented_by(&key([other; 32]).public()).is_ok();
                prop_assert_eq!(presents, other == holder);
            }
            before = Some(now);
        }
    }

    #[test]
    fn the_table_decides_what_the_engine_would(held in held(), steps in steps()) {
        for (token, _) in chain(&held, &steps) {
            let by_table = open(&sealed(&token)).unwrap();
            if !by_table.is_standard() || by_table.blocks().len() == 8 {
                continue;
            }
            let always = Narrowing { checks: vec!["check if true".parse().unwrap()], ..only(&[]) };
            let by_engine = open(&sealed(&attenuate(&token, &always, [9; 32]).unwrap())).unwrap();
            prop_assert!(!by_engine.is_standard());
            prop_assert_eq!(granted(&by_table), granted(&by_engine));
        }
    }

    #[test]
    fn a_delegation_by_anyone_but_the_holder_is_refused(
        held in held(), steps in steps(), signer in 30_u8..40, to in 30_u8..40,
    ) {
        let (token, holder) = chain(&held, &steps).pop().unwrap();
        let before = Token::open_unsealed(&token, &roots()).unwrap();
        let forged = third_party(&token, [signer; 32], &holder_fact([to; 32]));
        let answer = open(&sealed_by_hand(&forged));
        let is_new = !before.holders().contains(&key([to; 32]).public());
        if signer == holder && is_new {
            let next = key([to; 32]).public();
            let opened = answer.unwrap();
            prop_assert_eq!(opened.holder(), Some(&next));
        } else {
            prop_assert_eq!(answer.unwrap_err().code(), Code::NotHolder);
        }
    }

    #[test]
    fn blocks_reordered_left_out_or_spliced_from_another_token_never_open(
        held in held(), steps in steps(), pick in any::<[prop::sample::Index; 2]>(),
    ) {
        let (one, _) = chain(&held, &steps).pop().unwrap();
        let two = delegated(&mint_with(&terms(&["*"]), [5; 32]), HOLDER, [35; 32], &only(&["*"]));
        let two = attenuate(&two, &only(&["*"]), [6; 32]).unwrap();
        let (genuine, other) = (container(&one), container(&two));
        let mut variants = Vec::new();
        let mut vary = |change: &dyn Fn(&mut schema::Biscuit)| {
            let mut variant = genuine.clone();
            change(&mut variant);
            variants.push(variant);
        };
        if !genuine.blocks.is_empty() {
            let (i, j) = (pick[0].index(genuine.blocks.len()), pick[1].index(genuine.blocks.len()));
            vary(&|token| token.blocks.swap(i, j));
            vary(&|token| drop(token.blocks.remove(i)));
            vary(&|token| token.blocks.insert(i, genuine.blocks[j].clone()));
            vary(&|token| token.blocks[i].block = genuine.blocks[j].block.clone());
            vary(&|token| token.blocks[i].external_signature = genuine.blocks[j].external_signature.clone());
            vary(&|token| token.blocks[i].external_signature = None);
            vary(&|token| token.blocks[i].next_key = genuine.blocks[j].next_key.clone());
            for foreign in &other.blocks {
                vary(&|token| token.blocks[i] = foreign.clone());
                vary(&|token| token.blocks[i].block = foreign.block.clone());
                vary(&|token| token.blocks[i].external_signature = foreign.external_signature.clone());
            }
        }
        for foreign in &other.blocks {
            let at = pick[0].index(genuine.blocks.len() + 1);
            vary(&|token| token.blocks.insert(at, foreign.clone()));
        }
        vary(&|token| token.authority = other.authority.clone());
        vary(&|token| token.authority.block = other.authority.block.clone());
        for variant in variants.into_iter().filter(|variant| *variant != genuine) {
            let bytes = prost::Message::encode_to_vec(&variant);
            prop_assert!(Token::open_unsealed(&bytes, &roots()).is_err());
            prop_assert!(open(&sealed_by_hand(&bytes)).is_err());
        }
    }

    #[test]
    fn no_single_changed_byte_opens_differently(held in held(), steps in steps(), at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let (token, _) = chain(&held, &steps).pop().unwrap();
        let mut bytes = sealed(&token);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        prop_assert!(open(&bytes).is_err());
    }
}

proptest! {
    #![proptest_config(laws(160))]

    /// Also what nobody honest writes grants no more than what it was written after, to nobody but whom
    /// its holder chose; and what is refused stays refused, whatever comes after it.
    #[test]
    fn whatever_is_appended_to_a_token_grants_no_more_than_it_did(
        held in held(), steps in steps(), forgeries in proptest::collection::vec(forgery(), 1..4),
    ) {
        let (mut token, mut holder) = chain(&held, &steps).pop().unwrap();
        let donor = mint_with(&terms(&["*", "admin.*"]), [5; 32]);
        let donor = delegated(&donor, HOLDER, [35; 32], &only(&[]));
        let mut parent = Token::open_unsealed(&token, &roots()).unwrap();
        let mut before = granted(&parent);
        let mut is_refused = false;
        for forgery in &forgeries {
            token = forged(&token, holder, forgery, &donor);
            let Ok(child) = Token::open_unsealed(&token, &roots()) else {
                prop_assert!(open(&sealed_by_hand(&token)).is_err());
                is_refused = true;
                if matches!(forgery, Forgery::Grafted(_)) {
                    // Its signatures are wrong: the engine appends nothing more.
                    break;
                }
                continue;
            };
            prop_assert!(!is_refused && !matches!(forgery, Forgery::Grafted(_)));
            let now = granted(&child);
            prop_assert!(now.iter().zip(&before).all(|(now, before)| !now || *before));
            prop_assert_eq!(child.capabilities(), parent.capabilities());
            prop_assert!(parent.budgets().all(|budget| child.budgets().any(|own| own == budget)));
            let last = child.blocks().last().unwrap();
            match last.holder() {
                Some(next) => {
                    prop_assert_eq!(last.signer(), parent.holder());
                    prop_assert!(!parent.holders().contains(next));
                }
                None => prop_assert_eq!(child.holder(), parent.holder()),
            }
            let presenters = (30_u8..36).chain([HOLDER[0]]);
            let presenters: Vec<u8> = presenters
                .filter(|other| child.presented_by(&key([*other; 32]).public()).is_ok())
                .collect();
            prop_assert_eq!(presenters.len(), 1);
            (parent, before, holder) = (child, now, presenters[0]);
        }
    }
}

proptest! {
    #![proptest_config(laws(512))]

    #[test]
    fn arbitrary_bytes_are_refused_and_nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(open(&bytes).is_err());
    }

    #[test]
    fn a_check_that_reads_reads_back_as_itself(
        text in "(check if|check all|reject if) (arg|path|covers|tool|trust)\\((\\$a|\"/a\"|\"a.b\"|5)(, (\\$b|\"x\"|3|true))?\\)(, (!?\\$a|\\$b) ?(==|!=|<|===|\\|\\||&&) ?(\"x\\\\\"y\"|3|\\(\\$a == \\$b\\)|!true)){0,2}",
    ) {
        if let Ok(check) = text.parse::<Check>() {
            prop_assert_eq!(check.to_string().parse::<Check>().unwrap(), check);
        }
    }

    /// The engine walks hash tables with random seeds and stops at the first error.
    #[test]
    fn a_decision_does_not_depend_on_the_order_of_facts(check in condition(), arguments in arguments()) {
        if let Ok(check) = check.parse::<Check>() {
            let required = "fs.read".parse().unwrap();
            let q = Question { arguments: Arguments::Json(&arguments), ..question(&required) };
            let decide = || permits(&patterns(&["fs.*"]), std::slice::from_ref(&check), &q).is_ok();
            let first = decide();
            for _ in 0..4 {
                prop_assert_eq!(decide(), first, "{} {}", check, arguments);
            }
        }
    }

    #[test]
    fn a_where_clause_never_permits_a_path_outside(
        parts in proptest::collection::vec(proptest::sample::select(vec!["srv", "a", "..", ".", "", "etc", "srvx", "\\\\"]), 1..6),
        absolute in any::<bool>(),
    ) {
        let path = format!("{}{}", if absolute { "/" } else { "" }, parts.join("/"));
        let token = where_token("path under /srv/a");
        let json = format!("{{\"path\":\"{path}\"}}");
        let permitted = with_arguments(&token, Arguments::Json(&json)).is_ok();
        // What a provider would open, resolved the way POSIX does.
        let mut resolved = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => { resolved.pop(); }
                name => resolved.push(name),
            }
        }
        if permitted {
            prop_assert!(path.starts_with('/') && resolved.starts_with(&["srv", "a"]), "{path}");
        }
        let plain = parts.iter().all(|p| ["srv", "a", "etc", "srvx"].contains(p));
        if absolute && plain && resolved.starts_with(&["srv", "a"]) {
            prop_assert!(permitted, "{path}");
        }
    }
}
