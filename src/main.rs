//! argv → one call per mode → exit code.

fn main() {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    if let Some((verb, rest)) = args.split_first()
        && verb == "symbolize"
    {
        std::process::exit(jettison_agent::crash::examine::main(rest));
    }
}
