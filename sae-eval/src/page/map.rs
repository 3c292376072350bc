//! Section 3: a map of all latents, by how often and how strongly they fire, and by the direction they add.

use maud::{Markup, html};

use super::axis::Axis;
use super::chart::{Chart, between, key};
use super::decoder::COSINE_BINS;
use super::findings::{Findings, Latent, MIN_ENTROPY_ROWS};
use super::text::{counted, grouped, percent};

/// A latent that fires on a larger part of the rows is dense.
const DENSE: f64 = 0.1;
/// Bins of firing frequency in a decade.
const PARTS: i32 = 6;
/// Colours of the scale of class entropy.
const COLOURS: usize = 6;

pub(super) fn section(findings: &Findings) -> Markup {
    let coloured = findings
        .latents
        .iter()
        .any(|latent| latent.entropy.is_some());
    html! {
        section id="map" aria-labelledby="map-title" {
            h2.title id="map-title" { "Map of latents" }
            p.lead { (lead(findings)) }
            @if coloured { (legend()) }
            div.charts.maps {
                (by_strength(findings, coloured))
                (by_direction(findings, coloured))
            }
            div.charts {
                (frequencies(findings))
                (cosines(findings))
            }
        }
    }
}

fn frequency(findings: &Findings, latent: &Latent) -> f64 {
    latent.fired as f64 / findings.rows.max(1) as f64
}

fn lead(findings: &Findings) -> String {
    let all = findings.latents.len();
    let dead = findings
        .latents
        .iter()
        .filter(|latent| latent.fired == 0)
        .count();
    let dense = findings
        .latents
        .iter()
        .filter(|latent| frequency(findings, latent) > DENSE)
        .count();
    let dead = match dead {
        0 => "none is dead".to_string(),
        dead => format!(
            "{} ({}) never fired on the held-out rows",
            grouped(dead as i64),
            percent(dead as f64 / all.max(1) as f64)
        ),
    };
    let dense = match dense {
        0 => format!("none fires on more than {} of the rows", percent(DENSE)),
        1 => format!(
            "one is dense: it fires on more than {} of the rows",
            percent(DENSE)
        ),
        n => format!(
            "{} are dense: they fire on more than {} of the rows",
            grouped(n as i64),
            percent(DENSE)
        ),
    };
    format!(
        "Of {}, {dead}, and {dense}.",
        counted(all, "latent", "latents")
    )
}

/// The colour of a latent by its class entropy.
fn colour(latent: &Latent, coloured: bool) -> usize {
    match latent.entropy {
        Some(entropy) => ((entropy * COLOURS as f64) as usize).min(COLOURS - 1),
        None if coloured => COLOURS,
        None => 0,
    }
}

fn class_of(colour: usize) -> String {
    if colour == COLOURS {
        "en".into()
    } else {
        format!("e{colour}")
    }
}

fn legend() -> Markup {
    let bins = (0..COLOURS).map(|i| {
        let [low, high] = [i, i + 1].map(|i| i as f64 / COLOURS as f64);
        key(&format!("e{i}"), &format!("{low:.2}–{high:.2}"))
    });
    html! {
        p.legend {
            span { "Class entropy: " }
            @for bin in bins { (bin) }
            (key("en", &format!("fires on fewer than {MIN_ENTROPY_ROWS} rows")))
        }
        p.quiet { "0: fires for one class only. 1: its activation is spread over all classes evenly." }
    }
}

/// Dots of all latents that `place` places, by colour.
fn dots(
    findings: &Findings,
    chart: &Chart,
    coloured: bool,
    place: impl Fn(usize, &Latent) -> Option<(f64, f64)>,
) -> Markup {
    let mut by_colour = vec![Vec::new(); COLOURS + 1];
    for (j, latent) in findings.latents.iter().enumerate() {
        if let Some(point) = place(j, latent) {
            by_colour[colour(latent, coloured)].push(point);
        }
    }
    let big = if findings.latents.len() > 4096 {
        "small"
    } else {
        ""
    };
    html! {
        @for colour in (0..=COLOURS).rev().filter(|c| !by_colour[*c].is_empty()) {
            (chart.dots(&format!("{} {big}", class_of(colour)), by_colour[colour].iter().copied()))
        }
    }
}

fn map(id: &str, chart: &Chart, marks: Markup, note: Markup) -> Markup {
    let places: Vec<String> = chart.places().iter().map(|p| format!("{p:.6}")).collect();
    html! {
        figure.chart.map data-map=(id) data-places=(places.join(" ")) {
            figcaption { (chart.title) }
            div.frame { (chart.svg(Some(&format!("map-{id}")), marks)) }
            p.note aria-live="polite" { (note) }
        }
    }
}

