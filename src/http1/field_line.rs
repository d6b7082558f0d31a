//! The fast path for one field line, shared by the parsers of requests and of responses: a name of letters and `-`, a
//! value of visible ASCII after one space or none, and CRLF. It leaves any other line to the general parsers, and
//! splits none in a different way than they do.

use super::syntax;

/// Offsets of the name and value of a field within its line.
#[derive(Clone, Copy)]
pub(super) struct FieldSpan {
    pub(super) name_end: usize,
    pub(super) value_start: usize,
    pub(super) value_end: usize,
}

/// Splits the field line at the start of `rest`. Returns `None` if the fast path does not apply or `rest` is shorter
/// than a block.
#[allow(clippy::inline_always, reason = "hot path of two callers")]
#[inline(always)]
pub(super) fn split_field(rest: &[u8]) -> Option<FieldSpan> {
    let (non_names, ends) = syntax::field_masks(rest.first_chunk()?);
    // Keep searching if the name or value extends beyond the first block.
    let name_end = if non_names == 0 { syntax::find_non_name(rest, 0) } else { non_names.trailing_zeros() as usize };
    let value_end =
        || if ends == 0 { syntax::find_unprintable(rest, name_end) } else { ends.trailing_zeros() as usize };
    split_field_at(rest, name_end, value_end)
}

/// Splits the field line at the start of `rest`, whose name ends at `name_end`. Returns `None` if the fast path does
/// not apply.
#[allow(clippy::inline_always, reason = "hot path of two callers")]
#[inline(always)]
pub(super) fn split_field_at(rest: &[u8], name_end: usize, value_end: impl FnOnce() -> usize) -> Option<FieldSpan> {
    if name_end == 0 || rest.get(name_end) != Some(&b':') {
        return None;
    }
    let value_start = name_end + 1 + usize::from(rest.get(name_end + 1) == Some(&b' '));
    let value_end = value_end();
    let value = rest.get(value_start..value_end)?;
    // The general parser strips surrounding whitespace from values.
    let is_trimmed = *value.first()? != b' ' && *value.last()? != b' ';
    (is_trimmed && rest[value_end..].starts_with(b"\r\n")).then_some(FieldSpan { name_end, value_start, value_end })
}
