//! report.html of a whole evaluation.

use super::Run;
use sae_model::Preset;

fn page(run: &Run, arguments: &[&str]) -> String {
    run.report(arguments);
    let page = std::fs::read_to_string(run.path("reports/report.html")).unwrap();
    let seconds = page.find("Evaluated on").unwrap();
    let end = page[seconds..].find(" s, sae-eval").unwrap();
    page[..seconds].to_string() + &page[seconds + end..]
}

#[test]
fn it_is_the_same_for_every_batch_size() {
    let run = Run::new(Preset::Default);
    let whole = page(&run, &[]);
    assert!(
        whole.contains("&lt;script&gt;") && whole.contains("a|b"),
        "names of classes"
    );
    assert_eq!(whole.matches("<script>").count(), 1, "its own");
    for size in ["1", "7", "64"] {
        assert!(
            page(&run, &["--batch-size", size]) == whole,
            "batches of {size}"
        );
    }
}

#[test]
fn an_evaluation_without_it_removes_an_older_one() {
    let run = Run::new(Preset::Default);
    page(&run, &[]);
    run.report(&["--no-html"]);
    assert!(!run.path("reports/report.html").exists());
    assert!(run.path("reports/report.md").exists());
}
