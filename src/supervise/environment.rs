//! the agent's environment, files, configuration → a service's environment.
//!
//! Later sources win: the agent's own environment (or nothing), the user's `HOME` and
//! friends, environment files in their order, `environment`; `AGENT_SERVICE` always, because
//! it is how a stray process is recognised. Values are bytes: nothing is assumed UTF-8.

use std::collections::BTreeMap;

/// Sorted, so that a service sees the same order at every start.
pub type Environment = BTreeMap<Vec<u8>, Vec<u8>>;

/// What an agent's manager or operator told the agent, and not its services.
pub fn is_ours(name: &[u8]) -> bool {
    const EXACT: &[&[u8]] = &[
        b"NOTIFY_SOCKET",
        b"WATCHDOG_PID",
        b"WATCHDOG_USEC",
        b"LISTEN_PID",
        b"LISTEN_FDS",
        b"LISTEN_FDNAMES",
        // Says that stdout is the journal, which is no longer true.
        b"JOURNAL_STREAM",
        b"REDIS_PASSWORD",
    ];
    name.starts_with(b"AGENT_") || EXACT.contains(&name)
}

/// `NAME=value`, as execve(2) takes it.
pub fn entries(environment: &Environment) -> impl Iterator<Item = Vec<u8>> {
    environment.iter().map(|(name, value)| {
        let mut entry = Vec::with_capacity(name.len() + 1 + value.len());
        entry.extend_from_slice(name);
        entry.push(b'=');
        entry.extend_from_slice(value);
        entry
    })
}

/// Reads an environment file into `environment`. The error is the number of the line that
/// is not one.
///
/// `KEY=VALUE` per line; blank lines and those that begin with `#` or `;` are comments;
/// `export ` before the key is allowed. Blanks around key and value go. A value in single
/// quotes stands as it is; in double quotes `\"`, `\\`, `\$`, `` \` `` and `\n` are escapes.
pub fn read_file(content: &[u8], environment: &mut Environment) -> Result<(), usize> {
    for (index, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() || line.starts_with(b"#") || line.starts_with(b";") {
            continue;
        }
        let line = line
            .strip_prefix(b"export ")
            .map_or(line, <[u8]>::trim_ascii_start);
        let Some(equals) = line.iter().position(|&byte| byte == b'=') else {
            return Err(index + 1);
        };
        let key = line[..equals].trim_ascii_end();
        let value = unquote(line[equals + 1..].trim_ascii_start());
        match value {
            Some(value) if is_name(key) && !value.contains(&0) => {
                environment.insert(key.to_vec(), value);
            }
            Some(_) | None => return Err(index + 1),
        }
    }
    Ok(())
}

fn is_name(key: &[u8]) -> bool {
    !key.is_empty()
        && !key[0].is_ascii_digit()
        && key.iter().all(|&byte| {
            byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'.' || byte == b'-'
        })
}

/// `None` where a quote is not closed or something follows it.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    match value.first() {
        Some(b'\'') => {
            let inner = &value[1..];
            let end = inner.iter().position(|&byte| byte == b'\'')?;
            (end + 1 == inner.len()).then(|| inner[..end].to_vec())
        }
        Some(b'"') => {
            let mut out = Vec::with_capacity(value.len());
            let mut rest = value[1..].iter();
            loop {
                match *rest.next()? {
                    b'"' => return rest.as_slice().is_empty().then_some(out),
                    b'\\' => match *rest.next()? {
                        b'n' => out.push(b'\n'),
                        byte @ (b'"' | b'\\' | b'$' | b'`') => out.push(byte),
                        byte => out.extend_from_slice(&[b'\\', byte]),
                    },
                    byte => out.push(byte),
                }
            }
        }
        Some(_) | None => Some(value.to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(content: &str) -> Result<Vec<String>, usize> {
        let mut environment = Environment::new();
        read_file(content.as_bytes(), &mut environment)?;
        Ok(entries(&environment)
            .map(|entry| String::from_utf8_lossy(&entry).into_owned())
            .collect())
    }

    #[test]
    fn values_as_a_shell_would_read_them() {
        let content = "# a comment\n\n; another\nA=1\n export B = two words \r\nC='it # stays $as'\n\
                       D=\"say \\\"hi\\\"\\n\\x\"\nE=\nF=a=b#c\nA=2\n";
        assert_eq!(
            read(content),
            Ok(vec![
                "A=2".to_owned(),
                "B=two words".to_owned(),
                "C=it # stays $as".to_owned(),
                "D=say \"hi\"\n\\x".to_owned(),
                "E=".to_owned(),
                "F=a=b#c".to_owned(),
            ])
        );
    }

    #[test]
    fn a_bad_line_is_named() {
        assert_eq!(read("A=1\nnonsense\n"), Err(2));
        assert_eq!(read("A='open\n"), Err(1));
        assert_eq!(read("A=\"x\" y\n"), Err(1));
        assert_eq!(read("=x\n"), Err(1));
        assert_eq!(read("\n\n1A=x"), Err(3));
    }

    #[test]
    fn what_is_the_agents_stays_with_the_agent() {
        for name in [
            "AGENT_CONFIG",
            "NOTIFY_SOCKET",
            "WATCHDOG_USEC",
            "REDIS_PASSWORD",
        ] {
            assert!(is_ours(name.as_bytes()), "{name}");
        }
        for name in ["PATH", "REDIS_ADDR", "AGENT", "HOME"] {
            assert!(!is_ours(name.as_bytes()), "{name}");
        }
    }
}
