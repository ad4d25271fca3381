use jettison_agent::config::load::*;
fn main() {
    for p in std::env::args().skip(1) {
        println!("==== {p}");
        match load(Some(std::path::Path::new(&p)), &Environment::read()) {
            Ok(l) => {
                println!(
                    "OK {:?} {} services, main {:?}",
                    l.form,
                    l.config.services.len(),
                    l.config.agent.main
                );
                for w in l.warnings.iter().chain(&survey(&l)) {
                    println!("{w}");
                }
            }
            Err(d) => println!("{d}"),
        }
    }
}
