//! What commands say on machines that cannot run the program, or not as fast as it could be.

use super::{Ended, execute_program, program, run_on};
use crate::Program;
use crate::large_pages::Refusal;
use crate::peak;
use crate::testing::program_file;

#[test]
fn machines_that_cannot_run_the_program_say_so() {
    let mut file = program_file();
    file.manifest.required_features = vec!["no_such_feature".to_owned()];
    assert!(run_on(&file, &["run", "-p", "a"], b"").message().1.contains("without no_such_feature"));
    let mut file = program_file();
    file.manifest.arena_bytes = 1 << 45;
    let (code, message) = run_on(&file, &["run", "-p", "a"], b"").message();
    assert!(code == 1 && message.contains("needs more memory than there is"), "{message}");
    assert!(message.contains("`--context`"), "{message}");
    // What needs no arena still works.
    assert!(run_on(&file, &["info"], b"").result.is_ok());
}

#[test]
fn missing_features_are_said_before_anything_is_measured_or_read() {
    let mut file = program_file();
    file.manifest.required_features = vec!["no_such_feature".to_owned()];
    // Weights that were read would be found out.
    file.weights.entries[0].sha256 = [0; 32];
    for arguments in [&["profile", "--peak"][..], &["profile", "--startup"], &["bench"], &["self-test"]] {
        let message = run_on(&file, arguments, b"").message();
        assert!(
            message.0 == 1 && message.1.contains("without no_such_feature"),
            "{arguments:?}: {message:?}"
        );
    }
    assert_eq!(peak::measurements(), 0);
}

#[test]
fn small_pages_are_noted_once_and_change_no_output() {
    let mut file = program_file();
    file.manifest.arena_bytes = 64 << 20;
    let without = || program(file.clone()).with_refusal(|_| Some(Refusal::ForAllMemory));
    let execute = |open: &dyn Fn() -> Program, arguments: &[&str]| {
        let mut output = Vec::new();
        let ended = execute_program(open, arguments, b"", &mut output);
        Ended { output: String::from_utf8(output).expect("output is text"), ..ended }
    };
    for arguments in [&["run", "--raw", "-p", "a", "-n", "2"][..], &["self-test"]] {
        let found = execute(&without, arguments);
        assert_eq!(found.errors.matches("gives no large pages").count(), 1, "{}", found.errors);
        let with = execute(&|| program(file.clone()).with_refusal(|_| None), arguments);
        assert!(with.result.is_ok() && with.output == found.output, "{}", found.output);
        assert!(!with.errors.contains("large pages"), "{}", with.errors);
    }
    let bench = ["bench", "-p", "2", "-n", "2", "-r", "1", "--json"];
    assert_eq!(execute(&without, &bench).json()["results"][0]["test"], "pp2");
    let quiet = execute(&without, &["run", "--raw", "-p", "a", "-n", "2", "--quiet"]);
    assert_eq!(quiet.errors, "");
}
