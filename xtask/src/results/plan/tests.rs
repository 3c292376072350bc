//! Plans and their cells.

use super::*;

pub(in super::super) const PLAN: &str = r#"
        revision = "1"
        files = []
        set = ["training.batch_size=64"]
        choice_seed = 100
        columns = ["fvu", { at = "/labels/probing/k1", title = "probing", form = "percent" }]
        [data.small]
        title = "Small"
        [[grid]]
        steps = 20
        n_latents = 32
        seeds = [0, 1]
        [[compare]]
        column = "fvu"
        at_l0 = [16, 32]
        [[method]]
        name = "default"
        label = "default preset"
        runs = [["model.scale=1.5"], ["model.scale=1"]]
        [[method]]
        name = "topk"
        label = "TopK"
        set = ["model.architecture=topk"]
        runs = [["model.k=16"], ["model.k=32"]]
        lr = [1e-3, 2e-3, 4e-3]
        choose_at = 1
        without_pre_bias = true
    "#;

#[test]
fn overridden_steps_are_the_steps_of_the_runs() {
    let mut plan = Plan::parse(PLAN).unwrap();
    plan.override_with(&["training.steps=7".into(), "training.lr=1e-3".into()]);
    let cells = plan.cells("small");
    let run = &cells[0].runs(None)[0];
    assert_eq!(run.steps, 7);
    assert!(
        run.set
            .ends_with(&["training.steps=7".into(), "training.lr=1e-3".into()])
    );
}

#[test]
fn cells_and_their_runs() {
    let plan = Plan::parse(PLAN).unwrap();
    let cells = plan.cells("small");
    let names: Vec<&str> = cells.iter().map(|cell| cell.method.name.as_str()).collect();
    assert_eq!(names, ["default", "topk", "topk-no-pre-bias"]);
    assert!(cells[0].choice().is_empty());
    let choice = cells[2].choice();
    assert_eq!(choice.len(), 3);
    assert_eq!(
        (choice[1].judged, choice[1].seed, choice[1].lr),
        (Judged::Validation, 100, Some(0.002))
    );
    assert_eq!(
        choice[1].set.join(" "),
        "training.batch_size=64 training.steps=20 model.n_latents=32 model.architecture=topk model.pre_bias=false \
         model.k=32 training.lr=0.002"
    );
    let runs = cells[2].runs(Some(0.004));
    assert_eq!(
        runs.iter().map(|run| run.seed).collect::<Vec<_>>(),
        [0, 0, 1, 1]
    );
    assert!(runs.iter().all(|run| run.judged == Judged::Heldout));
}

#[test]
fn what_is_wrong_with_a_plan_is_said() {
    let message = |from: &str, to: &str| {
        Plan::parse(&PLAN.replace(from, to))
            .unwrap_err()
            .to_string()
    };
    assert!(message("choose_at = 1", "choose_at = 2").contains("method topk: choose_at = 2"));
    assert!(message("seeds = [0, 1]", "seeds = []").contains("needs seeds"));
    assert!(message("seeds = [0, 1]", "seeds = [0]\nmethods = [\"lasso\"]").contains("lasso"));
    assert!(message("form = \"percent\"", "from = 1").contains("from"));
}
