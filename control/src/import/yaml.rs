//! YAML of other systems, as plain values. Their files are dumped by programs: anchors and aliases
//! by the thousand are ordinary, so the limits on those are wider than the parser's own.

use super::error::ImportError;
use serde_json::Value;

/// Lists, maps and scalars of a file, aliases not counted.
const NODES_MAX: usize = 4_000_000;
/// Aliases, and what they expand to in parser events: what keeps a "billion laughs" file small.
const ALIASES_MAX: usize = 1_000_000;

/// The one document of a file.
pub(super) fn parse(text: &str) -> Result<Value, ImportError> {
    let budget = serde_saphyr::budget! {
        max_events: 3 * NODES_MAX,
        max_nodes: NODES_MAX,
        max_aliases: ALIASES_MAX,
        max_anchors: ALIASES_MAX,
        max_recorded_anchor_events: 3 * NODES_MAX,
        enforce_alias_anchor_ratio: false,
    };
    let aliases = serde_saphyr::alias_limits! { max_total_replayed_events: 4 * ALIASES_MAX };
    let options = serde_saphyr::options! { budget: budget, alias_limits: aliases, with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| {
        // What comes after the first line is advice about the parser's settings.
        let what = e.to_string().lines().next().unwrap_or_default().chars().take(200).collect();
        ImportError::Syntax { format: "YAML", what }
    })
}
