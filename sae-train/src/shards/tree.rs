//! The binary tree over the parts of a batch: in which order their gradients are added up.

use std::ops::Range;

/// Consecutive parts that are added up before they meet others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node {
    first: usize,
    end: usize,
}

impl Node {
    /// All parts.
    pub(super) fn root(parts: usize) -> Self {
        Self {
            first: 0,
            end: parts,
        }
    }

    /// Its first part.
    pub(super) fn first(self) -> usize {
        self.first
    }

    /// Whether it is one part.
    pub(super) fn is_leaf(self) -> bool {
        self.end - self.first == 1
    }

    /// The two nodes that it is the sum of.
    fn halves(self) -> [Self; 2] {
        let middle = self.first + (self.end - self.first) / 2;
        [
            Self {
                end: middle,
                ..self
            },
            Self {
                first: middle,
                ..self
            },
        ]
    }

    /// The fewest nodes that make up the parts `own`, which are among its parts.
    pub(super) fn within(self, own: &Range<usize>) -> Vec<Self> {
        if own.start <= self.first && self.end <= own.end {
            return vec![self];
        }
        if own.end <= self.first || self.end <= own.start {
            return Vec::new();
        }
        self.halves()
            .into_iter()
            .flat_map(|half| half.within(own))
            .collect()
    }

    /// The sum of its parts: `known` has the sum of some nodes, below which nobody looks. At most as many sums wait for their
    /// other half as the tree is deep.
    pub(super) fn sum<T>(
        self,
        mut known: impl FnMut(Self) -> Option<T>,
        add: impl Fn(T, T) -> T,
    ) -> T {
        fn of<T>(
            node: Node,
            known: &mut dyn FnMut(Node) -> Option<T>,
            add: &dyn Fn(T, T) -> T,
        ) -> T {
            if let Some(sum) = known(node) {
                return sum;
            }
            assert!(!node.is_leaf(), "a part whose gradient nobody has");
            let [a, b] = node.halves();
            let a = of(a, known, add);
            add(a, of(b, known, add))
        }
        of(self, &mut known, &add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the parts are added up, in words.
    fn written(parts: usize) -> String {
        let leaf = |node: Node| node.is_leaf().then(|| node.first.to_string());
        Node::root(parts).sum(leaf, |a, b| format!("({a} {b})"))
    }

    #[test]
    fn the_order_is_fixed() {
        assert_eq!(written(1), "0");
        assert_eq!(written(4), "((0 1) (2 3))");
        assert_eq!(written(6), "((0 (1 2)) (3 (4 5)))");
    }

    #[test]
    fn any_number_of_processes_adds_up_in_the_same_order() {
        for parts in 1..=24 {
            let root = Node::root(parts);
            for ranks in (1..=parts).filter(|ranks| parts % ranks == 0) {
                let each = parts / ranks;
                let sums = (0..ranks).flat_map(|rank| {
                    let nodes = root.within(&(rank * each..(rank + 1) * each));
                    let leaf = |node: Node| node.is_leaf().then(|| node.first.to_string());
                    let sum = move |node: Node| (node, node.sum(leaf, |a, b| format!("({a} {b})")));
                    nodes.into_iter().map(sum)
                });
                let sums: Vec<(Node, String)> = sums.collect();
                let known = |node| {
                    let found = sums.iter().find(|(of, _)| *of == node);
                    found.map(|(_, text)| text.clone())
                };
                let all = root.sum(known, |a, b| format!("({a} {b})"));
                assert_eq!(all, written(parts), "{ranks} processes");
            }
        }
    }

    #[test]
    fn a_power_of_two_is_one_node_per_process() {
        for rank in 0..4 {
            let nodes = Node::root(16).within(&(4 * rank..4 * rank + 4));
            assert_eq!(nodes.len(), 1);
        }
    }
}
