//! The configurations that README shows are accepted as they stand.

use std::process::Command;

#[test]
fn every_configuration_in_the_readme_is_valid() {
    let readme = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let text = std::fs::read_to_string(readme).expect("README.md");
    let folder = std::env::temp_dir().join(format!("agent-readme-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let mut shown = 0;
    for block in text.split("```toml\n").skip(1) {
        let block = block.split("```").next().expect("an end");
        let path = folder.join(format!("block{shown}.toml"));
        std::fs::write(&path, block).expect("a file");
        let output = Command::new(env!("CARGO_BIN_EXE_agent"))
            .args(["check", "--config"])
            .arg(&path)
            .output()
            .expect("agent check");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        shown += 1;
    }
    let _ = std::fs::remove_dir_all(&folder);
    assert_eq!(shown, 2, "the tour's and the whole one");
}
