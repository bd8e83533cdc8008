//! `info --licenses` names every library that is linked into a program.

use std::path::Path;
use std::process::Command;

#[test]
fn every_linked_library_is_named_with_its_licence() {
    let named = include_str!("../src/licenses.txt");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("entry");
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--locked", "--prefix", "none", "--edges", "normal,no-proc-macro"])
        .args(["--format", "{p}|{l}"])
        .current_dir(folder)
        .output()
        .expect("cargo runs this test, so it can be run");
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).expect("cargo prints text");
    let mut libraries = 0;
    for line in tree.lines().filter(|line| !line.starts_with("qwen2c-")) {
        let (package, license) = line.trim_end_matches(" (*)").split_once('|').expect("the format has a bar");
        let name = package.split(' ').next().expect("a package has a name");
        let expected = format!("\n{name}: {license}\n");
        assert!(named.contains(&expected), "`licenses.txt` lacks `{}`", expected.trim());
        libraries += 1;
    }
    assert!(libraries > 10, "cargo listed only {libraries} libraries");
}
