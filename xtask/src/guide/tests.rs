//! Recommendation and verdict from made-up numbers, and the whole document.

use std::collections::BTreeMap;

use super::measured::{MEDIAN, P5, P95};
use super::verdict::{Claim, Finding, Judged};
use super::*;
use crate::results::columns::{DEAD_SHARE, FINAL_L0, FVU, HALFWAY_L0, L0};

const PROBE: &str = "/criteria/metrics/probe_1_balanced_accuracy";
const PROBE_5: &str = "/criteria/metrics/probe_5_balanced_accuracy";
const TOP_5: &str = "/top_n/trained/5/on";
const LOSS: &str = "/tail/metrics/loss_recovered";

/// A group with these values, one per seed from 0 on.
fn group(candidate: Candidate, numbers: &[(&str, &[f64])]) -> Group {
    let by_seed = |values: &[f64]| (0..).zip(values.iter().copied()).collect();
    let numbers = numbers.iter();
    Group {
        candidate,
        numbers: numbers
            .map(|(at, values)| (at.to_string(), by_seed(values)))
            .collect(),
        notes: Vec::new(),
        failed: Vec::new(),
    }
}

fn attention(l0: &[f64], more: &[(&str, &[f64])]) -> Group {
    group(Candidate::attention(), &[&[(L0, l0)], more].concat())
}

fn recommended(l0: &[f64], more: &[(&str, &[f64])]) -> Recommendation {
    recommend::recommend(&attention(l0, more), 64).unwrap()
}

/// The verdict on TopK at k = 8, with the values of one criterion at 4, 8 and 16.
fn judged(at: &str, values: [&[f64]; 3]) -> (Judged, Claim) {
    let of = |(k, values): (usize, &[f64])| group(Candidate::of("topk", k), &[(at, values)]);
    let groups: Vec<Group> = [4, 8, 16].into_iter().zip(values).map(of).collect();
    let columns = measured::columns().unwrap();
    let mut verdict = verdict::verdict("topk", 8, &groups, &columns);
    assert_eq!(verdict.judged.len(), 1);
    (verdict.judged.remove(0), verdict.claim)
}

#[test]
fn k_is_the_mean_over_rows_and_seeds() {
    assert_eq!(recommended(&[31.4], &[]).k, 31);
    assert_eq!(recommended(&[31.5], &[]).k, 32);
    let found = recommended(&[30.0, 33.0], &[]);
    assert_eq!((found.k, &found.k_by_seed[..]), (32, &[30, 33][..]));
    assert!(found.warnings()[0].contains("each alone would say 30, 33"));
    assert_eq!(found.ks(64), [16, 32, 64]);
    // bounds: at least one latent, at most all, and no k twice
    assert_eq!(recommended(&[0.2], &[]).k, 1);
    assert_eq!(recommended(&[0.2], &[]).ks(64), [1, 2]);
    assert_eq!(recommended(&[200.0], &[]).k, 64);
    assert_eq!(recommended(&[200.0], &[]).ks(64), [32, 64]);
    assert_eq!(recommended(&[33.0], &[]).ks(64), [17, 33]);
}

#[test]
fn a_spread_of_l0_says_whether_one_k_fits() {
    let at = |p5: f64, p95: f64| recommended(&[10.0], &[(P5, &[p5]), (P95, &[p95])]);
    assert_eq!(at(8.0, 12.0).spread, Some(1.5));
    assert!(at(8.0, 12.0).fit().contains("one k fits most rows"));
    assert!(at(6.0, 12.0).fit().contains("BatchTopK"));
    assert_eq!(at(0.0, 12.0).spread, None);
    assert!(at(0.0, 12.0).fit().contains("no latent at all"));
    assert!(recommended(&[10.0], &[]).fit().is_empty());
}

#[test]
fn l0_that_still_moves_is_warned_of() {
    let with = |half: f64, end: f64| {
        let found = recommended(&[end], &[(HALFWAY_L0, &[half]), (FINAL_L0, &[end])]);
        found.warnings()
    };
    assert!(with(40.0, 38.0).is_empty());
    assert!(with(40.0, 30.0)[0].contains("fell by 25 %"));
    assert!(with(40.0, 30.0)[0].contains("smaller k"));
    assert!(with(40.0, 50.0)[0].contains("larger k"));
    let other = recommended(&[44.0], &[(HALFWAY_L0, &[33.0]), (FINAL_L0, &[33.0])]);
    assert!(other.warnings()[0].contains("33 % more latents than rows of training"));
}

