//! The receiving side of one WebSocket connection after its upgrade.
//!
//! Invariants:
//! - Any split of the same bytes gives the same events, and the same violation at the end.
//! - A whole message that lies in the input is handed on where it lies, unmasked in place: no copy, no allocation.
//! - Between messages a connection owns no heap; in between it owns what arrived, and the state is plain data.
//! - After a close frame or a violation everything further is discarded unread (RFC 6455 5.5.1, 7.1.7).

use super::assembler::Assembler;
use super::close::{self, CloseReceived};
use super::deflate::{Agreed, Inflated, Inflater, Inflating};
use super::frame::{self, ClientHeader, Expected, MessageKind, Opcode};
use super::mask::{self, MaskingKey};
use super::message::{Joined, MessageLimits, Payload};
use super::utf8;
use super::violation::Violation;

/// The meaning of a client's bytes.
#[derive(Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A whole message. Text is UTF-8.
    Message {
        /// Text or binary.
        kind: MessageKind,
        /// Its bytes, unmasked, joined and inflated.
        payload: Payload<'a>,
    },
    /// A message is all here, and not wholly inflated yet: call again, with the rest of the input, before anything
    /// further is read. Only where the [`Scratch`] inflates in steps.
    Unfinished,
    /// To be answered by a pong with the same payload (5.5.2), 125 bytes at most.
    Ping(&'a [u8]),
    /// An answer to a ping of ours, or unsolicited (5.5.3), 125 bytes at most.
    Pong(&'a [u8]),
    /// The client's last word; the connection reads nothing after it.
    Close(CloseReceived<'a>),
}

/// A message of one frame.
#[derive(Debug, PartialEq, Eq)]
pub struct WholeMessage<'a> {
    /// Text or binary.
    pub kind: MessageKind,
    /// Its bytes, unmasked. Text is UTF-8.
    pub payload: &'a [u8],
    /// How many bytes of the input it was, with its header.
    pub frame_bytes: usize,
}

/// Scratch state of one receiving call, kept by no connection: one for all connections of a shard.
#[derive(Debug)]
pub struct Scratch {
    control: [u8; frame::CONTROL_BYTES_MAX],
    inflater: Inflater,
    step_bytes: usize,
    fragments: usize,
}

impl Scratch {
    /// An empty one; it allocates when it must.
    pub fn new() -> Self {
        Self::in_steps(usize::MAX)
    }

    /// One that inflates about so many bytes of a message at a time.
    pub fn in_steps(step_bytes: usize) -> Self {
        Self { control: [0; frame::CONTROL_BYTES_MAX], inflater: Inflater::new(), step_bytes, fragments: 0 }
    }

    /// Frames that were parsed since this was last asked and did not end in an event.
    #[inline]
    pub fn take_fragments(&mut self) -> usize {
        std::mem::take(&mut self.fragments)
    }

    /// The cost of inflating since the last call of this, in bytes that came out.
    #[inline]
    pub fn take_inflated_bytes(&mut self) -> usize {
        self.inflater.take_spent_bytes()
    }

    /// Lends a control frame's payload for the length of an event, whether it lies in the input or was gathered.
    fn lend<'a>(&'a mut self, payload: Payload<'a>) -> &'a [u8] {
        match payload {
            Payload::Borrowed(bytes) => bytes,
            Payload::Owned(bytes) => {
                let lent = &mut self.control[..bytes.len()];
                lent.copy_from_slice(&bytes);
                lent
            }
        }
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

/// The protocol state of one connection between reads.
#[derive(Debug, Default)]
pub struct WebSocketConnection {
    /// The frame and the message that are not whole yet.
    partial: Option<Box<Partial>>,
    /// The start of a header that is not whole yet; of a connection that has finished, [`Self::unread_bytes`].
    header: [u8; frame::CLIENT_HEADER_BYTES_MAX - 1],
    header_bytes: u8,
    /// The agreed compression, if any.
    deflate: Option<Agreed>,
    /// A close frame or a violation was seen.
    finished: bool,
}

#[derive(Debug, Default)]
struct Partial {
    message: Option<Assembler>,
    frame: Option<IncomingFrame>,
    /// Payload of a control frame that came in pieces; at most 125 bytes.
    control: Vec<u8>,
    /// A message that is whole, and not wholly inflated.
    inflating: Option<Box<Inflating>>,
}

/// A frame whose header is known, and what of its payload has yet to come.
#[derive(Debug)]
struct IncomingFrame {
    remaining_bytes: usize,
    /// For the first of the remaining bytes.
    masking_key: MaskingKey,
    opcode: Opcode,
    fin: bool,
    compressed: bool,
}

/// The result of parsing a frame, or the part of it that is there.
enum FrameStep<'a> {
    /// All input is consumed.
    NeedInput,
    /// The frame is whole and the message is not.
    NextFrame,
    Control(Opcode, Payload<'a>),
    Message(Joined<'a>),
}

impl WebSocketConnection {
    /// A connection that has just been upgraded, with what was agreed on compression.
    pub fn new(deflate: Option<Agreed>) -> Self {
        Self { deflate, ..Self::default() }
    }

    /// The agreed compression: how messages to this client may be compressed, if at all.
    #[inline]
    pub fn deflate(&self) -> Option<Agreed> {
        self.deflate
    }

    /// Consumes from the front of `input` up to and including the next event, unmasking in place.
    ///
    /// Returns the number of bytes consumed, and the event if one is complete. Without an event, all of `input` was
    /// consumed: an incomplete rest is kept inside. After an event, call again with the rest.
    ///
    /// # Errors
    /// The client broke the protocol or a limit: fail the connection with the violation's close code. Events returned
    /// earlier stand; everything after is discarded.
    #[inline]
    pub fn receive<'a>(
        &mut self,
        input: &'a mut [u8],
        limits: &MessageLimits,
        scratch: &'a mut Scratch,
    ) -> Result<(usize, Option<Received<'a>>), Violation> {
        if let Some(whole) = self.find_whole(input, limits) {
            let WholeMessage { kind, payload, frame_bytes } = self.take_whole(input, &whole)?;
            return Ok((frame_bytes, Some(Received::Message { kind, payload: Payload::Borrowed(payload) })));
        }
        self.receive_any(input, limits, scratch)
    }

    /// Takes the message at the front of `input`, unmasked in place, if it is one that [`receive`](Self::receive) would
    /// give without more input and without anything else to do: of one frame, whole and not compressed.
    ///
    /// # Errors
    /// As there.
    #[inline]
    pub fn receive_whole<'a>(
        &mut self,
        input: &'a mut [u8],
        limits: &MessageLimits,
    ) -> Option<Result<WholeMessage<'a>, Violation>> {
        let whole = self.find_whole(input, limits)?;
        Some(self.take_whole(input, &whole))
    }

    #[inline(always)]
    fn find_whole(&self, input: &[u8], limits: &MessageLimits) -> Option<frame::ShortMessage> {
        if !self.is_between_messages() {
            return None;
        }
        let message = frame::small_message(input).or_else(|| frame::medium_message(input))?;
        let is_allowed =
            message.payload_bytes <= limits.frame_bytes_max && message.payload_bytes <= limits.message_bytes_max;
        is_allowed.then_some(message)
    }

    /// Unmasks and checks it where it lies.
    #[inline(always)]
    fn take_whole<'a>(
        &mut self,
        input: &'a mut [u8],
        message: &frame::ShortMessage,
    ) -> Result<WholeMessage<'a>, Violation> {
        let frame_bytes = message.header_bytes + message.payload_bytes;
        let payload = &mut input[message.header_bytes..frame_bytes];
        mask::unmask(payload, message.masking_key);
        if message.kind == MessageKind::Text && !utf8::is_utf8(payload) {
            return Err(self.fail(Violation::TextNotUtf8));
        }
        Ok(WholeMessage { kind: message.kind, payload, frame_bytes })
    }

    /// Returns whether nothing is kept of a frame or message: what arrives next begins a new one.
    #[inline]
    pub fn is_between_messages(&self) -> bool {
        self.partial.is_none() && self.header_bytes == 0 && !self.finished
    }

    /// Returns whether a message is here that is not wholly inflated.
    #[inline]
    pub fn is_inflating(&self) -> bool {
        self.partial.as_ref().is_some_and(|partial| partial.inflating.is_some())
    }

    /// The bytes still missing of the frame in progress.
    pub fn awaited_bytes(&self) -> usize {
        self.partial.as_ref().and_then(|partial| partial.frame.as_ref()).map_or(0, |frame| frame.remaining_bytes)
    }

    /// The heap bytes held for a message in progress, for memory accounting.
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| {
            let message = partial.message.as_ref().map_or(0, Assembler::allocated_bytes);
            let inflating = partial.inflating.as_ref().map_or(0, |inflating| inflating.heap_bytes());
            size_of::<Partial>() + message + partial.control.capacity() + inflating
        })
    }

    /// After a violation: what the client may still be sending of the message that was refused. The rest of the frame
    /// as its header announced it; as much as a message may have, where more fragments were to follow. To be read and
    /// dropped, for a close before that becomes a reset, which destroys the close frame.
    pub fn unread_bytes(&self) -> u64 {
        match self.header.first_chunk() {
            Some(bytes) if self.finished => u64::from_le_bytes(*bytes),
            _ => 0,
        }
    }

    /// The general way: any frame, whole or in pieces.
    fn receive_any<'a>(
        &mut self,
        input: &'a mut [u8],
        limits: &MessageLimits,
        scratch: &'a mut Scratch,
    ) -> Result<(usize, Option<Received<'a>>), Violation> {
        let input_bytes = input.len();
        if input_bytes == 0 && self.is_between_messages() {
            return Ok((0, None));
        }
        if self.finished {
            return Ok((input_bytes, None));
        }
        if let Some(inflating) = self.partial.as_mut().and_then(|partial| partial.inflating.take()) {
            let inflated = scratch.inflater.go_on(inflating, scratch.step_bytes);
            return self.inflated(inflated).map(|event| (0, Some(event)));
        }
        let mut rest = input;
        loop {
            match self.step(&mut rest, limits)? {
                FrameStep::NeedInput => return Ok((input_bytes, None)),
                FrameStep::NextFrame => scratch.fragments += 1,
                FrameStep::Control(opcode, payload) => {
                    let payload = scratch.lend(payload);
                    let event = self.control_event(opcode, payload).map_err(|violation| self.fail(violation))?;
                    return Ok((input_bytes - rest.len(), Some(event)));
                }
                FrameStep::Message(Joined { kind, compressed, payload }) => {
                    let consumed = input_bytes - rest.len();
                    if !compressed {
                        return Ok((consumed, Some(Received::Message { kind, payload })));
                    }
                    let Scratch { inflater, step_bytes, .. } = scratch;
                    let inflated = inflater.begin(kind, payload, limits.message_bytes_max, *step_bytes);
                    return self.inflated(inflated).map(|event| (consumed, Some(event)));
                }
            }
        }
    }

    /// The event for a result of inflating.
    fn inflated<'a>(&mut self, inflated: Result<Inflated<'a>, Violation>) -> Result<Received<'a>, Violation> {
        match inflated {
            Ok(Inflated::Whole(kind, payload)) => {
                self.partial = None;
                Ok(Received::Message { kind, payload })
            }
            Ok(Inflated::Part(inflating)) => {
                self.partial.get_or_insert_default().inflating = Some(inflating);
                Ok(Received::Unfinished)
            }
            Err(violation) => Err(self.fail(violation)),
        }
    }

    /// Goes on by one frame, or by as much of one as there is, and consumes it from the front of `rest`.
    fn step<'a>(&mut self, rest: &mut &'a mut [u8], limits: &MessageLimits) -> Result<FrameStep<'a>, Violation> {
        let frame = match self.partial.as_mut().and_then(|partial| partial.frame.take()) {
            Some(frame) => frame,
            None => match self.next_header(rest).map_err(|violation| self.fail(violation))? {
                Some(header) => {
                    let rest_bytes = header.payload_bytes.saturating_sub(rest.len() as u64);
                    let more = unread_bytes(rest_bytes, header.fin, limits);
                    self.admit(&header, limits).map_err(|violation| self.fail_within(violation, more))?
                }
                None => return Ok(FrameStep::NeedInput),
            },
        };
        let payload = take_front(rest, frame.remaining_bytes.min(rest.len()));
        mask::unmask(payload, frame.masking_key);
        if frame.opcode.is_control() {
            return Ok(self.step_control(frame, payload));
        }
        let more = unread_bytes((frame.remaining_bytes - payload.len()) as u64, frame.fin, limits);
        self.step_data(frame, payload).map_err(|violation| self.fail_within(violation, more))
    }

    /// The next frame's header, joined from the kept bytes and `rest`; kept if it is not complete.
    fn next_header(&mut self, rest: &mut &mut [u8]) -> Result<Option<ClientHeader>, Violation> {
        let expected = Expected {
            continuation: self.partial.as_ref().is_some_and(|partial| partial.message.is_some()),
            compression: self.deflate.is_some(),
        };
        let kept = usize::from(self.header_bytes);
        let mut joined = [0; frame::CLIENT_HEADER_BYTES_MAX];
        let added = rest.len().min(joined.len() - kept);
        joined[..kept].copy_from_slice(&self.header[..kept]);
        joined[kept..kept + added].copy_from_slice(&rest[..added]);
        let header = frame::decode_client_header(&joined[..kept + added], expected)?;
        if let Some(header) = header {
            // More than was kept, or it would have been whole before.
            take_front(rest, header.header_bytes - kept);
            self.header_bytes = 0;
        } else {
            // Fewer than a whole header, so all of `rest` was added.
            take_front(rest, added);
            self.header[..kept + added].copy_from_slice(&joined[..kept + added]);
            self.header_bytes = (kept + added) as u8;
        }
        Ok(header)
    }

    /// Judges a frame by its header, before its payload.
    fn admit(&mut self, header: &ClientHeader, limits: &MessageLimits) -> Result<IncomingFrame, Violation> {
        let payload_bytes = usize::try_from(header.payload_bytes).map_err(|_| Violation::FrameTooBig)?;
        if !header.opcode.is_control() {
            if payload_bytes > limits.frame_bytes_max {
                return Err(Violation::FrameTooBig);
            }
            let message = self.partial.as_mut().and_then(|partial| partial.message.as_mut());
            let assembled_bytes = message.as_ref().map_or(0, |message| message.len());
            if payload_bytes > limits.message_bytes_max.saturating_sub(assembled_bytes) {
                return Err(Violation::MessageTooBig);
            }
            if let Some(message) = message {
                message.begin_fragment(limits)?;
            }
        }
        Ok(IncomingFrame {
            remaining_bytes: payload_bytes,
            masking_key: header.masking_key,
            opcode: header.opcode,
            fin: header.fin,
            compressed: header.compressed,
        })
    }

    fn step_data<'a>(&mut self, frame: IncomingFrame, payload: &'a mut [u8]) -> Result<FrameStep<'a>, Violation> {
        let is_whole = payload.len() == frame.remaining_bytes;
        let kind = match frame.opcode {
            Opcode::Text => Some(MessageKind::Text),
            Opcode::Binary => Some(MessageKind::Binary),
            _ => None,
        };
        let in_progress = self.partial.as_ref().is_some_and(|partial| partial.message.is_some());
        if is_whole
            && frame.fin
            && !in_progress
            && let Some(kind) = kind
        {
            if kind == MessageKind::Text && !frame.compressed && !utf8::is_utf8(payload) {
                return Err(Violation::TextNotUtf8);
            }
            let payload = Payload::Borrowed(payload);
            return Ok(FrameStep::Message(Joined { kind, compressed: frame.compressed, payload }));
        }
        let partial = self.partial.get_or_insert_default();
        if let Some(kind) = kind {
            partial.message.get_or_insert_with(|| Assembler::new(kind, frame.compressed));
        }
        // The header of a continuation was admitted only into a message.
        let message = partial.message.as_mut().ok_or(Violation::LoneContinuation)?;
        message.push(payload, frame.remaining_bytes - payload.len())?;
        if !is_whole {
            partial.frame = Some(frame.after(payload.len()));
            return Ok(FrameStep::NeedInput);
        }
        if !frame.fin {
            return Ok(FrameStep::NextFrame);
        }
        let message = partial.message.take().ok_or(Violation::LoneContinuation)?;
        self.partial = None;
        Ok(FrameStep::Message(message.finish()?))
    }

    fn step_control<'a>(&mut self, frame: IncomingFrame, payload: &'a mut [u8]) -> FrameStep<'a> {
        let is_whole = payload.len() == frame.remaining_bytes;
        let gathered_bytes = self.partial.as_ref().map_or(0, |partial| partial.control.len());
        if is_whole && gathered_bytes == 0 {
            self.forget_partial_if_empty();
            return FrameStep::Control(frame.opcode, Payload::Borrowed(payload));
        }
        let partial = self.partial.get_or_insert_default();
        partial.control.extend_from_slice(payload);
        if !is_whole {
            partial.frame = Some(frame.after(payload.len()));
            return FrameStep::NeedInput;
        }
        let gathered = std::mem::take(&mut partial.control);
        self.forget_partial_if_empty();
        FrameStep::Control(frame.opcode, Payload::Owned(gathered))
    }

    /// After a control frame: the message around it stays, if there is one.
    fn forget_partial_if_empty(&mut self) {
        if self.partial.as_ref().is_some_and(|partial| partial.message.is_none()) {
            self.partial = None;
        }
    }

    fn control_event<'a>(&mut self, opcode: Opcode, payload: &'a [u8]) -> Result<Received<'a>, Violation> {
        match opcode {
            Opcode::Ping => Ok(Received::Ping(payload)),
            Opcode::Close => {
                let close = close::parse(payload)?;
                self.finish();
                Ok(Received::Close(close))
            }
            _ => Ok(Received::Pong(payload)),
        }
    }

    fn fail(&mut self, violation: Violation) -> Violation {
        self.finish();
        violation
    }

    /// The client has begun a message, of which `unread_bytes` may still come.
    fn fail_within(&mut self, violation: Violation, unread_bytes: u64) -> Violation {
        self.finish();
        // A table entry is no larger for it.
        self.header[..8].copy_from_slice(&unread_bytes.to_le_bytes());
        violation
    }

    fn finish(&mut self) {
        *self = Self { deflate: self.deflate, finished: true, ..Self::default() };
    }
}

impl IncomingFrame {
    /// The frame when `done_bytes` more of its payload have been taken.
    fn after(self, done_bytes: usize) -> Self {
        Self {
            remaining_bytes: self.remaining_bytes - done_bytes,
            masking_key: mask::rotated(self.masking_key, done_bytes),
            ..self
        }
    }
}

/// See [`WebSocketConnection::unread_bytes`].
fn unread_bytes(rest_of_frame_bytes: u64, fin: bool, limits: &MessageLimits) -> u64 {
    rest_of_frame_bytes.saturating_add(if fin { 0 } else { limits.message_bytes_max as u64 })
}

/// Splits `bytes` off the front of `rest`.
fn take_front<'a>(rest: &mut &'a mut [u8], bytes: usize) -> &'a mut [u8] {
    let (front, behind) = std::mem::take(rest).split_at_mut(bytes);
    *rest = behind;
    front
}

#[cfg(test)]
mod tests;
