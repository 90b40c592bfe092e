//! Histories as files: one event a line, read and written without holding more than a line in between.
//!
//! An error names the line. A history that cannot be read, or that no client could have seen (an operation that ends
//! twice, a delivery before CONNACK), is a fault of the harness and never a verdict about the broker.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use super::event::{Client, Connection, Event, OpId};

/// A line of a history, counted from 1. Events stand in the order of one monotonic clock, so lines are also the time
/// of the checkers: what stands on an earlier line was over, or had begun, before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Line(pub u32);

impl Line {
    /// Before the first.
    pub const START: Self = Self(0);
    /// After the last.
    pub const NEVER: Self = Self(u32::MAX);

    /// The next.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// Why a history cannot be judged.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: String,
        /// Why.
        error: io::Error,
    },
    /// Not an event.
    #[error("line {}: not an event: {error}", line.0)]
    Syntax {
        /// Where.
        line: Line,
        /// What is wrong.
        error: serde_json::Error,
    },
    /// Events that no harness may write down.
    #[error("line {}: {fault}", line.0)]
    Invalid {
        /// Where.
        line: Line,
        /// What is wrong.
        fault: Fault,
    },
    /// More lines than a number holds.
    #[error("more than {} lines", u32::MAX - 1)]
    TooLong,
}

/// What no harness may write down.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The clock.
    #[error("its time is before that of the line above")]
    TimeGoesBack,
    /// Who?
    #[error("an event of a client names no client")]
    NoClient,
    /// The operation began before.
    #[error("operation {} begins a second time", .0.0)]
    BeginsTwice(OpId),
    /// It never began.
    #[error("operation {} ends, or goes out again, and never began", .0.0)]
    Unknown(OpId),
    /// It ended before.
    #[error("operation {} has ended before", .0.0)]
    EndsTwice(OpId),
    /// It is somebody else's.
    #[error("operation {} is another client's", .0.0)]
    Another(OpId),
    /// A CONNACK for a PUBLISH, for example.
    #[error("operation {} cannot have this answer", .0.0)]
    WrongAnswer(OpId),
    /// Only a PUBLISH goes out again.
    #[error("operation {} is no PUBLISH and goes out again", .0.0)]
    NotAPublish(OpId),
    /// Its number is taken.
    #[error("connection {} of client {} begins a second time", .1.0, .0.0)]
    ConnectsTwice(Client, Connection),
    /// No CONNECT.
    #[error("connection {} of client {} was never opened", .1.0, .0.0)]
    NeverOpened(Client, Connection),
    /// No CONNACK.
    #[error("something happens on connection {} of client {} before its CONNACK", .1.0, .0.0)]
    BeforeConnack(Client, Connection),
    /// Closed.
    #[error("something arrives on connection {} of client {} after its end", .1.0, .0.0)]
    AfterEnd(Client, Connection),
    /// A name is one publish, or several under one idempotency key.
    #[error("message {0} is published by two operations without one idempotency key")]
    NameTakenTwice(super::MessageName),
}

/// Reads events line by line.
pub struct Reader<R> {
    input: R,
    line: Line,
    text: String,
}

impl Reader<BufReader<File>> {
    /// A file.
    ///
    /// # Errors
    /// [`ReadError::File`].
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path).map_err(|error| ReadError::File { path: path.display().to_string(), error })?;
        Ok(Self::new(BufReader::with_capacity(1 << 20, file)))
    }
}

impl<R: BufRead> Reader<R> {
    /// Anything.
    pub const fn new(input: R) -> Self {
        Self { input, line: Line::START, text: String::new() }
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.text.clear();
        let line = self.line.next();
        match self.input.read_line(&mut self.text) {
            Ok(0) => return None,
            Ok(_) if line == Line::NEVER => return Some(Err(ReadError::TooLong)),
            Ok(_) => self.line = line,
            Err(error) => return Some(Err(ReadError::File { path: format!("line {}", line.0), error })),
        }
        Some(serde_json::from_str(&self.text).map_err(|error| ReadError::Syntax { line, error }))
    }
}

/// Writes events, one a line.
pub struct Writer<W> {
    output: W,
}

impl Writer<BufWriter<File>> {
    /// A new file; what was there is gone.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { output: BufWriter::with_capacity(1 << 20, File::create(path)?) })
    }
}

impl<W: Write> Writer<W> {
    /// Anything.
    pub const fn new(output: W) -> Self {
        Self { output }
    }

    /// One event.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write(&mut self, event: &Event) -> io::Result<()> {
        serde_json::to_writer(&mut self.output, event)?;
        self.output.write_all(b"\n")
    }

    /// All that was written is handed over.
    ///
    /// # Errors
    /// Those of the output.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::event::{Answer, What};

    #[test]
    fn what_is_written_reads_back() {
        let events = [
            Event {
                at_ns: 5,
                client: Some(Client(1)),
                what: What::Ok { op: OpId(7), answer: Answer::Published { code: 0x10, position: Some(9) } },
            },
            Event { at_ns: 6, client: None, what: What::Drain },
        ];
        let mut writer = Writer::new(Vec::new());
        for event in &events {
            writer.write(event).unwrap();
        }
        let read: Result<Vec<_>, _> = Reader::new(writer.output.as_slice()).collect();
        assert_eq!(read.unwrap(), events);
    }

    #[test]
    fn an_error_names_its_line() {
        let text = "{\"at_ns\":1,\"event\":\"drain\"}\n{\"at_ns\":2,\"event\":\"dra";
        let mut reader = Reader::new(text.as_bytes());
        assert!(reader.next().unwrap().is_ok());
        let error = reader.next().unwrap().unwrap_err();
        assert!(error.to_string().starts_with("line 2: not an event"), "{error}");
    }
}
