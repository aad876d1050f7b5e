//! [`Flush`] by one `send(2)` or `sendmsg(2)` per socket: for the epoll driver, for kernels whose rings lack a property
//! that [`UringFlush`](super::flush_uring::UringFlush) needs, and as the naive twin that tests it.

use super::sys;
use crate::shard::flush::{Flush, OutgoingBytes, SendParts, ShortSend};
use rustix::io::Errno;
use rustix::net::{self, SendAncillaryBuffer, SendFlags};

/// Sends each entry with a system call of its own.
#[derive(Debug, Default, Clone, Copy)]
pub struct SendFlush;

impl Flush for SendFlush {
    fn send_all(&mut self, batch: &[OutgoingBytes<'_>], short: &mut Vec<ShortSend>) {
        for (index, outgoing) in batch.iter().enumerate() {
            let sent = send(outgoing);
            if sent != Ok(length(&outgoing.parts)) {
                short.push(ShortSend { index, sent });
            }
        }
    }
}

/// The bytes of one send.
pub(super) fn length(parts: &SendParts<'_>) -> usize {
    match parts {
        SendParts::One(bytes) => bytes.len(),
        SendParts::Many(slices) => slices.iter().map(|slice| slice.len()).sum(),
    }
}

/// Offers one entry to its socket: how many bytes it took, or its errno.
pub(super) fn send(outgoing: &OutgoingBytes<'_>) -> Result<usize, i32> {
    let socket = sys::borrow(&outgoing.socket);
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, outgoing.is_last);
    loop {
        let sent = match outgoing.parts {
            SendParts::One(bytes) => net::send(socket, bytes, flags),
            SendParts::Many(slices) => net::sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags),
        };
        return match sent {
            Ok(taken) => Ok(taken),
            Err(Errno::AGAIN) => Ok(0),
            Err(Errno::INTR) => continue,
            Err(error) => Err(error.raw_os_error()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::sys::socket_id;
    use std::io::{IoSlice, Read};
    use std::os::unix::net::UnixStream;

    #[test]
    fn only_what_was_not_taken_whole_is_reported() {
        let (whole, mut whole_peer) = UnixStream::pair().unwrap();
        let (partly, _partly_peer) = UnixStream::pair().unwrap();
        let (broken, broken_peer) = UnixStream::pair().unwrap();
        drop(broken_peer);
        let big = vec![7; 8 << 20];
        let slices = [IoSlice::new(b"pu"), IoSlice::new(b"sh")];
        let batch = [
            OutgoingBytes { socket: socket_id(&partly), parts: SendParts::One(&big), is_last: false },
            OutgoingBytes { socket: socket_id(&whole), parts: SendParts::Many(&slices), is_last: false },
            OutgoingBytes { socket: socket_id(&broken), parts: SendParts::One(b"x"), is_last: false },
        ];
        let mut short = Vec::new();
        SendFlush.send_all(&batch, &mut short);
        assert_eq!(short.len(), 2);
        assert!(matches!(short[0], ShortSend { index: 0, sent: Ok(taken) } if taken > 0 && taken < big.len()));
        assert_eq!(short[1], ShortSend { index: 2, sent: Err(libc::EPIPE) });
        let mut got = [0; 4];
        whole_peer.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"push");
        short.clear();
        SendFlush.send_all(&batch[..1], &mut short);
        assert_eq!(short, [ShortSend { index: 0, sent: Ok(0) }], "a full socket");
    }
}
