//! The numbers of a run by name, and which of them were measured in the same way as those of the other runs.

use std::collections::BTreeMap;

use super::opened::Opened;

/// All numbers of a run by name.
pub(super) fn values(run: &Opened) -> BTreeMap<String, f64> {
    let report = &run.report;
    let mut values = run.costs.clone();
    let metrics = report.reconstruction.iter().chain(&report.sparsity);
    values.extend(metrics.filter_map(|metric| Some((metric.name.clone(), metric.value?))));
    let criteria = report
        .criteria
        .iter()
        .flat_map(|criteria| &criteria.metrics);
    let recovery = report
        .recovery
        .iter()
        .flat_map(|recovery| &recovery.metrics);
    let estimates = criteria.chain(recovery);
    values.extend(estimates.filter_map(|metric| Some((metric.name.clone(), metric.value?))));
    if let Some(top_n) = &report.top_n {
        values.insert("top_n_activations".into(), top_n.original_over_classes);
        for row in &top_n.trained {
            values.insert(format!("top_n_on_{}", row.n), row.on);
            values.insert(format!("top_n_off_{}", row.n), row.off);
        }
    }
    values
}

/// How a report measured top-n classification, and what latents say of classes. Numbers that were measured in another way do
/// not compare.
fn ways(run: &Opened) -> [Option<String>; 2] {
    let top_n = run.report.top_n.as_ref().map(|top_n| {
        let rule = top_n.rank_by.as_deref().unwrap_or("threshold");
        let threshold = top_n.fire_threshold.map_or(String::new(), |t| format!(" {t}"));
        let classes = top_n.per_class.len();
        let baseline = top_n.original_over_rows;
        format!("ranked by {rule}{threshold}, {classes} classes, accuracy of the activations {baseline:.6}")
    });
    let criteria = run.report.criteria.as_ref().map(|criteria| {
        format!(
            "{} classes of at least {} rows, {} sampled training and {} held-out rows",
            criteria.per_class.len(),
            criteria.min_class_rows,
            criteria.train.rows,
            criteria.held_out.rows
        )
    });
    [top_n, criteria]
}

/// Takes away numbers that were measured in another way than those of the first run with the same rows, and says so.
pub(super) fn same_measures(
    runs: &[Opened],
    set_of: &[usize],
    names: &[String],
    values: &mut [BTreeMap<String, f64>],
    notes: &mut Vec<String>,
) {
    type Section = (&'static str, fn(&str) -> bool);
    const SECTIONS: [Section; 2] = [
        ("top-n classification", |name| name.starts_with("top_n_")),
        ("what latents say of classes", |name| {
            let of_criteria = [
                "probe_",
                "activations_probe_",
                "single_latent_",
                "class_entropy",
            ];
            of_criteria.iter().any(|start| name.starts_with(start))
        }),
    ];
    for (section, (title, belongs)) in SECTIONS.into_iter().enumerate() {
        let ways: Vec<Option<String>> = runs.iter().map(|run| ways(run)[section].clone()).collect();
        for i in 0..runs.len() {
            let first = (0..i).find(|first| set_of[*first] == set_of[i] && ways[*first].is_some());
            let (Some(first), Some(own)) = (first, &ways[i]) else {
                continue;
            };
            let other = ways[first].as_deref().unwrap_or_default();
            if own != other {
                values[i].retain(|name, _| !belongs(name));
                notes.push(format!(
                    "{}: {title} was measured in another way ({own}) than of {} ({other}); its numbers are left out",
                    names[i], names[first]
                ));
            }
        }
    }
}

/// A note if the runs were trained or evaluated by different versions.
pub(super) fn versions(runs: &[Opened], notes: &mut Vec<String>) {
    let distinct = |of: Vec<String>| {
        let mut of = of;
        of.sort();
        of.dedup();
        of
    };
    let trained = runs.iter().filter_map(|run| {
        let provenance = run.provenance.as_ref()?;
        let revision = provenance.git_revision.as_deref().unwrap_or("?");
        Some(format!("sae-train {} {revision}", provenance.version))
    });
    let evaluated = runs
        .iter()
        .map(|run| format!("sae-eval {}", run.report.version));
    for (made, all) in [
        ("trained", distinct(trained.collect())),
        ("evaluated", distinct(evaluated.collect())),
    ] {
        if all.len() > 1 {
            notes.push(format!(
                "the runs were {made} by different versions: {}",
                all.join(", ")
            ));
        }
    }
}
