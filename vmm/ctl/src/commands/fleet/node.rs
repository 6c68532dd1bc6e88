//! A node's list of generic resources, as Slurm has it.

/// Slurm's name of tag storage, counted in MiB.
pub(super) const TAG_STORAGE: &str = "tagmib";

/// How much tag storage a list has, in MiB; 0 where it has none.
pub(super) fn tag_storage(list: &str) -> u64 {
    entries(list).find_map(tag_storage_of).unwrap_or(0)
}

/// The list with this much tag storage; its other entries as they are, without the sockets that Slurm adds.
pub(super) fn with_tag_storage(list: &str, mib: u64) -> String {
    let others = entries(list).filter(|entry| tag_storage_of(entry).is_none());
    let mut entries: Vec<String> = others.map(str::to_owned).collect();
    entries.push(format!("{TAG_STORAGE}:{mib}"));
    entries.join(",")
}

/// `name:count` or `name:type:count` each.
fn entries(list: &str) -> impl Iterator<Item = &str> {
    // The sockets, as in `gpu:4(S:0,1)`, have commas of their own.
    let mut depth = 0_usize;
    list.split(move |letter| {
        match letter {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        letter == ',' && depth == 0
    })
    .map(|entry| entry.split('(').next().unwrap_or_default())
    .filter(|entry| !entry.is_empty())
}

fn tag_storage_of(entry: &str) -> Option<u64> {
    let (name, count) = entry.split_once(':').unwrap_or((entry, "1"));
    if name != TAG_STORAGE {
        return None;
    }
    // Slurm prints large counts of multiples of 1024 with a suffix (gres2str of its source).
    let (digits, unit) = match count.char_indices().last() {
        Some((at, 'K')) => (&count[..at], 1 << 10),
        Some((at, 'M')) => (&count[..at], 1 << 20),
        Some((at, 'G')) => (&count[..at], 1 << 30),
        Some((at, 'T')) => (&count[..at], 1 << 40),
        _ => (count, 1_u64),
    };
    Some(digits.parse::<u64>().ok().and_then(|count| count.checked_mul(unit)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tag_storage_is_found_among_others() {
        assert_eq!(tag_storage("gpu:2(S:0,1),tagmib:122"), 122);
        assert_eq!(tag_storage("tagmib:2K"), 2048);
        assert_eq!(tag_storage("tagmib"), 1);
        assert_eq!(tag_storage("gpu:tagmib:2"), 0);
        assert_eq!(tag_storage("tagmib2:7"), 0);
        assert_eq!(tag_storage(""), 0);
        // Nothing that is printed ends in a panic or an overflow.
        assert_eq!(tag_storage("tagmib:99999999999999999999T"), 0);
    }

    #[test]
    fn other_resources_stay() {
        assert_eq!(with_tag_storage("", 5), "tagmib:5");
        assert_eq!(with_tag_storage("tagmib:7", 5), "tagmib:5");
        assert_eq!(with_tag_storage("gpu:a:2(S:0,1),tagmib:7,nic:1", 5), "gpu:a:2,nic:1,tagmib:5");
    }
}
