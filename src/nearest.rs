//! a word, the valid words → the valid one that was probably meant.

/// The candidate nearest to `word`, where it is near enough to be a slip: at most a third
/// of the letters differ, one at least is allowed, and an unfinished word counts as near.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody slips that far, and the work grows with the square.
    if word.len() > 64 {
        return None;
    }
    let typed: Vec<char> = word.to_lowercase().chars().collect();
    let allowed = (typed.len() / 3).max(1);
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let valid: Vec<char> = candidate.to_lowercase().chars().collect();
            let unfinished = typed.len() >= 2 && valid.starts_with(&typed);
            let distance = if unfinished {
                1
            } else {
                distance(&typed, &valid)
            };
            (distance <= allowed).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours (optimal string alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, left) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, right) in b.iter().enumerate() {
            let replaced = last[j] + usize::from(left != right);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *left == b[j - 1] && a[i - 1] == *right {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood_and_strangers_are_not() {
        let verbs = ["status", "start", "stop", "restart", "--probe"];
        for (typed, meant) in [
            ("stauts", Some("status")),
            ("stat", Some("status")),
            ("STATUS", Some("status")),
            ("strat", Some("start")),
            ("probe", None),
            ("-probe", Some("--probe")),
            ("rsetart", Some("restart")),
            ("xyzzy", None),
            ("", None),
        ] {
            assert_eq!(nearest(typed, verbs), meant, "{typed}");
        }
        assert_eq!(nearest(&"x".repeat(100_000), verbs), None);
    }
}
