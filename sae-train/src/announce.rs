//! What is said of a run before it trains.

use sae_model::Architecture;
use sae_run::Raise;

use crate::output::say;
use crate::prepare::Prepared;

impl Prepared {
    /// Prints what is trained; of a run that is `alone` also what there is to say of the data. A dashboard hides this until it
    /// closes.
    pub(crate) fn announce(&self, done: usize, alone: bool) {
        let c = &self.config;
        let model = format!(
            "{}, {} latents",
            self.resolved.model.architecture.describe(),
            c.model.n_latents
        );
        match alone {
            true => say(format!("run {}: {model}, {}", c.run_name(), self.of_data())),
            false => say(model),
        }
        if let Some(from) = &self.provenance.from {
            let (path, sum) = (from.path.display(), &from.blake3);
            say(format!(
                "starts from the model {path} (BLAKE3 of its parameters: {sum})"
            ));
        }
        self.say_pre_bias();
        if alone {
            self.say_left_out();
            self.say_notes();
        }
        self.say_raises();
        if done > 0 {
            say(format!("continuing after step {done}"));
        } else if self.asked_to_resume {
            say("there is no checkpoint to continue from; starting from the beginning");
        }
    }

    /// `width 384, 12796 training rows, 2404 held out, device cpu`
    pub(crate) fn of_data(&self) -> String {
        format!(
            "width {}, {} training rows, {} held out, device {}",
            self.data.train.width(),
            self.data.train.rows(),
            self.data.held_out.rows(),
            sae_run::on_card(&self.config.device, self.provenance.card.as_deref()),
        )
    }

    /// Prints where the number of steps was changed, and what that means.
    fn say_raises(&self) {
        for raise in &self.provenance.raised {
            let Raise { at, from, to, .. } = raise;
            say(format!(
                "raised from {from} to {to} steps after step {at}: from there on the learning rate, and all else that follows the \
                 number of steps, is that of step {} of {to}; a run of {to} steps from the start is another run",
                at + 1
            ));
        }
    }

    /// Prints why there is no pre-bias, if the architecture could have one.
    fn say_pre_bias(&self) {
        let model = &self.resolved.model;
        if self.start.is_none() && !model.pre_bias && model.architecture.pre_bias(f64::INFINITY) {
            let ratio = self.data.train_summary.typical.mean_over_sigma();
            say(format!(
                "no pre-bias: the mean of the rows is {ratio:.2} sigma long (model.pre_bias)"
            ));
        }
    }

    /// Prints how many rows were left out because of their norm.
    pub(crate) fn say_left_out(&self) {
        let Some(limit) = self.config.data.max_norm.number() else {
            return;
        };
        let sides = [
            (&self.data.train, "training"),
            (&self.data.held_out, "held-out"),
        ];
        if sides.iter().all(|(data, _)| data.rows_left_out() == 0) {
            return;
        }
        let [train, held_out] = sides.map(|(data, side)| {
            let left_out = data.rows_left_out();
            let all = data.rows() + left_out;
            let percent = 100.0 * left_out as f64 / all as f64;
            format!("{left_out} of {all} {side} rows ({percent:.3} %)")
        });
        let medians = limit / self.data.train_summary.typical.median_norm;
        say(format!(
            "left out: {train} and {held_out}, of norms above {limit:.4}, {medians:.1} times the median (data.max_norm)"
        ));
    }

    /// Prints the warnings about both sides of the data.
    pub(crate) fn say_notes(&self) {
        let train = self.data.train_summary.warnings();
        let held_out = self.data.held_out_summary.warnings();
        for note in &train {
            say(format!("note: {note}"));
        }
        for note in held_out.iter().filter(|note| !train.contains(note)) {
            say(format!("note (held-out rows): {note}"));
        }
    }
}
