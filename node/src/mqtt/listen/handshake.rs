//! TLS between a socket and what is spoken in it: a filter of ntex over rustls' machine of a server.
//!
//! ntex has such a filter too; when a handshake fails it closes without the alert that tells the client why, and the
//! reason is lost here as well. An operator needs both.

use std::cell::RefCell;
use std::io::{self, Read as _, Write as _};
use std::sync::Arc;
use std::task::Poll;

use ntex::io::{Filter, FilterBuf, FilterLayer, Io, Layer};
use ntex::time::{Millis, timeout};
use ntex::util::{BytePages, BytesMut};
use rustls::pki_types::CertificateDer;
use rustls::{ServerConfig, ServerConnection};
use thiserror::Error;

/// Plaintext that is encrypted at a time.
const PLAINTEXT_BYTES_MAX: usize = 16 * 1024;

/// Why a handshake came to nothing.
#[derive(Debug, Error)]
pub(super) enum HandshakeError {
    /// rustls said no; the client was sent an alert.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// It took longer than a connection may take.
    #[error("the TLS handshake was not done in time")]
    Timeout,
    /// The client is gone.
    #[error("the client closed in the middle of the TLS handshake")]
    Closed,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Tls {
    machine: RefCell<ServerConnection>,
    failure: RefCell<Option<rustls::Error>>,
}

impl Tls {
    /// Does the handshake.
    ///
    /// # Errors
    /// [`HandshakeError`]; the connection is closing then.
    pub(super) async fn accept<F: Filter>(
        io: Io<F>,
        config: Arc<ServerConfig>,
        within: Millis,
    ) -> Result<Io<Layer<Self, F>>, HandshakeError> {
        let mut machine = ServerConnection::new(config)?;
        machine.set_buffer_limit(Some(PLAINTEXT_BYTES_MAX));
        let io = io.add_filter(Self { machine: RefCell::new(machine), failure: RefCell::default() });
        let done = timeout(within, async {
            while io.filter().machine.borrow().is_handshaking() {
                io.flush(false).await?; // also what was answered to bytes that were there before
                if io.read_notify().await?.is_none() {
                    break;
                }
            }
            io.flush(false).await
        })
        .await;
        if let Some(failure) = io.filter().failure.take() {
            let _ = io.shutdown().await; // the alert goes out
            return Err(failure.into());
        }
        match done {
            Err(()) => Err(HandshakeError::Timeout),
            Ok(Ok(())) if !io.filter().machine.borrow().is_handshaking() => Ok(io),
            Ok(_) => Err(HandshakeError::Closed),
        }
    }

    /// The client's own certificate, verified, if it showed one.
    pub(super) fn client_certificate(&self) -> Option<CertificateDer<'static>> {
        Some(self.machine.borrow().peer_certificates()?.first()?.clone().into_owned())
    }

    /// Takes records apart. Whether the client has closed its direction.
    fn decrypt(&self, records: &mut BytesMut, plaintext: &mut BytesMut) -> Result<bool, rustls::Error> {
        let machine = &mut *self.machine.borrow_mut();
        while !records.is_empty() {
            let failed = |error: io::Error| rustls::Error::General(error.to_string());
            if machine.read_tls(records).map_err(failed)? == 0 {
                break;
            }
            let state = machine.process_new_packets()?;
            let mut chunk = [0; 4096];
            let mut left = state.plaintext_bytes_to_read();
            while left > 0 {
                let read = machine.reader().read(&mut chunk).map_err(failed)?;
                if read == 0 {
                    break;
                }
                plaintext.extend_from_slice(chunk.get(..read).unwrap_or_default());
                left = left.saturating_sub(read);
            }
            if state.peer_has_closed() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Writes what rustls has to say.
    fn flush(&self, out: &mut BytePages) -> io::Result<()> {
        let machine = &mut *self.machine.borrow_mut();
        while machine.wants_write() {
            machine.write_tls(&mut Pages(out))?;
        }
        Ok(())
    }
}

impl FilterLayer for Tls {
    fn process_read_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        let is_over = buf.with_read_buffers(|records, plaintext| {
            let Some(records) = records else { return false };
            if self.failure.borrow().is_some() {
                records.clear();
                return false;
            }
            self.decrypt(records, plaintext).unwrap_or_else(|failure| {
                records.clear();
                self.failure.replace(Some(failure));
                true
            })
        });
        // Answers of the handshake, keys that change, or the alert.
        buf.with_write_buffers(|_, out| self.flush(out))?;
        if is_over {
            buf.io().close();
        }
        Ok(())
    }

    fn process_write_buf(&self, buf: &FilterBuf<'_>) -> io::Result<()> {
        buf.with_write_buffers(|plaintext, out| {
            while let Some(mut page) = plaintext.take() {
                let taken = self.machine.borrow_mut().writer().write(&page)?;
                page.advance_to(taken);
                self.flush(out)?;
                if !page.is_empty() {
                    plaintext.prepend(page);
                    if taken == 0 {
                        break; // not before the handshake is done
                    }
                }
            }
            self.flush(out)
        })
    }

    fn shutdown(&self, buf: &FilterBuf<'_>) -> io::Result<Poll<()>> {
        self.process_write_buf(buf)?;
        if self.failure.borrow().is_none() {
            self.machine.borrow_mut().send_close_notify();
        }
        buf.with_write_buffers(|_, out| self.flush(out))?;
        Ok(Poll::Ready(()))
    }
}

/// Pages as rustls writes to them.
struct Pages<'a>(&'a mut BytePages);

impl io::Write for Pages<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
