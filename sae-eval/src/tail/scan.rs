//! A look at the bytes of a tail before they are parsed.
//!
//! A parser of protobuf makes a structure of some hundred bytes of a message of two bytes, so a file of a gigabyte could ask for
//! all memory there is. Here the number of messages that become large structures is bounded first, and so are the bytes of
//! everything that is not the plain content of a weight. Weights that are stored in another way or outside the file, and
//! attributes that hold graphs or tensors, are refused. Nothing is copied.

use anyhow::{Result, bail, ensure};

/// Longest file: protobuf itself allows no more.
pub(super) const MAX_BYTES: u64 = (2 << 30) - 1;
/// Most fields of the model, weights, and other fields of the graph (most of which are nodes).
const MAX_MESSAGES: usize = 1 << 16;
/// Most fields of all nodes together: names and attributes.
const MAX_NODE_FIELDS: usize = 1 << 18;
/// Bytes of the graph without the content of its weights, and of everything else.
const MAX_DESCRIPTION: usize = 4 << 20;

/// Numbers of the fields of ONNX's messages (onnx.proto3).
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const NODE_ATTRIBUTE: u64 = 5;
    /// Name, one number of either type, text, numbers of either type, documentation, type.
    pub(super) const ATTRIBUTE_PLAIN: [u64; 8] = [1, 2, 3, 4, 7, 8, 13, 20];
    pub(super) const TENSOR_BYTES: u64 = 9;
    /// Dimensions, type, name, plain bytes, documentation.
    pub(super) const TENSOR_PLAIN: [u64; 5] = [1, 2, 8, TENSOR_BYTES, 12];
    /// Where data outside the file lies.
    pub(super) const TENSOR_OUTSIDE: [u64; 2] = [13, 14];
}

/// Fails if `bytes` are no ONNX model that is safe to parse.
pub(super) fn check(bytes: &[u8]) -> Result<()> {
    let (mut graphs, mut rest, mut fields) = (0, 0, 0);
    for field in Fields(bytes) {
        fields += 1;
        match field? {
            (field::MODEL_GRAPH, Some(graph)) => {
                graphs += 1;
                check_graph(graph)?;
            }
            (_, content) => rest += content.map_or(0, <[u8]>::len),
        }
    }
    ensure!(graphs == 1, "it is no ONNX model: it has {graphs} graphs");
    ensure!(
        fields <= MAX_MESSAGES,
        "it has {fields} fields, more than {MAX_MESSAGES}"
    );
    ensure!(
        rest <= MAX_DESCRIPTION,
        "it describes itself in {rest} bytes, more than {MAX_DESCRIPTION}"
    );
    Ok(())
}

fn check_graph(graph: &[u8]) -> Result<()> {
    let (mut nodes, mut weights, mut node_fields, mut described) = (0, 0, 0, 0);
    for field in Fields(graph) {
        let (number, content) = field?;
        let content = content.unwrap_or_default();
        if number == field::GRAPH_INITIALIZER {
            weights += 1;
            described += check_tensor(content)?;
            continue;
        }
        nodes += 1;
        described += content.len();
        if number == field::GRAPH_NODE {
            node_fields += check_node(content)?;
        }
    }
    ensure!(
        nodes <= MAX_MESSAGES && weights <= MAX_MESSAGES,
        "it has {nodes} nodes and {weights} weights; at most {MAX_MESSAGES} of each are read"
    );
    ensure!(
        described <= MAX_DESCRIPTION,
        "its graph without the content of weights takes {described} bytes, more than {MAX_DESCRIPTION}; weights belong into the \
         graph's initializers"
    );
    ensure!(
        node_fields <= MAX_NODE_FIELDS,
        "its nodes have {node_fields} names and attributes; at most {MAX_NODE_FIELDS} are read"
    );
    Ok(())
}

/// The number of a node's fields.
fn check_node(node: &[u8]) -> Result<usize> {
    let mut fields = 0;
    for field in Fields(node) {
        let (number, content) = field?;
        fields += 1;
        if number != field::NODE_ATTRIBUTE {
            continue;
        }
        for part in Fields(content.unwrap_or_default()) {
            ensure!(
                field::ATTRIBUTE_PLAIN.contains(&part?.0),
                "an attribute of a node is more than numbers or a text; weights belong into the graph's initializers"
            );
        }
    }
    Ok(fields)
}

