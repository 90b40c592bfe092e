//! `quorate pub`: publishes one message, or each line of standard input, and waits until all are acknowledged.

use std::io::BufRead;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use tokio::sync::mpsc;

use super::Failure;
use super::target::{Target, parse_qos};
use crate::client::{Client, Event, Outgoing, Qos, SessionOptions, reason_text};

/// Lines read ahead from standard input.
const LINES_AHEAD_MAX: usize = 1_024;
/// Bytes that the server has not taken, above which no more lines are read.
const UNSENT_BYTES_MAX: usize = 1 << 20;
/// Longest a DISCONNECT may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// `quorate pub …`
#[derive(Debug, Args)]
pub(crate) struct PubArgs {
    /// Topic
    #[arg(short, long)]
    topic: String,
    /// The message; without it each line of standard input is one
    #[arg(short, long)]
    message: Option<String>,
    /// QoS
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: Qos,
    /// Set RETAIN; an empty message removes what is retained
    #[arg(short, long)]
    retain: bool,
    /// Publishes that may be unacknowledged at a time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    window: u16,
    #[command(flatten)]
    target: Target,
}

/// Publishes.
///
/// # Errors
/// When a message was refused, or no server answers.
pub(crate) async fn run(args: PubArgs) -> Result<(), Failure> {
    let mut lines = lines(args.message.clone());
    let mut client = Client::new(SessionOptions {
        version: args.target.protocol.into(),
        client_id: args.target.client_id("quorate-pub"),
        clean_start: true,
        // As long as we would try to resume it.
        expiry_s: if args.qos == Qos::AtMostOnce { 0 } else { u32::try_from(args.target.timeout).unwrap_or(u32::MAX) },
        receive_maximum: 1,
        window_max: args.window,
        keep_alive_s: args.target.keep_alive,
    });
    args.target.connect(&mut client, None).await?;
    let mut published = 0_u64;
    let mut refused = None;
    let mut input_ended = false;
    while !(input_ended && client.session().unacknowledged() == 0) {
        let has_room =
            client.unsent_bytes() < UNSENT_BYTES_MAX && (args.qos == Qos::AtMostOnce || client.session().has_room());
        let wants_line = !input_ended && client.session().is_open() && has_room;
        let event = tokio::select! {
            biased;
            event = client.next() => event,
            line = lines.recv(), if wants_line => {
                match line {
                    Some(Ok(payload)) => {
                        let message = Outgoing { topic: args.topic.clone(), qos: args.qos, retain: args.retain, payload };
                        // There is room: it was asked for above.
                        if client.session().publish(message, published).is_ok() {
                            published += 1;
                        }
                    }
                    Some(Err(error)) => return Err(Failure::new(format!("cannot read standard input: {error}"))),
                    None => input_ended = true,
                }
                continue;
            }
        };
        match event {
            Ok(Event::Acknowledged { reason, .. }) if reason >= 0x80 => refused = Some(reason),
            Ok(_) => {}
            Err(error) => {
                if args.qos == Qos::AtMostOnce {
                    return Err(Failure::new(format!("{error}\n  messages at QoS 0 may be lost")));
                }
                eprintln!("quorate: {error}; connecting again");
                args.target.connect(&mut client, None).await?;
            }
        }
    }
    client.disconnect(GOODBYE).await;
    match refused {
        Some(reason) => Err(Failure::new(format!("a message was refused: {reason:#04x} {}", reason_text(reason)))),
        None => Ok(()),
    }
}

/// The messages: the one, or the lines of standard input, read on a thread of its own.
fn lines(message: Option<String>) -> mpsc::Receiver<std::io::Result<Bytes>> {
    let (sender, receiver) = mpsc::channel(LINES_AHEAD_MAX);
    std::thread::spawn(move || {
        if let Some(message) = message {
            let _ = sender.blocking_send(Ok(Bytes::from(message)));
            return;
        }
        for line in std::io::stdin().lock().split(b'\n') {
            let is_error = line.is_err();
            if sender.blocking_send(line.map(Bytes::from)).is_err() || is_error {
                return;
            }
        }
    });
    receiver
}