#[test]
fn criteria_that_prefer_a_k() {
    let finding = |values: [&[f64]; 3]| {
        let (judged, claim) = judged(PROBE, values);
        (judged.finding, judged.best, claim)
    };
    let (supported, not) = (Claim::Supported, Claim::NotSupported);
    // one seed: no spread, so every difference counts, and equal numbers do not differ
    assert_eq!(
        finding([&[0.7], &[0.9], &[0.8]]),
        (Finding::Best, 8, supported)
    );
    assert_eq!(finding([&[0.9], &[0.8], &[0.7]]), (Finding::Behind, 4, not));
    assert_eq!(
        finding([&[0.8], &[0.8], &[0.8]]),
        (Finding::NoDifference, 8, not)
    );
    // ties: the recommended k before the others, then the lowest
    assert_eq!(
        finding([&[0.7], &[0.9], &[0.9]]),
        (Finding::Best, 8, supported)
    );
    assert_eq!(finding([&[0.9], &[0.8], &[0.9]]), (Finding::Behind, 4, not));
    // seeds: 0.9 beats 0.88 by 0.02; with deviations of 0.028 that is nothing, with 0.0014 it is
    let wide = [&[0.5, 0.5][..], &[0.86, 0.9], &[0.88, 0.92]];
    assert_eq!(finding(wide), (Finding::WithinSpread, 16, supported));
    let narrow = [&[0.5, 0.5][..], &[0.879, 0.881], &[0.899, 0.901]];
    assert_eq!(finding(narrow), (Finding::Behind, 16, not));
    let all = [&[0.87, 0.91][..], &[0.86, 0.9], &[0.88, 0.92]];
    assert_eq!(finding(all), (Finding::NoDifference, 16, not));
}

#[test]
fn distances_and_spreads_by_hand() {
    let (judged, _) = judged(PROBE, [&[0.5, 0.5], &[0.879, 0.881], &[0.898, 0.902]]);
    assert!((judged.behind - 0.02).abs() < 1e-12);
    assert!((judged.spread.unwrap() - 0.004 / 2f64.sqrt()).abs() < 1e-12);
    assert_eq!(
        judged.words(),
        "prefers 16: k is 0.020 behind, the seeds' spread is 0.003"
    );
}

#[test]
fn reconstruction_is_judged_by_what_a_doubling_gains() {
    let of = |at, values: [f64; 3]| {
        let (judged, claim) = judged(at, [&values[..1], &values[1..2], &values[2..]]);
        let Finding::Gains {
            before: Some(before),
            after: Some(after),
            knee: Some(knee),
        } = judged.finding
        else {
            panic!("{:?}", judged.finding);
        };
        let percent = |gain: f64| (100.0 * gain).round() as i64;
        (percent(before), percent(after), knee, claim)
    };
    let not = Claim::NotSupported;
    assert_eq!(of(FVU, [0.4, 0.3, 0.225]), (25, 25, false, not));
    assert_eq!(of(FVU, [0.4, 0.2, 0.16]), (50, 20, true, Claim::Supported));
    // FVU that rises with k has no knee
    assert!(!of(FVU, [0.2, 0.3, 0.3]).2);
    // of the loss, what is missing to 1
    assert_eq!(of(LOSS, [0.6, 0.7, 0.775]), (25, 25, false, not));
    assert_eq!(of(LOSS, [0.6, 0.8, 0.81]), (50, 5, true, Claim::Supported));
}

#[test]
fn gains_are_per_doubling_also_where_k_is_odd() {
    let law = |k: usize| [(k as f64).powf(-0.5)];
    let of = |k: usize| group(Candidate::of("topk", k), &[(FVU, &law(k))]);
    let columns = measured::columns().unwrap();
    let verdict = verdict::verdict("topk", 33, &[17, 33, 66].map(of), &columns);
    let Finding::Gains { before, after, .. } = verdict.judged[0].finding else {
        panic!();
    };
    for gain in [before.unwrap(), after.unwrap()] {
        assert!((gain - (1.0 - 0.5f64.sqrt())).abs() < 1e-12, "{gain}");
    }
    // without k / 2 and from errors of 0 there is no gain
    let two = verdict::verdict("topk", 33, &[33, 66].map(of), &columns);
    let words = two.judged[0].words();
    assert!(
        words.contains("unknown of the error up to k, 29.3 %"),
        "{words}"
    );
    assert!(words.ends_with("a knee cannot be seen"), "{words}");
    let (zero, _) = judged(FVU, [&[0.1], &[0.0], &[0.0]]);
    assert!(zero.words().contains("cannot be seen"));
}

#[test]
fn a_run_without_numbers_is_left_out_and_nothing_is_open() {
    let columns = measured::columns().unwrap();
    let alone = [group(Candidate::of("topk", 8), &[(PROBE, &[0.5])])];
    let verdict = verdict::verdict("topk", 8, &alone, &columns);
    assert_eq!((verdict.claim, verdict.judged.len()), (Claim::Open, 0));
    assert!(verdict.words().contains("open"));
    let beside = [group(Candidate::of("topk", 16), &[(PROBE, &[0.5])])];
    let verdict = verdict::verdict("topk", 8, &beside, &columns);
    assert_eq!(verdict.claim, Claim::Open);
}

