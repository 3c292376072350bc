//! The schema: finds the column of the activations, and its nodes and buffers in a record batch.

use arrow_ipc::{Endianness, Field, Precision, Schema, Type};

use super::{NAME, SourceFile};
use crate::element::Element;
use crate::error::DataError;
use crate::source::format::only;
use crate::source::matrix::Integer;

/// How a list stores the places of its elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Offsets(Integer),
    Fixed(usize),
}

/// Position of a column among the nodes and buffers of a record batch.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub(super) node: usize,
    pub(super) buffer: usize,
    /// Number of view columns before it, whose numbers of buffers vary by batch.
    pub(super) views: usize,
}

/// The relevant columns of a schema.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) name: String,
    pub(super) place: Place,
    /// One list for rows, two nested lists for examples of rows.
    pub(super) lists: Vec<List>,
    pub(super) element: Element,
    pub(super) labels: Option<(Place, Integer)>,
}

/// Finds the activations and the labels in the schema.
pub(super) fn columns(
    file: &SourceFile,
    schema: &Schema<'_>,
    wanted: Option<&str>,
) -> Result<Columns, DataError> {
    if schema.endianness() != Endianness::Little {
        let remedy = "write it on a little-endian machine";
        return Err(DataError::unsupported(
            &file.path,
            "big-endian Arrow",
            remedy,
        ));
    }
    let mut place = Place::default();
    let (mut candidates, mut labels, mut names) = (Vec::new(), None, Vec::new());
    for field in schema.fields().into_iter().flatten() {
        let name = field.name().unwrap_or("").to_string();
        let (start, activations) = (place, activations(&field));
        if let (true, Some(integer)) =
            (matches!(name.as_str(), "label" | "labels"), integer(&field))
        {
            labels = Some((start, integer));
        }
        names.push(format!("\"{name}\" {}", describe(&field)));
        step_over(file, &field, &mut place, 0)?;
        if let Some((lists, element)) = activations {
            candidates.push((name, start, lists, element));
        }
    }
    candidates.retain(|(name, ..)| wanted.is_none_or(|wanted| name == wanted));
    let (name, place, lists, element) =
        only(&file.path, "column", wanted, candidates, names.join(", "))?;
    Ok(Columns {
        name,
        place,
        lists,
        element,
        labels,
    })
}

/// The type in a few words, for messages.
fn describe(field: &Field<'_>) -> String {
    let name = field
        .type_type()
        .variant_name()
        .unwrap_or("of an unknown type")
        .trim_end_matches('_');
    match field
        .children()
        .filter(|_| list(field).is_some())
        .and_then(|c| (!c.is_empty()).then(|| c.get(0)))
    {
        Some(child) => format!("{name} of {}", describe(&child)),
        None => name.into(),
    }
}

fn list(field: &Field<'_>) -> Option<List> {
    match field.type_type() {
        Type::List => Some(List::Offsets(Integer::I32)),
        Type::LargeList => Some(List::Offsets(Integer::I64)),
        Type::FixedSizeList => {
            let size = usize::try_from(field.type_as_fixed_size_list()?.listSize()).ok()?;
            Some(List::Fixed(size))
        }
        _ => None,
    }
}

/// The lists and the element type of a column of floats in one or two nested lists.
fn activations(field: &Field<'_>) -> Option<(Vec<List>, Element)> {
    let mut lists = vec![list(field)?];
    let mut child = field.children().filter(|c| c.len() == 1)?.get(0);
    if let Some(inner) = list(&child) {
        lists.push(inner);
        child = child.children().filter(|c| c.len() == 1)?.get(0);
    }
    let element = match child.type_as_floating_point()?.precision() {
        Precision::HALF => Element::F16,
        Precision::SINGLE => Element::F32,
        Precision::DOUBLE => Element::F64,
        _ => return None,
    };
    Some((lists, element))
}

fn integer(field: &Field<'_>) -> Option<Integer> {
    let int = field
        .type_as_int()
        .filter(|_| field.dictionary().is_none())?;
    match (int.bitWidth(), int.is_signed()) {
        (64, true) => Some(Integer::I64),
        (32, true) => Some(Integer::I32),
        (8, false) => Some(Integer::U8),
        _ => None,
    }
}

/// The type of a column of integers, or of lists of integers, and the kind of these lists.
pub(super) fn integer_in_lists(field: &Field<'_>) -> Option<(Option<List>, Integer)> {
    let Some(list) = list(field) else {
        return Some((None, integer(field)?));
    };
    let child = field.children().filter(|c| c.len() == 1)?.get(0);
    Some((Some(list), integer(&child)?))
}

/// Counts the nodes and buffers of a field and its children (Arrow columnar format, "Buffer layouts").
pub(super) fn step_over(
    file: &SourceFile,
    field: &Field<'_>,
    place: &mut Place,
    depth: usize,
) -> Result<(), DataError> {
    const DEEPEST: usize = 64; // the depth that flatbuffers verifies
    place.node += 1;
    if field.dictionary().is_some() {
        place.buffer += 2; // validity, indices; the values are in messages of their own
        return Ok(());
    }
    place.views += usize::from(matches!(
        field.type_type(),
        Type::Utf8View | Type::BinaryView
    ));
    place.buffer += buffers(field).ok_or_else(|| {
        let (name, kind) = (field.name().unwrap_or(""), field.type_type());
        let what = format!("column \"{name}\" of type {kind:?}");
        DataError::unsupported(&file.path, what, "leave this column out")
    })?;
    if depth == DEEPEST {
        let reason = "a column is nested too deeply";
        return Err(DataError::damaged(&file.path, NAME, 0, reason));
    }
    for child in field.children().into_iter().flatten() {
        step_over(file, &child, place, depth + 1)?;
    }
    Ok(())
}

/// Number of a field's own buffers, except those of views, which every batch counts; `None` for an unknown type.
fn buffers(field: &Field<'_>) -> Option<usize> {
    Some(match field.type_type() {
        Type::Null | Type::RunEndEncoded => 0,
        Type::Struct_ | Type::FixedSizeList => 1,
        Type::Union => match field.type_as_union().map(|union| union.mode()) {
            Some(arrow_ipc::UnionMode::Dense) => 2,
            _ => 1,
        },
        Type::Int | Type::FloatingPoint | Type::Bool | Type::Decimal | Type::Date | Type::Time => 2,
        Type::Timestamp | Type::Interval | Type::Duration | Type::FixedSizeBinary => 2,
        Type::List | Type::LargeList | Type::Map | Type::Utf8View | Type::BinaryView => 2,
        Type::Utf8 | Type::Binary | Type::LargeUtf8 | Type::LargeBinary => 3,
        Type::ListView | Type::LargeListView => 3,
        _ => return None,
    })
}
