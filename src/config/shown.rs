//! a line of a file → as much of it as a message shows.
//!
//! Passwords are masked, control characters made visible, very long lines cut around the
//! place meant.

/// At most this many characters of a line are shown: a JSON file may be one line.
pub const WINDOW: usize = 100;

/// The part of a line around `column`, with its control characters made visible, and where
/// the column is in it.
pub fn window(line: &str, column: usize) -> (String, usize) {
    let clean = |c: char| match c {
        '\t' => ' ',
        c if c.is_control() => '\u{fffd}',
        c => c,
    };
    let total = line.chars().count();
    if total <= WINDOW {
        return (line.trim_end().chars().map(clean).collect(), column);
    }
    let first = column
        .saturating_sub(WINDOW / 3)
        .min(total.saturating_sub(WINDOW));
    let mut shown = String::new();
    if first > 0 {
        shown.push('…');
    }
    shown.extend(line.chars().skip(first).take(WINDOW).map(clean));
    if first + WINDOW < total {
        shown.push('…');
    }
    (shown, column - first + usize::from(first > 0))
}

/// Replaces what follows a key `password`, and the password of a URL, character by
/// character. Works on the text, for lines that could not be parsed too.
pub fn mask(line: &str) -> String {
    let mut chars: Vec<char> = line.chars().collect();
    let mut at = 0;
    // Each character is looked at a bounded number of times: lines may be very long.
    while at < chars.len() {
        at = if begins(&chars[at..], "password") {
            mask_value(&mut chars, at + "password".len())
        } else if begins(&chars[at..], "://") {
            mask_userinfo(&mut chars, at + "://".len())
        } else {
            at + 1
        };
    }
    chars.into_iter().collect()
}

fn begins(chars: &[char], word: &str) -> bool {
    chars.len() >= word.len()
        && word
            .chars()
            .zip(chars)
            .all(|(letter, c)| letter == c.to_ascii_lowercase())
}

fn skip(chars: &[char], from: usize, set: &[char]) -> usize {
    let blanks = chars[from..].iter().take_while(|c| set.contains(c));
    from + blanks.count()
}

/// From just behind the key: an optional quote, blanks, `=` or `:`, then the value. Returns
/// where to look on.
fn mask_value(chars: &mut [char], from: usize) -> usize {
    let mut at = skip(chars, from, &['"', '\'', ' ', '\t']);
    if !matches!(chars.get(at), Some('=' | ':')) {
        return at;
    }
    at = skip(chars, at + 1, &[' ', '\t']);
    let quote = chars.get(at).copied().filter(|c| matches!(c, '"' | '\''));
    at += usize::from(quote.is_some());
    while let Some(c) = chars.get(at).copied() {
        let ends = match quote {
            Some(quote) => c == quote,
            None => matches!(c, ',' | '}' | ' ' | '\t'),
        };
        if ends {
            break;
        }
        let escaped = c == '\\' && quote == Some('"');
        let next = (at + 1 + usize::from(escaped)).min(chars.len());
        chars[at..next].fill('*');
        at = next;
    }
    at
}

/// From just behind `://`, up to the end of the URL, which is returned.
fn mask_userinfo(chars: &mut [char], from: usize) -> usize {
    let end = chars[from..]
        .iter()
        .position(|c| matches!(c, '"' | '\'' | ' '))
        .map_or(chars.len(), |n| from + n);
    let host = chars[from..end].iter().rposition(|c| *c == '@');
    let colon = chars[from..end].iter().position(|c| *c == ':');
    if let (Some(host), Some(colon)) = (host, colon)
        && colon < host
    {
        chars[from + colon + 1..from + host].fill('*');
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        for (line, shown) in [
            (r#"password = "geheim" # x"#, r#"password = "******" # x"#),
            (
                r#"{"Password":"a\"b","port":1}"#,
                r#"{"Password":"****","port":1}"#,
            ),
            ("password = 1234", "password = ****"),
            ("password = \"open", "password = \"****"),
            (
                r#"url = "redis://u:p@ss@h:1/2""#,
                r#"url = "redis://u:****@h:1/2""#,
            ),
            (r#"password_file = "/run/p""#, r#"password_file = "/run/p""#),
        ] {
            assert_eq!(mask(line), shown);
        }
    }
}
