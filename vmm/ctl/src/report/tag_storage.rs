//! Tag storage as a table.

use arch::layout::CHUNK;
use vmm::api::model::TagStorage;
use vmm::error::printable;

use super::{Align, flatten, grouped, size, table};

/// The tag storage of a VM as an aligned table, one fact a line, with its supply beside each size.
pub fn tag_storage(state: &TagStorage) -> String {
    if let Some(borrows) = &state.borrows {
        let supply = printable(&borrows.supply);
        return format!(
            "No tag storage is reserved for this VM; its memory may be in tag storage that is not reserved ({supply}, lent \
             {}).\n",
            printable(&borrows.lend)
        );
    }
    let Some(supply) = state.supply.as_deref().map(printable) else {
        return "No tag storage is reserved for this VM (--tag-storage off).\n".to_owned();
    };
    let tags = |bytes: u64| format!("{} ({supply})", size(bytes));
    let memory = |chunks: u64| {
        format!("{} chunks, {}", grouped(chunks), size(chunks.saturating_mul(CHUNK.get())))
    };
    let mut rows = vec![
        ("Mode", state.mode.to_string()),
        ("Pool", tags(state.capacity_bytes)),
        ("Reserved", tags(state.reserved_bytes)),
        ("Set aside", tags(state.min_bytes)),
        ("At most", state.max_bytes.map_or("all there is".to_owned(), tags)),
        ("Guest memory", memory(state.chunks.total)),
    ];
    if let (Some(populated), Some(absent)) = (state.chunks.populated, state.chunks.absent) {
        rows.push(("Populated", memory(populated)));
        if let Some(ahead) = state.chunks.ahead {
            rows.push(("Ahead", memory(ahead)));
        }
        rows.push(("Absent", memory(absent)));
    }
    if let (Some(action), Some(deadline)) = (state.on_exhausted, state.deadline_s) {
        rows.push(("When exhausted", format!("{action} after {deadline} s")));
        rows.push(("Waiting", grouped(state.chunks.waiting)));
    }
    if let Some(reason) = &state.reason {
        rows.push(("Exhausted", printable(reason)));
    }
    let mut text = table(&rows, Align::Left);
    let mut counters = Vec::new();
    flatten("", &state.counters, &mut counters);
    if !counters.is_empty() {
        text.push_str("Since the start:\n");
        text.push_str(&table(&counters, Align::Right));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vmm::api::model::{OnExhausted, TagStorageChunks, TagStorageMode};

    use super::*;

    #[test]
    fn each_size_has_its_supply_beside_it() {
        let waiting = TagStorage {
            borrows: None,
            mode: TagStorageMode::Demand,
            supply: Some("ledger".to_owned()),
            capacity_bytes: 128 << 20,
            reserved_bytes: 40 << 16,
            min_bytes: 0,
            max_bytes: Some(40 << 16),
            chunks: TagStorageChunks {
                total: 256,
                populated: Some(40),
                ahead: Some(4),
                absent: Some(212),
                waiting: 1,
            },
            on_exhausted: Some(OnExhausted::Pause),
            deadline_s: Some(5),
            exhausted: true,
            expired: true,
            reason: Some("the guest touches chunk 41: give a larger --tag-max".to_owned()),
            counters: json!({ "populated_total": 40, "touches_total": 41 }),
        };

        let text = tag_storage(&waiting);

        for line in [
            "Mode            demand",
            "Pool            128 MiB (ledger)",
            "Reserved        2.5 MiB (ledger)",
            "Populated       40 chunks, 80 MiB",
            "Ahead           4 chunks, 8 MiB",
            "When exhausted  pause after 5 s",
            "Waiting         1",
            "touches_total    41",
        ] {
            assert!(text.contains(line), "{line} is not in:\n{text}");
        }
        assert!(text.contains("--tag-max"), "{text}");
    }

    #[test]
    fn where_none_is_reserved_that_is_said() {
        let text = tag_storage(&TagStorage::off());

        assert!(text.contains("--tag-storage off"), "{text}");
    }
}
