//! `sae-data inspect`: describes a data set, with a histogram of its norms.

use anyhow::Result;
use sae_data::config::default_check_rows;
use sae_data::{ActivationData, Beyond, Documents, Streaming, Summary};

use crate::{bar, examples};

/// Batch size for which the loader's plan is shown.
const BATCH: usize = 4096;
/// Bins of the histogram.
const BINS: usize = 12;
/// Width of the longest bar of the histogram.
const BAR: usize = 40;

pub(crate) fn print(data: &ActivationData, sample: Option<usize>, window_mb: usize) -> Result<()> {
    describe(data);
    examples::print(data)?;
    let rows = sample.unwrap_or_else(|| default_check_rows(data.rows(), data.width()));
    let length = if rows == 0 { data.rows() } else { rows };
    let bar = bar(length.min(data.rows()) as u64, "checking");
    let summary = Summary::of(data, Some(rows), |rows| bar.inc(rows as u64))?;
    bar.finish_and_clear();
    values(&summary, data);
    loader(data, window_mb);
    for warning in summary.warnings() {
        println!("note: {warning}");
    }
    Ok(())
}

fn describe(data: &ActivationData) {
    let info = data.info();
    let bytes: u64 = info.files.iter().map(|file| file.bytes).sum();
    println!("{}", info.path.display());
    println!(
        "format     {}, {} file(s), {:.1} MB",
        info.format,
        info.files.len(),
        bytes as f64 / 1e6
    );
    println!(
        "shape      [{}, {}] {}",
        info.rows, info.width, info.element
    );
    match &info.documents {
        None => println!("documents  none: a held-out fraction is taken in stretches of rows"),
        Some(Documents::Uniform { tokens, count }) => {
            println!("documents  {count} of {tokens} rows each")
        }
        Some(documents) => {
            let mean = info.rows as f64 / documents.count() as f64;
            println!(
                "documents  {} of {mean:.1} rows on average",
                documents.count()
            );
        }
    }
    println!("labels     {}", if info.labelled { "yes" } else { "no" });
}

fn values(summary: &Summary, data: &ActivationData) {
    let all = match summary.rows < data.rows() {
        true => ", evenly spread (--sample 0 for all)",
        false => "",
    };
    println!("checked    {} of {} rows{all}", summary.rows, data.rows());
    match summary.non_finite {
        None => println!("finite     yes"),
        Some((count, row, column, value)) => {
            println!(
                "finite     NO: {count} values are NaN or infinite; the first is {value} at row {row}, column {column}"
            );
        }
    }
    if summary.norms.0 > summary.norms.2 {
        return; // no row is finite, so there are no statistics
    }
    println!(
        "constant   {} of {} columns",
        summary.constant_columns.len(),
        data.width()
    );
    let found = summary.duplicates;
    let how = match found.one_in {
        1 => "all compared".into(),
        n => format!("one in {n} compared"),
    };
    println!(
        "duplicates {:.2} % of the rows ({how})",
        100.0 * found.fraction()
    );
    println!(
        "||mean||   {:.3} sigma; sigma = {:.4}",
        summary.mean_over_sigma(),
        summary.variance.sqrt()
    );
    let (smallest, mean, largest) = summary.norms;
    println!("||x||      smallest {smallest:.4}, mean {mean:.4}, largest {largest:.4}");
    beyond(summary);
    histogram(summary);
}

/// Prints what the default of `data.max_norm` would leave out.
fn beyond(summary: &Summary) {
    let Beyond {
        limit,
        rows,
        variance_share,
    } = summary.beyond;
    let median = summary.typical.median_norm;
    println!(
        "max_norm   median {median:.4}; {rows} of {} rows ({:.3} %), with {:.1} % of the variance, have {:.1} times that and more",
        summary.rows,
        100.0 * rows as f64 / summary.rows as f64,
        100.0 * variance_share,
        limit / median,
    );
}

/// Prints the histogram of norms in at most a dozen bins.
fn histogram(summary: &Summary) {
    let bins = &summary.norm_histogram;
    let (Some(first), Some(last)) = (bins.keys().next(), bins.keys().next_back()) else {
        return; // no row is finite
    };
    let step = (last - first) / BINS as i32 + 1;
    let counts: Vec<(i32, u64)> = (*first..=*last)
        .step_by(step as usize)
        .map(|bin| {
            (
                bin,
                bins.range(bin..bin + step).map(|(_, count)| count).sum(),
            )
        })
        .collect();
    let most = counts
        .iter()
        .map(|(_, count)| *count)
        .max()
        .unwrap_or(1)
        .max(1);
    for (bin, count) in counts {
        let bar = "#".repeat((count as usize * BAR).div_ceil(most as usize));
        println!(
            "  from {:>10.4} {bar:<BAR$} {count}",
            Summary::norm_bound(bin)
        );
    }
}

fn loader(data: &ActivationData, window_mb: usize) {
    let streaming = Streaming {
        window_mb,
        ..Streaming::default()
    };
    let plan = streaming.plan(data);
    println!(
        "loader     blocks of {} rows, {} window(s) of {} rows per epoch (data.window_mb = {window_mb}); {:.1} batches of {BATCH} per epoch",
        plan.block_rows(),
        plan.windows(),
        plan.window_rows(),
        data.rows() as f64 / BATCH as f64,
    );
    if let Some(group) = data
        .info()
        .preferred_block
        .filter(|rows| *rows > plan.block_rows())
    {
        println!(
            "note: four pages have {group} rows, more than a block, so pages are decoded more than once per epoch; raise data.window_mb, write smaller pages, or convert"
        );
    }
}
