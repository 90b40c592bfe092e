//! Seeds that every commit runs: guarantees 1 to 5, 8, 12 and 13 on three simulated nodes. More of them:
//! `quorate-jepsen sim --seeds A..B`.

use std::process::{Command, Output};

fn sim(arguments: &[&str]) -> (Output, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_quorate-jepsen")).arg("sim").args(arguments).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output, said)
}

#[test]
fn seeds_keep_every_promise_and_are_the_same_twice() {
    let (output, said) = sim(&["--seeds", "0..24", "--check"]);
    assert!(output.status.success(), "{said}");
    assert!(said.contains("24 seeds"), "{said}");
}

#[test]
fn a_log_that_acknowledges_before_it_syncs_is_caught() {
    let (output, said) = sim(&["--seeds", "0..24", "--bug", "unsynced-append"]);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("repeat with: quorate-jepsen sim --trace"), "{said}");
}