fn guide(attention: Group, seeds: u64) -> Guide {
    let text = "data.train = \"a\"\nmodel.n_latents = 1024\nrun = \"small <b>\"";
    let config = Config::parse(text, "x", &[]).unwrap();
    let seeds = (0..seeds).collect();
    Guide::new(&config, 600, seeds, vec![attention], "abc".into())
}

/// The candidates of a k = 8: FVU is a power law, the probe prefers k, top-5 is flat for TopK and prefers 2k for BatchTopK.
fn candidates() -> Vec<Group> {
    let mut groups = vec![found()];
    for (architecture, factor) in [("topk", 1.1), ("batch_topk", 1.05)] {
        for k in [4, 8, 16] {
            let fvu = factor * 0.5 * (8.0 / k as f64).sqrt();
            let (probe, five) = match k {
                8 => (0.8, 0.85),
                _ => (0.7, 0.86),
            };
            let top = if architecture == "topk" {
                0.5
            } else {
                0.3 + k as f64 / 100.0
            };
            let seeds = |value: f64| vec![value - 0.01, value + 0.01];
            let numbers = [
                (L0, seeds(k as f64)),
                (FVU, seeds(fvu)),
                (DEAD_SHARE, seeds(0.02)),
                (PROBE, seeds(probe)),
                (PROBE_5, seeds(five)),
                (TOP_5, seeds(top)),
            ];
            let numbers: Vec<(&str, &[f64])> = numbers
                .iter()
                .map(|(at, values)| (*at, &values[..]))
                .collect();
            groups.push(group(Candidate::of(architecture, k), &numbers));
        }
    }
    groups[6].notes = vec!["BatchTopK, k = 16, seed 1: L0 is 20.0, k = 16".into()];
    groups
}

fn found() -> Group {
    let numbers: [(&str, &[f64]); 9] = [
        (MEDIAN, &[8.0, 8.0]),
        (P5, &[3.0, 3.0]),
        (P95, &[15.0, 15.0]),
        (HALFWAY_L0, &[11.0, 11.0]),
        (FINAL_L0, &[8.0, 8.0]),
        (FVU, &[0.49, 0.51]),
        (DEAD_SHARE, &[0.01, 0.01]),
        (PROBE, &[0.78, 0.8]),
        (TOP_5, &[0.52, 0.52]),
    ];
    attention(&[8.0, 8.2], &numbers)
}

#[test]
fn the_document() {
    let columns = measured::columns().unwrap();
    let mut guide = guide(found(), 2);
    guide.verify(candidates(), &columns);
    let text = guide.markdown(&columns);
    assert_eq!(text, include_str!("golden.md"), "\n{text}\n");
    let claims = guide.verdicts.iter().map(|verdict| verdict.claim);
    let claims: Vec<Claim> = claims.collect();
    assert_eq!(claims, [Claim::Supported, Claim::Partly]);
    let json = serde_json::to_value(&guide).unwrap();
    assert_eq!(json["recommendation"]["k"], 8);
    assert_eq!(json["verdicts"][1]["claim"], "partly");
    assert_eq!(json["verdicts"][0]["judged"][1]["finding"], "best");
    assert_eq!(
        json["groups"][0]["numbers"][L0],
        serde_json::json!({ "0": 8.0, "1": 8.2 })
    );
}

#[test]
fn a_collapse_is_no_recommendation_and_a_note_is_a_warning() {
    let mut attention = attention(&[], &[]);
    attention.numbers = BTreeMap::new();
    attention.failed = vec!["sparse attention, seed 0: exit code 11: it has collapsed".into()];
    let gone = guide(attention, 1);
    assert_eq!(gone.recommendation, None);
    let text = gone.markdown(&measured::columns().unwrap());
    assert!(text.contains("**No k**"), "{text}");
    assert!(text.contains("exit code 11"), "{text}");
    let mut attention = found();
    attention.notes = vec!["sparse attention, seed 1: the model has collapsed: L0 is 1.20".into()];
    let text = guide(attention, 2).markdown(&measured::columns().unwrap());
    assert!(
        text.contains("the model has collapsed: L0 is 1.20"),
        "{text}"
    );
    assert!(!text.contains("Verification"), "{text}");
}

#[test]
fn without_labels_only_reconstruction_is_judged() {
    let columns = measured::columns().unwrap();
    let mut groups = candidates();
    for group in &mut groups {
        group
            .numbers
            .retain(|at, _| !at.contains("probe") && !at.starts_with("/top_n"));
    }
    let mut guide = guide(found(), 2);
    guide.verify(groups, &columns);
    let text = guide.markdown(&columns);
    assert!(!text.contains("probe"), "{text}");
    assert!(
        text.contains("is **not supported**: no knee at k in \"FVU\"."),
        "{text}"
    );
}
