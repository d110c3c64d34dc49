//! What the word of the receiver's node costs at the least: one more turn of Redis, and of a node that does nothing else.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::middle;

const TURNS: usize = 5000;

/// Half of Redis' answers to a PUBLISH came within the first, half of the words of its subscriber within the second, in
/// microseconds.
pub(crate) fn floor(redis: &str) -> Result<[f64; 2]> {
    let mut words = subscribe(redis, "back")?;
    let mut questions = subscribe(redis, "there")?;
    let mut answers = connect(redis)?;
    std::thread::spawn(move || -> Result<()> {
        while message(&mut questions)? == "?" {
            publish(&mut answers, "back", "yes")?;
        }
        Ok(())
    });
    let mut link = connect(redis)?;
    let (mut counts, mut answers) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let began = Instant::now();
        publish(&mut link, "there", "?")?;
        counts.push(began.elapsed().as_secs_f64() * 1e6);
        ensure!(message(&mut words)? == "yes", "the subscriber says something else");
        answers.push(began.elapsed().as_secs_f64() * 1e6);
    }
    publish(&mut link, "there", "enough")?;
    Ok([counts, answers].map(middle))
}

fn connect(redis: &str) -> Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect(redis)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(BufReader::new(stream))
}

fn line(link: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = String::new();
    link.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

fn publish(link: &mut BufReader<TcpStream>, channel: &str, text: &str) -> Result<()> {
    link.get_mut().write_all(format!("PUBLISH {channel} {text}\r\n").as_bytes())?;
    let answer = line(link)?;
    ensure!(answer == ":1", "{channel} has {answer} subscribers");
    Ok(())
}

fn subscribe(redis: &str, channel: &str) -> Result<BufReader<TcpStream>> {
    let mut link = connect(redis)?;
    link.get_mut().write_all(format!("SUBSCRIBE {channel}\r\n").as_bytes())?;
    // An array of three: two texts with their lengths before, and a number.
    for _ in 0..6 {
        line(&mut link)?;
    }
    Ok(link)
}

/// The text of the next message: the last of an array of three.
fn message(link: &mut BufReader<TcpStream>) -> Result<String> {
    (0..7).map(|_| line(link)).last().context("seven lines")?
}
