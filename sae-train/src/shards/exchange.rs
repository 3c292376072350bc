//! Brings what the parts of a step have to the processes that add it up. While a piece is added up, the next is on its way.

use std::ops::Range;
use std::sync::mpsc;
use std::thread;

use super::Shards;
use super::gradients::{Gradients, Layout, added};
use super::rounding::{packed, unpacked};
use super::tree::Node;

/// Numbers of a piece of a message: 4 MiB.
const PIECE: usize = 1 << 20;

/// The exchange of a step.
pub(super) struct Exchange<'a> {
    shards: &'a Shards,
    layout: &'a Layout,
    root: Node,
    /// Number of words of a node's message to each process.
    words: Vec<usize>,
    pieces: usize,
}

impl<'a> Exchange<'a> {
    pub(super) fn new(shards: &'a Shards, layout: &'a Layout) -> Self {
        let words = |to: usize| match shards.packs() {
            true => layout.length(to) - layout.trained(to) / 2,
            false => layout.length(to),
        };
        let words: Vec<usize> = (0..shards.comm.ranks()).map(words).collect();
        let longest = words.iter().max();
        Self {
            pieces: longest.map_or(1, |most| most.div_ceil(PIECE)),
            root: Node::root(shards.parts),
            words,
            shards,
            layout,
        }
    }

    /// The words of a piece of a message to a process.
    fn piece(&self, to: usize, piece: usize) -> Range<usize> {
        let words = self.words[to] as u128;
        let at = |piece: usize| (words * piece as u128 / self.pieces as u128) as usize;
        at(piece)..at(piece + 1)
    }

    /// This process's slice of the sum over all parts, of which `own` are the sums of its nodes.
    pub(super) fn sum(&self, own: Vec<Gradients>) -> Vec<f32> {
        // for each process what each of our nodes has for it
        let flat: Vec<Vec<Vec<f32>>> = (0..self.words.len())
            .map(|to| own.iter().map(|node| self.message(node, to)).collect())
            .collect();
        drop(own);
        let (sender, arrived) = mpsc::sync_channel(1);
        let mut sum = thread::scope(|scope| {
            let flat = &flat;
            scope.spawn(move || {
                for piece in 0..self.pieces {
                    let to = |to: usize| {
                        let nodes = flat[to].iter();
                        let parts = nodes.map(|node| &node[self.piece(to, piece)]);
                        parts.collect::<Vec<_>>().concat()
                    };
                    let messages = (0..flat.len()).map(to).collect();
                    let messages = self.shards.comm.exchange(messages);
                    if sender.send(messages).is_err() {
                        return; // the sum has panicked
                    }
                }
            });
            let sums = arrived.iter().enumerate().map(|(piece, messages)| {
                let messages = messages.into_iter();
                let numbers = messages.map(|message| self.numbers(message, piece));
                self.sum_of(&numbers.collect::<Vec<_>>())
            });
            sums.collect::<Vec<_>>().concat()
        });
        let trained = self.layout.trained(self.shards.comm.rank());
        if self.shards.packs() && !trained.is_multiple_of(2) {
            sum.remove(trained); // beside the last gradient
        }
        sum
    }

    /// What a node has for a process, as it is sent.
    fn message(&self, node: &Gradients, to: usize) -> Vec<f32> {
        let message = self.layout.message(node, to);
        if !self.shards.packs() {
            return message;
        }
        let (gradients, rest) = message.split_at(self.layout.trained(to));
        [&packed(gradients), rest].concat()
    }

    /// The numbers of a piece that has arrived.
    fn numbers(&self, message: Vec<f32>, piece: usize) -> Vec<f32> {
        if !self.shards.packs() {
            return message;
        }
        let rank = self.shards.comm.rank();
        let of_gradients = self.layout.trained(rank).div_ceil(2);
        let here = of_gradients.saturating_sub(self.piece(rank, piece).start);
        let (gradients, rest) = message.split_at(here.min(message.len()));
        unpacked(gradients).chain(rest.iter().copied()).collect()
    }

    /// The sum over the tree of what the processes have sent, each its nodes one behind the other.
    fn sum_of(&self, messages: &[Vec<f32>]) -> Vec<f32> {
        let received = messages.iter().enumerate().flat_map(|(rank, message)| {
            let nodes = self.root.within(&self.shards.parts_of(rank));
            let length = message.len() / nodes.len();
            let part = move |(i, node)| (node, &message[i * length..(i + 1) * length]);
            nodes.into_iter().enumerate().map(part)
        });
        let received: Vec<(Node, &[f32])> = received.collect();
        let known = |node: Node| {
            let (_, numbers) = received.iter().find(|(of, _)| *of == node)?;
            Some(numbers.to_vec())
        };
        self.root.sum(known, added)
    }
}
