//! One connection of the engine: its socket, where it is in its life, and what it still has to send.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

use super::frame::{MaskKeys, Message, Opcode, Parser, write_masked};
use super::handler::{Closure, Handler, Outbox};
use super::handshake;
use super::target::Registration;
use super::tls::Session;
use crate::sys;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Connecting,
    Upgrading,
    Registering,
    Open,
    /// We sent a close frame and wait for the server's end.
    Closing,
}

/// The state of a slot after its socket was handled.
#[derive(Debug)]
pub(super) enum SlotState {
    Alive,
    /// Ended; `true` when we had asked for it.
    Ended(Closure, bool),
}

#[derive(Debug)]
pub(super) struct Slot {
    pub stream: TcpStream,
    pub phase: Phase,
    /// Not read while set; what is ready meanwhile is remembered.
    pub paused: bool,
    pub ready_while_paused: bool,
    pub close_frame: Option<Closure>,
    /// Between the bytes here and the socket, where TLS is spoken.
    tls: Option<Session>,
    parser: Parser,
    head: Vec<u8>,
    out: Vec<u8>,
    out_sent: usize,
}

impl Slot {
    pub(super) fn new(stream: TcpStream, request: &[u8], tls: Option<Session>) -> Self {
        Self {
            stream,
            phase: Phase::Connecting,
            paused: false,
            ready_while_paused: false,
            close_frame: None,
            tls,
            parser: Parser::default(),
            head: Vec::new(),
            out: request.to_vec(),
            out_sent: 0,
        }
    }

    pub(super) fn queue(&mut self, opcode: Opcode, payload: &[u8], masks: &mut MaskKeys) {
        write_masked(opcode, payload, masks.next_key(), &mut self.out);
    }

    pub(super) fn has_output(&self) -> bool {
        self.out_sent < self.out.len() || self.tls.as_ref().is_some_and(Session::has_output)
    }

    /// Returns whether it has resumed a TLS session.
    pub(super) fn is_resumed(&self) -> bool {
        self.tls.as_ref().is_some_and(Session::is_resumed)
    }

    /// The end of TLS, where it is spoken, before that of the connection.
    pub(super) fn say_goodbye(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.say_goodbye(&self.stream);
        }
    }

    /// Sends what waits, as far as the socket takes it; epoll tells when it takes more.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        if let Some(tls) = &mut self.tls {
            return tls.send(&mut self.out, &self.stream);
        }
        while self.out_sent < self.out.len() {
            match (&self.stream).write(&self.out[self.out_sent..]) {
                Ok(sent) => self.out_sent += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.out.clear();
        self.out_sent = 0;
        Ok(())
    }

    /// Reads until the socket is empty. A short read means empty unless the peer has ended its side (epoll(7)).
    pub(super) fn read_all(
        &mut self,
        ended: bool,
        buffer: &mut [u8],
        context: &mut Context<'_>,
        client: usize,
        handler: &mut impl Handler,
    ) -> SlotState {
        loop {
            let count = match (&self.stream).read(buffer) {
                Ok(0) => return self.end("the server closed the connection"),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return SlotState::Alive,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return self.end(error.to_string()),
            };
            if let Err(reason) = self.open(&buffer[..count], context, client, handler) {
                // The alert, if TLS has one to tell.
                let _ = self.flush();
                return SlotState::Ended(Closure::because(reason), false);
            }
            if let Err(error) = self.flush() {
                return self.end(error.to_string());
            }
            if count < buffer.len() && !ended {
                return SlotState::Alive;
            }
        }
    }

    /// The socket is at its end: with the server's close frame, if there was one, else because of `reason`.
    pub(super) fn end(&mut self, reason: impl Into<String>) -> SlotState {
        let asked = self.phase == Phase::Closing;
        SlotState::Ended(self.close_frame.take().unwrap_or_else(|| Closure::because(reason)), asked)
    }

    /// Takes in what the bytes of the socket say.
    fn open(
        &mut self,
        bytes: &[u8],
        context: &mut Context<'_>,
        client: usize,
        handler: &mut impl Handler,
    ) -> Result<(), String> {
        let Some(mut tls) = self.tls.take() else { return self.take_in(bytes, context, client, handler) };
        let taken = tls.receive(bytes, |plain| self.take_in(plain, context, client, handler));
        self.tls = Some(tls);
        taken
    }

    fn take_in(
        &mut self,
        bytes: &[u8],
        context: &mut Context<'_>,
        client: usize,
        handler: &mut impl Handler,
    ) -> Result<(), String> {
        let received_ns = sys::now_ns();
        if self.phase == Phase::Upgrading {
            return self.take_in_head(bytes, received_ns, context, client, handler);
        }
        self.take_in_frames(bytes, received_ns, context, client, handler)
    }

    fn take_in_head(
        &mut self,
        bytes: &[u8],
        received_ns: u64,
        context: &mut Context<'_>,
        client: usize,
        handler: &mut impl Handler,
    ) -> Result<(), String> {
        self.head.extend_from_slice(bytes);
        let Some(end) = handshake::check_answer(&self.head)? else { return Ok(()) };
        let head = std::mem::take(&mut self.head);
        match context.registration {
            Some(registration) => {
                self.phase = Phase::Registering;
                self.queue(Opcode::Text, registration.message().as_bytes(), context.masks);
            }
            None => {
                self.phase = Phase::Open;
                handler.opened(client, &mut Outbox { bytes: &mut self.out, masks: context.masks });
            }
        }
        self.take_in_frames(&head[end..], received_ns, context, client, handler)
    }

    fn take_in_frames(
        &mut self,
        bytes: &[u8],
        received_ns: u64,
        context: &mut Context<'_>,
        client: usize,
        handler: &mut impl Handler,
    ) -> Result<(), String> {
        let Self { parser, out, phase, close_frame, .. } = self;
        let fed = parser.feed(bytes, &mut |message| {
            let mut outbox = Outbox { bytes: out, masks: context.masks };
            match message.opcode {
                Opcode::Text | Opcode::Binary => {
                    handler.message(client, &message, received_ns, &mut outbox);
                    // The reply to the registration is the channel's first message, and is of interest to the handler.
                    if *phase == Phase::Registering {
                        *phase = Phase::Open;
                        handler.opened(client, &mut outbox);
                    }
                }
                Opcode::Ping => outbox.send(Opcode::Pong, message.head),
                Opcode::Close => {
                    // RFC 6455 5.5.1: a close is answered, once.
                    if *phase != Phase::Closing {
                        outbox.send(Opcode::Close, message.head.get(..2).unwrap_or_default());
                    }
                    *close_frame = Some(closure_of(&message));
                }
                Opcode::Pong | Opcode::Continuation => {}
            }
        });
        fed.map_err(|error| error.0.to_owned())
    }
}

/// The parts of the engine that a slot borrows while it reads.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub masks: &'a mut MaskKeys,
    pub registration: Option<&'a Registration>,
}

fn closure_of(message: &Message<'_>) -> Closure {
    match message.head {
        [high, low, reason @ ..] => {
            let code = u16::from_be_bytes([*high, *low]);
            Closure { code: Some(code), reason: format!("close {code} {}", String::from_utf8_lossy(reason)) }
        }
        _ => Closure { code: Some(1005), reason: "close without a code".into() },
    }
}
