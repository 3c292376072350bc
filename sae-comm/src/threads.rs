//! Processes that are threads of one process: what a program does with several can be tried without a launcher.

use std::sync::{Arc, Barrier, Mutex, PoisonError};

use crate::Comm;

/// What is said at one time.
#[derive(Clone, Debug)]
enum Said {
    Numbers(Vec<Vec<f32>>),
    Bytes(Vec<u8>),
}

/// What all have in common.
#[derive(Debug)]
struct Table {
    said: Mutex<Vec<Said>>,
    /// All have spoken, or all have heard.
    turn: Barrier,
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    ranks: usize,
    table: Arc<Table>,
}

/// `ranks` processes, each for a thread of its own. One that ends early lets the others wait for ever.
pub fn threads(ranks: usize) -> Vec<Arc<dyn Comm>> {
    let table = Arc::new(Table {
        said: Mutex::new(vec![Said::Bytes(Vec::new()); ranks]),
        turn: Barrier::new(ranks),
    });
    let thread = |rank| -> Arc<dyn Comm> {
        let table = table.clone();
        Arc::new(Thread { rank, ranks, table })
    };
    (0..ranks).map(thread).collect()
}

impl Thread {
    /// What each has said.
    fn all(&self, own: Said) -> Vec<Said> {
        let said = || {
            self.table
                .said
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        said()[self.rank] = own;
        self.table.turn.wait();
        let all = said().clone();
        self.table.turn.wait();
        all
    }

    /// # Panics
    /// If the others call another method.
    fn numbers(&self, own: Vec<Vec<f32>>) -> Vec<Vec<Vec<f32>>> {
        let all = self.all(Said::Numbers(own)).into_iter();
        let numbers = |said| match said {
            Said::Numbers(numbers) => numbers,
            Said::Bytes(_) => panic!("the processes call different methods"),
        };
        all.map(numbers).collect()
    }
}

impl Comm for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn exchange(&self, messages: Vec<Vec<f32>>) -> Vec<Vec<f32>> {
        assert_eq!(messages.len(), self.ranks, "one message per process");
        let all = self.numbers(messages).into_iter();
        all.map(|mut of_one| of_one.swap_remove(self.rank))
            .collect()
    }

    fn gather(&self, numbers: &[f32]) -> Vec<Vec<f32>> {
        let all = self.numbers(vec![numbers.to_vec()]);
        all.into_iter().flatten().collect()
    }

    fn gather_bytes(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let all = self.all(Said::Bytes(bytes.to_vec())).into_iter();
        let bytes = |said| match said {
            Said::Bytes(bytes) => bytes,
            Said::Numbers(_) => panic!("the processes call different methods"),
        };
        all.map(bytes).collect()
    }

    fn broadcast(&self, bytes: Vec<u8>) -> Vec<u8> {
        self.gather_bytes(&bytes).swap_remove(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_hears_the_others() {
        let all = threads(3);
        std::thread::scope(|scope| {
            for comm in &all {
                scope.spawn(move || {
                    let own = comm.rank() as f32;
                    for round in 0..20 {
                        let told = round as f32;
                        let messages = (0..3).map(|to| vec![own, to as f32, told]).collect();
                        let heard = comm.exchange(messages);
                        let expected: Vec<_> =
                            (0..3).map(|from| vec![from as f32, own, told]).collect();
                        assert_eq!(heard, expected);
                        assert_eq!(comm.gather(&[own]), [[0.0], [1.0], [2.0]]);
                        let bytes = vec![comm.rank() as u8; comm.rank()];
                        let heard = comm.gather_bytes(&bytes);
                        assert_eq!(heard, [vec![], vec![1], vec![2, 2]]);
                        let said = comm.broadcast(vec![round + comm.rank() as u8]);
                        assert_eq!(said, [round]);
                    }
                });
            }
        });
    }
}
