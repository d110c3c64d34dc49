//! Owns a scripted Sentinel that lies: what a real one can't be made to do.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A Sentinel that always gives the same answer. Ends when dropped.
#[derive(Debug)]
pub struct FakeSentinel {
    /// Its port on 127.0.0.1.
    pub port: u16,
    _task: JoinSet<()>,
}

impl FakeSentinel {
    /// Starts one that calls `master` the master since configuration epoch `epoch`.
    ///
    /// # Errors
    /// When no port is free.
    pub async fn start(master: u16, epoch: u64) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut talks = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                talks.spawn(async move {
                    // Whoever hangs up ends the talk.
                    let _ = talk(stream, master, epoch).await;
                });
            }
        });
        Ok(Self { port, _task: task })
    }

    /// Its address.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

async fn talk(stream: TcpStream, master: u16, epoch: u64) -> Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let words = read_command(&mut stream).await?;
        let word = |at: usize| words.get(at).map(|word| word.to_uppercase()).unwrap_or_default();
        let answer = match (word(0).as_str(), word(1).as_str()) {
            ("HELLO", _) => "%1\r\n+proto\r\n:3\r\n".to_owned(),
            ("SUBSCRIBE", _) => {
                words[1..].iter().map(|channel| format!(">3\r\n+subscribe\r\n+{channel}\r\n:1\r\n")).collect()
            }
            ("SENTINEL", "MASTER") => {
                format!(
                    "%5\r\n+ip\r\n+127.0.0.1\r\n+port\r\n+{master}\r\n+flags\r\n+master\r\n+config-epoch\r\n+{epoch}\r\n+name\r\n+mymaster\r\n"
                )
            }
            ("SENTINEL", "REPLICAS" | "SENTINELS") => "*0\r\n".to_owned(),
            ("SENTINEL", "MYID") => format!("+{:040}\r\n", epoch + 1_000_000),
            _ => "+OK\r\n".to_owned(),
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn read_command(stream: &mut BufReader<TcpStream>) -> Result<Vec<String>> {
    let mut words = Vec::new();
    for _ in 0..read_length(stream, '*').await? {
        let mut word = vec![0; read_length(stream, '$').await? + 2];
        stream.read_exact(&mut word).await?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word)?);
    }
    Ok(words)
}

async fn read_length(stream: &mut BufReader<TcpStream>, kind: char) -> Result<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    Ok(line.trim_end().strip_prefix(kind).context("not a command")?.parse()?)
}