fn by_strength(findings: &Findings, coloured: bool) -> Markup {
    let alive = || findings.latents.iter().filter(|latent| latent.fired > 0);
    let mut chart = Chart::new(
        "How often and how strongly",
        "Each dot is a latent. The table of latents below has the same numbers",
        Axis::log_of(
            "firing frequency",
            alive().map(|latent| frequency(findings, latent)),
        ),
        Axis::log_of(
            "mean |activation| where active",
            alive().map(|latent| latent.mean),
        ),
    );
    (chart.width, chart.height) = (480.0, 380.0);
    let place = |_: usize, latent: &Latent| {
        (latent.fired > 0).then(|| (frequency(findings, latent), latent.mean))
    };
    let marks = dots(findings, &chart, coloured, place);
    map(
        "strength",
        &chart,
        marks,
        html! { "Each dot is a latent; dead ones have no place here." span.script { " Choose a dot to open its card." } },
    )
}

fn by_direction(findings: &Findings, coloured: bool) -> Markup {
    let plane = &findings.decoder.plane;
    let (along, [first, second]) = (
        |axis: usize| plane.iter().map(move |p| f64::from(p[axis])),
        findings.decoder.explained,
    );
    let label =
        |axis: &str, part: f64| format!("{axis} component ({} of the variance)", percent(part));
    let mut chart = Chart::new(
        "By the direction they add",
        "Decoder directions of all latents, along the two principal components",
        Axis::of(&label("first", first), along(0)),
        Axis::of(&label("second", second), along(1)),
    );
    (chart.width, chart.height) = (480.0, 380.0);
    let place = |j: usize, _: &Latent| plane.get(j).map(|p| (f64::from(p[0]), f64::from(p[1])));
    let marks = dots(findings, &chart, coloured, place);
    map(
        "direction",
        &chart,
        marks,
        html! { "Directions of W_dec at length one, in the plane where the live ones vary most (PCA)." },
    )
}

fn frequencies(findings: &Findings) -> Markup {
    let decades: Vec<f64> = (-8 * PARTS..=0)
        .map(|part| 10f64.powf(f64::from(part) / f64::from(PARTS)))
        .collect();
    let mut counts = vec![0.0; decades.len() - 1];
    for latent in findings.latents.iter().filter(|latent| latent.fired > 0) {
        let place =
            (frequency(findings, latent).log10() * f64::from(PARTS)).floor() as i32 + 8 * PARTS;
        counts[(place.max(0) as usize).min(decades.len() - 2)] += 1.0;
    }
    let Some(first) = counts.iter().position(|n| *n > 0.0) else {
        return html! {};
    };
    let (edges, counts) = (&decades[first..], &counts[first..]);
    let chart = Chart::new(
        "Latents by firing frequency",
        format!(
            "{} that fire at all",
            counted(counts.iter().sum::<f64>() as usize, "latent", "latents")
        ),
        Axis::log("firing frequency", edges[0], 1.0),
        Axis::linear(
            "latents",
            0.0,
            counts.iter().copied().fold(1.0, f64::max) * 1.05,
        ),
    );
    let title = |i: usize| {
        format!(
            "{}: {}",
            between(edges[i], edges[i + 1]),
            counted(counts[i] as usize, "latent", "latents")
        )
    };
    chart.draw(chart.bars(edges, counts, title), html! {})
}

fn cosines(findings: &Findings) -> Markup {
    let counts: Vec<f64> = findings.decoder.cosines.iter().map(|n| *n as f64).collect();
    let total: f64 = counts.iter().sum();
    if total == 0.0 || counts.len() != COSINE_BINS {
        return html! {};
    }
    let edges: Vec<f64> = (0..=COSINE_BINS)
        .map(|i| 2.0 * i as f64 / COSINE_BINS as f64 - 1.0)
        .collect();
    let shares: Vec<f64> = counts.iter().map(|n| n / total).collect();
    let filled = |share: &f64| *share > 0.0;
    let first = shares.iter().position(filled).unwrap_or(0);
    let last = shares.iter().rposition(filled).unwrap_or(COSINE_BINS - 1);
    let smallest = shares
        .iter()
        .copied()
        .filter(|s| *s > 0.0)
        .fold(1.0, f64::min);
    let chart = Chart::new(
        "Pairs of latents by the cosine of their directions",
        "On a logarithmic scale, so that rare close pairs can be seen",
        Axis::linear("cosine", edges[first], edges[last + 1]),
        Axis::log(
            "part of the pairs",
            smallest / 2.0,
            shares.iter().copied().fold(0.0, f64::max) * 1.3,
        ),
    );
    let (edges, shares) = (&edges[first..=last + 1], &shares[first..=last]);
    let title = |i: usize| {
        format!(
            "{:.3} to {:.3}: {} of the pairs",
            edges[i],
            edges[i + 1],
            percent(shares[i])
        )
    };
    let (compared, all) = (findings.decoder.compared, findings.latents.len());
    chart.draw(
        chart.bars(edges, shares, title),
        html! { @if compared < all { "The " (grouped(compared as i64)) " most frequent latents against all " (grouped(all as i64)) "." } },
    )
}