/// The bytes of a weight that are not its content.
fn check_tensor(tensor: &[u8]) -> Result<usize> {
    let mut plain = 0;
    for field in Fields(tensor) {
        let (number, content) = field?;
        if number == field::TENSOR_BYTES {
            plain += content.map_or(0, <[u8]>::len);
        }
        ensure!(
            !field::TENSOR_OUTSIDE.contains(&number),
            "its weights lie in other files; write them into the file itself"
        );
        ensure!(
            field::TENSOR_PLAIN.contains(&number),
            "a weight is not stored as plain bytes (raw_data)"
        );
    }
    Ok(tensor.len() - plain)
}

/// The fields of a message, one after the other: the number of each, and its content if it has a length.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let Some((taken, rest)) = self.0.split_at_checked(count) else {
            bail!("it is damaged: it ends within a field");
        };
        self.0 = rest;
        Ok(taken)
    }

    /// A number of seven bits per byte, the lowest first.
    fn varint(&mut self) -> Result<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        bail!("it is damaged: a number has more than ten bytes")
    }

    fn field(&mut self) -> Result<(u64, Option<&'a [u8]>)> {
        let key = self.varint()?;
        let content = match key & 7 {
            0 => self.varint().map(|_| None)?,
            1 => self.take(8).map(|_| None)?,
            5 => self.take(4).map(|_| None)?,
            2 => {
                let length = usize::try_from(self.varint()?)?;
                Some(self.take(length)?)
            }
            kind => bail!("it is no ONNX model: a field is of kind {kind}"),
        };
        Ok((key >> 3, content))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Option<&'a [u8]>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[]; // nothing after it can be believed
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with a length.
    fn message(number: u64, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![(number << 3 | 2) as u8];
        let mut length = content.len();
        while length >= 0x80 {
            bytes.push((length & 0x7f | 0x80) as u8);
            length >>= 7;
        }
        bytes.push(length as u8);
        bytes.extend(content);
        bytes
    }

    fn said(bytes: &[u8]) -> String {
        check(bytes).map_or_else(|error| error.to_string(), |()| "fine".into())
    }

    #[test]
    fn plain_weights_are_fine_and_others_are_not() {
        let weight = |content: Vec<u8>| message(7, &message(5, &content));
        assert_eq!(said(&weight(message(9, &[0; 300]))), "fine");
        assert!(said(&weight(message(4, &[0; 8]))).contains("plain bytes"));
        assert!(said(&weight(message(13, b"location"))).contains("other files"));
        assert!(said(&[]).contains("0 graphs"));
    }

    #[test]
    fn many_small_messages_are_refused_before_they_are_parsed() {
        let nodes = message(1, &[]).repeat(MAX_MESSAGES + 1);
        assert!(said(&message(7, &nodes)).contains("65537 nodes"));
        let node = message(7, &message(1, &vec![0; MAX_DESCRIPTION + 2]));
        assert!(said(&node).contains("initializers"));
        let dimensions = message(5, &[8, 1].repeat(MAX_DESCRIPTION / 2 + 1));
        assert!(said(&message(7, &dimensions)).contains("without the content"));
        let attributes = message(5, &[]).repeat(1 << 14);
        let nodes = message(1, &attributes).repeat(17);
        assert!(said(&message(7, &nodes)).contains("names and attributes"));
        let graph = message(1, &message(5, &message(6, &[])));
        assert!(said(&message(7, &graph)).contains("more than numbers"));
        let props = message(14, &vec![0; MAX_DESCRIPTION + 1]);
        assert!(said(&[props, message(7, &[])].concat()).contains("describes itself"));
        let props = message(14, &[]).repeat(MAX_MESSAGES);
        assert!(said(&[props, message(7, &[])].concat()).contains("65537 fields"));
    }

    #[test]
    fn a_cut_file_is_damaged() {
        let whole = message(7, &message(5, &message(9, &[0; 300])));
        for length in 1..whole.len() {
            assert!(said(&whole[..length]).contains("damaged"), "{length}");
        }
        assert!(said(&[0xff; 20]).contains("more than ten bytes"));
    }
}
