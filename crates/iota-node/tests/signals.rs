//! Real signals to a real process. The process is this test binary itself, told by a variable to play the part.

#![cfg(unix)]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use iota_node::{Exit, Shutdown};

const PART: &str = "SIGNAL_TEST_PART";

#[test]
fn one_signal_lets_a_process_finish_its_work() {
    let (mut child, mut lines) = start("finish");
    read_until(&mut lines, "ready");
    send("-TERM", &child);
    read_until(&mut lines, "drained");
    assert_eq!(
        child.wait().expect("the child was started").code(),
        Some(Exit::Done.code().into())
    );
}

#[test]
fn a_second_signal_ends_a_process_that_takes_too_long() {
    let (mut child, mut lines) = start("linger");
    read_until(&mut lines, "ready");
    send("-INT", &child);
    read_until(&mut lines, "draining");
    send("-TERM", &child);
    assert_eq!(
        child.wait().expect("the child was started").code(),
        Some(Exit::Interrupted.code().into())
    );
}

/// Not a test of its own: what the child processes of the tests above do.
#[test]
#[ignore = "the other tests start it in a child process"]
fn child() {
    let Ok(part) = std::env::var(PART) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let shutdown = Shutdown::on_signals().expect("signal handlers");
        println!("ready");
        shutdown.wait().await;
        println!("draining");
        if part == "linger" {
            std::future::pending::<()>().await;
        }
        println!("drained");
    });
}

fn start(part: &str) -> (Child, BufReader<ChildStdout>) {
    let this_binary = std::env::current_exe().expect("a test binary knows its path");
    let mut child = Command::new(this_binary)
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env(PART, part)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test binary starts");
    let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
    (child, lines)
}

/// Reads up to a line that ends in `word` (the test harness may write before it on the same line).
fn read_until(lines: &mut BufReader<ChildStdout>, word: &str) {
    let mut seen = String::new();
    while !seen.trim_end().ends_with(word) {
        let read = lines
            .take(4096)
            .read_line(&mut seen)
            .expect("the child's output is text");
        assert!(read > 0, "the child ended before it wrote {word:?}: {seen}");
    }
}

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill")
        .args([signal, &child.id().to_string()])
        .status()
        .expect("kill is installed");
    assert!(sent.success());
}
