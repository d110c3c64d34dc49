//! The smallest chat. In two terminals:
//!
//! ```text
//! cargo run --example chat ws://localhost:8398
//! cargo run --example chat ws://localhost:8398 ID-OF-THE-OTHER
//! ```

use texto_client::{Client, State};
use tokio::io::{AsyncBufReadExt, BufReader, stdin};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let url = arguments.next().unwrap_or_else(|| "ws://localhost:8398".to_owned());
    let mut to = arguments.next().map(|id| id.parse()).transpose()?;

    let (client, mut messages) = Client::connect(&url).await?;
    let mut states = client.states();
    let mut lines = BufReader::new(stdin()).lines();
    loop {
        tokio::select! {
            Some(message) = messages.next() => {
                println!("{}: {}", message.sender, message.text);
                to.get_or_insert(message.sender);
            }
            Some(state) = states.next() => match state {
                State::Connected { id, missed, .. } => println!("* you are {id}; {missed} times something may be missing"),
                State::Away { why, .. } => println!("* away, coming back: {why}"),
                State::Closed(ending) => return Err(ending.to_string().into()),
                _ => {}
            },
            line = lines.next_line() => match (line?, to) {
                (Some(line), Some(to)) => {
                    if let Err(error) = client.send(to, line).await {
                        println!("* not sent: {error}");
                    }
                }
                (Some(_), None) => println!("* to whom? Start with an id, or wait until somebody writes"),
                (None, _) => break,
            },
        }
    }
    client.close().await;
    Ok(())
}
