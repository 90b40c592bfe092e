//! `quorate sub`: prints what comes; each message is acknowledged once it is printed.

use std::io::Write;
use std::time::Duration;

use clap::Args;

use super::Failure;
use super::target::{Target, parse_qos};
use crate::client::{Client, ClientError, Event, Message, Qos, SessionOptions, reason_text};

/// Deliveries at a time.
const RECEIVE_MAXIMUM: u16 = 100;
/// Longest a DISCONNECT may take.
const GOODBYE: Duration = Duration::from_secs(1);

/// `quorate sub …`
#[derive(Debug, Args)]
pub(crate) struct SubArgs {
    /// Topic filter; may be given more than once
    #[arg(short, long = "topic", required = true, value_name = "FILTER")]
    topics: Vec<String>,
    /// QoS
    #[arg(short, long, default_value = "0", value_parser = parse_qos)]
    qos: Qos,
    /// Keep the session when this command ends, so that nothing is missed until it runs again
    #[arg(long, requires = "client_id")]
    persistent: bool,
    /// Print topic, QoS and flags before each message
    #[arg(short, long)]
    verbose: bool,
    /// End after so many messages
    #[arg(short = 'n', long)]
    count: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// Subscribes and prints until Ctrl-C or `--count`.
///
/// # Errors
/// When a filter was refused, or no server answers.
pub(crate) async fn run(args: SubArgs) -> Result<(), Failure> {
    let expiry_s = if args.persistent { u32::MAX } else { 0 };
    let mut client = Client::new(SessionOptions {
        version: args.target.protocol.into(),
        client_id: args.target.client_id("quorate-sub"),
        clean_start: !args.persistent,
        expiry_s,
        receive_maximum: RECEIVE_MAXIMUM,
        window_max: 1,
        keep_alive_s: args.target.keep_alive,
    });
    args.target.connect(&mut client, None).await?;
    subscribe(&mut client, &args);
    let mut left = args.count.unwrap_or(u64::MAX);
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    while left > 0 {
        let event = tokio::select! {
            event = client.next() => event,
            _ = &mut interrupted => break,
        };
        match event {
            Ok(Event::Message(message)) => {
                if !print(&message, args.verbose)? {
                    break;
                }
                client.session().release_acks(usize::MAX);
                left -= 1;
            }
            Ok(Event::Subscribed { reasons }) => {
                if let Some((filter, reason)) = args.topics.iter().zip(reasons).find(|(_, reason)| *reason >= 0x80) {
                    return Err(Failure::new(format!("{filter}: refused with {reason:#04x} {}", reason_text(reason))));
                }
            }
            Ok(_) => client.session().release_acks(usize::MAX),
            Err(error) => {
                if matches!(error, ClientError::Disconnected { reason: 0x8e, .. }) {
                    return Err(Failure::new(format!("{error}\n  another client uses the identifier of this one")));
                }
                eprintln!("quorate: {error}; connecting again");
                let preferred = match error {
                    ClientError::Disconnected { server_reference, .. } => server_reference,
                    _ => None,
                };
                let present = args.target.connect(&mut client, preferred.as_deref()).await?;
                if !present {
                    subscribe(&mut client, &args);
                }
            }
        }
    }
    client.disconnect(GOODBYE).await;
    Ok(())
}

fn subscribe(client: &mut Client, args: &SubArgs) {
    client.session().subscribe(args.topics.iter().map(|filter| (filter.clone(), args.qos)).collect());
}

/// Whether somebody still reads.
fn print(message: &Message, verbose: bool) -> Result<bool, Failure> {
    let mut line = Vec::new();
    if verbose {
        let dup = if message.dup { " dup" } else { "" };
        let retained = if message.retain { " retained" } else { "" };
        line.extend_from_slice(format!("{} [qos {}{dup}{retained}] ", message.topic, message.qos as u8).as_bytes());
    }
    line.extend_from_slice(&message.payload);
    line.push(b'\n');
    let mut out = std::io::stdout().lock();
    match out.write_all(&line).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::new(format!("cannot write to standard output: {error}"))),
    }
}
