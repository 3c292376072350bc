//! Which keys of a config change no number. Training needs to know it to continue a run, evaluation to see which runs
//! are of one recipe.

/// Keys that may differ between a run and its continuation: they change no number of the result, except if the run
/// would otherwise end (`on_nonfinite`, `on_collapse`). Data may have moved; its fingerprint identifies it.
pub const FREE_TO_CHANGE: [&str; 24] = [
    "run",
    "runs_dir",
    "precision",
    "training.log_every",
    "training.keep_checkpoints",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.on_nonfinite",
    "training.on_collapse",
    "data.workers",
    "data.train",
    "data.held_out",
    "data.labels",
    "data.held_out_labels",
    "data.class_embeddings",
    "data.class_names",
    "data.true_concepts",
    "data.true_codes",
    "eval.tail.file",
    "eval.tail.data",
    "eval.tail.ranked_on",
    "eval.tail.class_embeddings",
    "eval.tail.documents",
    "eval.tail.max_norm",
];
