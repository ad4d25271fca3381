//! Leaves a link where habits and tools look for the binary.
//!
//! A static build must name its target (see .cargo/config.toml), so cargo puts the binary
//! into target/<triple>/<profile>/. target/<profile>/agent becomes a link to it.

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=cross/link.rs");
    // A convenience: where the folders are not as expected, there is just no link.
    let _ = link();
}

fn link() -> Option<()> {
    let out = PathBuf::from(std::env::var_os("OUT_DIR")?);
    let triple = std::env::var_os("TARGET")?;
    // target/<triple>/<profile>/build/<package>/out
    let profile = out.ancestors().nth(3)?;
    let of_triple = profile.parent()?;
    if of_triple.file_name()? != triple {
        return None;
    }
    let name = profile.file_name()?;
    let folder = of_triple.parent()?.join(name);
    let binary = PathBuf::from("..").join(&triple).join(name).join("agent");
    std::fs::create_dir_all(&folder).ok()?;
    let link = folder.join("agent");
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(binary, link).ok()
}
