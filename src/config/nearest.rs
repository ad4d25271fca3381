//! a word typed, the words known → the one that was meant.

/// The candidate that a typing error most likely meant, if one is near.
pub fn nearest<'a>(typed: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let typed: Vec<char> = typed.to_lowercase().chars().take(64).collect();
    candidates
        .map(|candidate| {
            let other: Vec<char> = candidate.to_lowercase().chars().collect();
            (distance(&typed, &other), other.len(), candidate)
        })
        .filter(|(distance, length, _)| *distance <= (typed.len().max(*length) / 3).max(1))
        .filter(|(distance, length, _)| distance < length)
        .min_by_key(|(distance, _, _)| *distance)
        .map(|(_, _, candidate)| candidate)
}

/// Edits between two words: insert, delete, replace, swap of neighbours (optimal string
/// alignment).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(a: &str, b: &str) -> usize {
        let a: Vec<char> = a.chars().collect();
        let b: Vec<char> = b.chars().collect();
        distance(&a, &b)
    }

    #[test]
    fn edit_distance() {
        // Published examples of the metric.
        assert_eq!(words("kitten", "sitting"), 3);
        assert_eq!(words("ca", "ac"), 1);
        assert_eq!(words("", "abc"), 3);
        assert_eq!(words("same", "same"), 0);
    }

    #[test]
    fn near_and_far() {
        let keys = ["executable", "environment", "user"];
        assert_eq!(nearest("executible", keys.into_iter()), Some("executable"));
        assert_eq!(nearest("Enviroment", keys.into_iter()), Some("environment"));
        assert_eq!(nearest("usre", keys.into_iter()), Some("user"));
        assert_eq!(nearest("colour", keys.into_iter()), None);
        assert_eq!(nearest("", keys.into_iter()), None);
        assert_eq!(nearest("x", ["y"].into_iter()), None);
    }
}
