//! error reply → what to do about it.
//!
//! Every error a server can answer an XADD, a value command or a handshake with falls into
//! one of these classes; only the class decides, never the text.

/// What an error reply means for delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not now: `LOADING`, `OOM`, `READONLY`, `MISCONF` and their kin. Nothing was done.
    Later,
    /// This connection may not (`NOAUTH`) or the server does not want it: connect anew.
    Connection,
    /// Credentials were refused: connect anew, slowly.
    Credentials,
    /// This key or command is forbidden to us (`NOPERM`).
    Forbidden,
    /// The key holds something else (`WRONGTYPE`).
    WrongType,
    /// The ID is not above the stream's last one.
    IdTooSmall,
    /// `XINFO` of a stream that does not exist.
    NoSuchKey,
    /// `INCR` of what is no integer, or beyond its range.
    NotAnInteger,
    /// The server does not know what we ask: trying again cannot help.
    Never,
}

/// Classifies an error reply (without its `-`).
pub fn classify(error: &[u8]) -> Refusal {
    let text = String::from_utf8_lossy(error);
    let code = text.split([' ', '\r']).next().unwrap_or_default();
    match code {
        "LOADING" | "OOM" | "READONLY" | "MISCONF" | "BUSY" | "MASTERDOWN" | "CLUSTERDOWN"
        | "TRYAGAIN" | "NOREPLICAS" | "UNBLOCKED" | "EXECABORT" => Refusal::Later,
        "NOAUTH" | "DENIED" => Refusal::Connection,
        "WRONGPASS" => Refusal::Credentials,
        "NOPERM" => Refusal::Forbidden,
        "WRONGTYPE" => Refusal::WrongType,
        _ if text.contains("equal or smaller") || text.contains("must be greater than 0-0") => {
            Refusal::IdTooSmall
        }
        _ if text.contains("no such key") => Refusal::NoSuchKey,
        _ if text.contains("not an integer") || text.contains("would overflow") => {
            Refusal::NotAnInteger
        }
        _ if text.contains("max number of clients") => Refusal::Connection,
        // Before Redis 6: `ERR invalid password`; `AUTH` where no password is set.
        _ if text.contains("invalid password") || text.contains("AUTH") => Refusal::Credentials,
        _ => Refusal::Never,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_real_servers() {
        for (text, class) in [
            (
                "LOADING Redis is loading the dataset in memory",
                Refusal::Later,
            ),
            (
                "OOM command not allowed when used memory > 'maxmemory'.",
                Refusal::Later,
            ),
            ("NOAUTH Authentication required.", Refusal::Connection),
            (
                "WRONGPASS invalid username-password pair or user is disabled.",
                Refusal::Credentials,
            ),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                Refusal::Credentials,
            ),
            (
                "NOPERM this user has no permissions to run the 'xadd' command",
                Refusal::Forbidden,
            ),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value",
                Refusal::WrongType,
            ),
            (
                "ERR The ID specified in XADD is equal or smaller than the target stream top item",
                Refusal::IdTooSmall,
            ),
            ("ERR no such key", Refusal::NoSuchKey),
            (
                "ERR value is not an integer or out of range",
                Refusal::NotAnInteger,
            ),
            ("ERR max number of clients reached", Refusal::Connection),
            ("ERR unknown command 'XADD'", Refusal::Never),
            ("", Refusal::Never),
        ] {
            assert_eq!(classify(text.as_bytes()), class, "{text}");
        }
    }
}
