//! Documents (examples, contexts, images): splits never cut one.

/// The documents of a data set, in row order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Documents {
    /// `count` documents of `tokens` rows each.
    Uniform {
        /// Rows per document.
        tokens: usize,
        /// Number of documents.
        count: usize,
    },
    /// The first row of each document; an empty document has the first row of the next one.
    Starts(Vec<usize>),
}

impl Documents {
    /// Number of documents.
    pub fn count(&self) -> usize {
        match self {
            Self::Uniform { count, .. } => *count,
            Self::Starts(starts) => starts.len(),
        }
    }

    /// First row of a document.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn start(&self, document: usize) -> usize {
        assert!(
            document < self.count(),
            "document {document} of {}",
            self.count()
        );
        match self {
            Self::Uniform { tokens, .. } => document * tokens,
            Self::Starts(starts) => starts[document],
        }
    }

    /// The document that `row` belongs to.
    pub(crate) fn of(&self, row: usize) -> usize {
        match self {
            Self::Uniform { tokens, .. } => row / tokens,
            Self::Starts(starts) => starts.partition_point(|start| *start <= row) - 1,
        }
    }

    /// The first row at or after `row` that begins a document, or `rows`, the number of all rows.
    pub(crate) fn next_start(&self, row: usize, rows: usize) -> usize {
        match self {
            Self::Uniform { tokens, .. } => row.next_multiple_of(*tokens).min(rows),
            Self::Starts(starts) => {
                let at = starts.partition_point(|start| *start < row);
                starts.get(at).copied().unwrap_or(rows)
            }
        }
    }
}

/// Collects documents while a data set is opened.
#[derive(Debug, Default)]
pub(crate) struct DocumentsBuilder {
    rows: usize,
    documents: Option<Documents>,
}

impl DocumentsBuilder {
    /// Adds a document of `rows` rows.
    pub(crate) fn push(&mut self, rows: usize) {
        match &mut self.documents {
            None if rows > 0 => {
                let (tokens, count) = (rows, 1);
                self.documents = Some(Documents::Uniform { tokens, count });
            }
            Some(Documents::Uniform { tokens, count }) if *tokens == rows => *count += 1,
            _ => {
                let mut starts = self.starts();
                starts.push(self.rows);
                self.documents = Some(Documents::Starts(starts));
            }
        }
        self.rows += rows;
    }

    /// Takes out the first rows of all documents.
    fn starts(&mut self) -> Vec<usize> {
        match self.documents.take() {
            Some(Documents::Uniform { tokens, count }) => (0..count).map(|i| i * tokens).collect(),
            Some(Documents::Starts(starts)) => starts,
            None => Vec::new(),
        }
    }

    /// Adds rows to the last document.
    pub(crate) fn extend(&mut self, rows: usize) {
        match &mut self.documents {
            Some(Documents::Uniform { tokens, count: 1 }) => *tokens += rows,
            _ => self.documents = Some(Documents::Starts(self.starts())),
        }
        self.rows += rows;
    }

    /// The documents, if there are any.
    pub(crate) fn finish(self) -> Option<Documents> {
        self.documents
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(lengths: &[usize]) -> Documents {
        let mut builder = DocumentsBuilder::default();
        lengths.iter().for_each(|len| builder.push(*len));
        builder.finish().unwrap()
    }

    #[test]
    fn equal_lengths_need_no_list() {
        let documents = of(&[3, 3, 3]);
        assert_eq!(
            documents,
            Documents::Uniform {
                tokens: 3,
                count: 3
            }
        );
        assert_eq!([0, 2, 3, 8].map(|row| documents.of(row)), [0, 0, 1, 2]);
        assert_eq!(
            [0, 1, 3, 7].map(|row| documents.next_start(row, 9)),
            [0, 3, 3, 9]
        );
    }

    #[test]
    fn other_lengths_do() {
        let documents = of(&[3, 3, 0, 2, 4]);
        assert_eq!(documents, Documents::Starts(vec![0, 3, 6, 6, 8]));
        assert_eq!(
            [5, 6, 7, 8, 11].map(|row| documents.of(row)),
            [1, 3, 3, 4, 4]
        );
        assert_eq!(
            [0, 4, 6, 7, 9].map(|row| documents.next_start(row, 12)),
            [0, 6, 6, 8, 12]
        );
        assert_eq!(of(&[0, 2]), Documents::Starts(vec![0, 0]));
    }

    #[test]
    fn a_document_may_go_on() {
        let mut builder = DocumentsBuilder::default();
        builder.push(3);
        builder.extend(1);
        builder.push(4);
        builder.extend(2);
        builder.push(4);
        builder.extend(1);
        assert_eq!(builder.finish(), Some(Documents::Starts(vec![0, 4, 10])));
    }
}
