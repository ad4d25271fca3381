//! the table of verbs → help to read.

use super::verbs::{Flag, Group, VERBS, Verb};

const EXAMPLES: &str = "\
Examples
  agent run -- ./server --port 80        supervise one command
  agent status                           what runs, since when, how well
  agent restart lidar                    returns when it runs again
  agent --probe                          for HEALTHCHECK, Kubernetes, scripts
  agent health lidar:process | jq .      health pools as consumers see them
";

/// The whole help, for `agent --help`.
pub fn all() -> String {
    let mut text = format!(
        "agent {}: supervises services, streams their output to Redis, publishes their health\n\n\
         Usage: agent VERB [OPTION…] [SERVICE…]\n",
        env!("CARGO_PKG_VERSION")
    );
    for group in Group::ALL {
        text.push_str(&format!("\n{}\n", group.title()));
        for verb in VERBS.iter().filter(|verb| verb.group == group) {
            text.push_str(&row(verb.word, verb.summary, 11));
        }
        if group == Group::Other {
            text.push_str(&row("--version", "print the version", 11));
            text.push_str(&row(
                "--help",
                "print this, or after a verb its own help",
                11,
            ));
        }
    }
    text.push('\n');
    text.push_str(EXAMPLES);
    text
}

/// The help of one verb, for `agent VERB --help`.
pub fn one(verb: &Verb) -> String {
    let mut text = format!("agent {}: {}\n\n", verb.word, verb.summary);
    for (index, form) in verb.usage.iter().enumerate() {
        let lead = if index == 0 { "Usage:" } else { "   or:" };
        let line = format!("{lead} agent {} {form}", verb.word);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    if !verb.flags.is_empty() {
        text.push_str("\nOptions\n");
        let width = verb.flags.iter().map(|flag| typed(flag).len()).max();
        for flag in verb.flags {
            text.push_str(&row(&typed(flag), flag.help, width.unwrap_or(0)));
        }
    }
    if !verb.more.is_empty() {
        text.push('\n');
        text.push_str(verb.more);
    }
    text
}

fn typed(flag: &Flag) -> String {
    match flag.value {
        Some(value) => format!("{} {value}", flag.long),
        None => flag.long.to_owned(),
    }
}

fn row(left: &str, right: &str, width: usize) -> String {
    format!("  {left:width$}  {right}\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::verbs::LATER;

    #[test]
    fn help_fits_a_terminal_and_promises_nothing() {
        let all = all();
        for verb in VERBS {
            assert!(
                all.contains(&format!("\n  {} ", verb.word)),
                "{}",
                verb.word
            );
        }
        for later in LATER {
            assert!(!all.contains(&format!("\n  {later} ")), "{later}");
        }
        for text in std::iter::once(all).chain(VERBS.iter().map(one)) {
            for line in text.lines() {
                assert!(line.chars().count() <= 100, "{line}");
                assert_eq!(line, line.trim_end());
            }
        }
    }
}
