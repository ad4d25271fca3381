//! linkage name → the name as its author wrote it.
//!
//! Without parameters and return types, as gdb shows functions, and without Rust's hash, which differs between
//! builds. Output is bounded: a hostile name may ask for gigabytes of substitutions.

use std::fmt::{self, Write};

/// Longest name that is demangled, and longest result.
const MAX_INPUT: usize = 8 << 10;
const MAX_OUTPUT: usize = 16 << 10;

/// The readable form; names that are not mangled stay as they are.
pub fn demangle(name: &str) -> String {
    let name = name.split_once('@').map_or(name, |(name, _version)| name);
    if name.len() > MAX_INPUT {
        return name.chars().take(MAX_INPUT).collect();
    }
    rust(name)
        .or_else(|| cpp(name))
        .unwrap_or_else(|| name.to_owned())
}

/// Whether a name is of a kind that `demangle` changes.
pub fn is_mangled(name: &str) -> bool {
    name.starts_with("_Z") || name.starts_with("_R")
}

fn rust(name: &str) -> Option<String> {
    let demangled = rustc_demangle::try_demangle(name).ok()?;
    let mut out = Bounded(String::new());
    write!(out, "{demangled:#}").ok()?;
    Some(out.0)
}

fn cpp(name: &str) -> Option<String> {
    let symbol = name
        .starts_with("_Z")
        .then(|| cpp_demangle::Symbol::new(name).ok())??;
    let options = cpp_demangle::DemangleOptions::new()
        .no_params()
        .no_return_type()
        .recursion_limit(128);
    let mut out = Bounded(String::new());
    symbol.structured_demangle(&mut out, &options).ok()?;
    Some(out.0)
}

struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.0.len() + text.len() > MAX_OUTPUT {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_c_filt_and_rustfilt_print_them() {
        // Left: nm of compiled files. Right: c++filt -p, rustfilt.
        for (mangled, plain) in [
            ("_ZN2ns5Class6methodEi", "ns::Class::method"),
            ("_ZSt4sortIPiEvT_S1_", "std::sort<int*>"),
            (
                "_ZN4core9panicking5panic17h0123456789abcdefE",
                "core::panicking::panic",
            ),
            ("_RNvCs15kBYyAo9fc_7mycrate7example", "mycrate::example"),
            ("memcpy@@GLIBC_2.14", "memcpy"),
            ("main", "main"),
            ("_Zbroken", "_Zbroken"),
        ] {
            assert_eq!(demangle(mangled), plain);
        }
    }

    #[test]
    fn huge_names_stay_bounded() {
        assert!(demangle(&"_ZN".repeat(1 << 20)).len() <= MAX_INPUT);
        let bomb = format!("_Z1fI{}E", "S_IS_S_ES0_".repeat(300));
        assert!(demangle(&bomb).len() <= MAX_OUTPUT);
    }
}
