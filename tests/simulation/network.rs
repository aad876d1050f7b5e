//! The network in memory: sockets with a receive window, short writes, resets, and bytes that arrive in pieces.

use super::rng::Rng;
use pushring::shard::flush::{Flush, Outgoing, Parts, Short, SocketId};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

const ECONNRESET: i32 = 104;

/// A bug planted between shard and network, which the oracle must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    None,
    /// A short send is reported as a whole one.
    LosesTail,
    /// Now and then bytes go to the neighbour.
    WrongSocket,
    /// Now and then the end of a send arrives twice.
    Duplicates,
    /// Now and then a short send is reported as shorter than it was.
    SendsAgain,
}

pub struct Socket {
    /// What the client has not read yet.
    pub to_client: VecDeque<u8>,
    /// What the client has sent and the shard not read.
    pub to_server: VecDeque<u8>,
    window: usize,
    rng: Rng,
    /// The shard was told that the socket is full.
    pub awaits_room: bool,
    pub client_finished: bool,
    pub reset: bool,
    pub write_shut: bool,
    pub closed: bool,
}

impl Socket {
    /// How much the shard gets in one read.
    pub fn read_size(&mut self) -> usize {
        self.rng.between(1, 8000)
    }
}

#[derive(Default)]
pub struct Network {
    pub sockets: Vec<Socket>,
    /// What the shards did that no socket allows.
    pub complaints: Vec<String>,
    /// After the faults every send takes what fits.
    pub calm: bool,
    sends: u64,
}

impl Network {
    /// A socket whose numbers depend only on `rng`.
    pub fn open(&mut self, mut rng: Rng) -> SocketId {
        let window = rng.between(64, 6000);
        self.sockets.push(Socket {
            to_client: VecDeque::new(),
            to_server: VecDeque::new(),
            window,
            rng,
            awaits_room: false,
            client_finished: false,
            reset: false,
            write_shut: false,
            closed: false,
        });
        SocketId(self.sockets.len() as i32 - 1)
    }

    pub fn socket(&mut self, id: SocketId) -> &mut Socket {
        &mut self.sockets[id.0 as usize]
    }

    fn send(&mut self, entry: &Outgoing<'_>, plant: Plant) -> Result<(usize, usize), i32> {
        let bytes: Vec<u8> = match entry.parts {
            Parts::One(bytes) => bytes.to_vec(),
            Parts::Many(parts) => parts.iter().flat_map(|part| part.iter().copied()).collect(),
        };
        assert!(!bytes.is_empty(), "a send of nothing");
        self.sends += 1;
        let (calm, sends, sockets) = (self.calm, self.sends, self.sockets.len());
        let socket = self.socket(entry.socket);
        if socket.closed || socket.write_shut {
            let state = if socket.closed { "closed" } else { "shut" };
            self.complaints.push(format!("{} bytes for socket {}, which is {state}", bytes.len(), entry.socket.0));
            return Err(32);
        }
        if socket.reset {
            return Err(ECONNRESET);
        }
        let room = socket.window.saturating_sub(socket.to_client.len());
        let mut taken = bytes.len().min(room);
        if !calm && socket.rng.chance(20) {
            taken = socket.rng.below(taken + 1);
        }
        socket.awaits_room = taken < bytes.len();
        match plant {
            Plant::WrongSocket if sends.is_multiple_of(97) => {
                let wrong = (entry.socket.0 as usize + 1) % sockets;
                self.sockets[wrong].to_client.extend(&bytes[..taken]);
            }
            Plant::Duplicates if sends.is_multiple_of(97) => {
                socket.to_client.extend(&bytes[..taken]);
                socket.to_client.extend(&bytes[taken / 2..taken]);
            }
            _ => socket.to_client.extend(&bytes[..taken]),
        }
        Ok((taken, bytes.len()))
    }
}

/// The shards' door to the network.
pub struct MemoryFlush {
    pub network: Rc<RefCell<Network>>,
    pub plant: Plant,
}

impl Flush for MemoryFlush {
    fn send_all(&mut self, batch: &[Outgoing<'_>], short: &mut Vec<Short>) {
        let mut network = self.network.borrow_mut();
        for (index, entry) in batch.iter().enumerate() {
            assert!(batch[..index].iter().all(|other| other.socket != entry.socket), "a socket twice in a batch");
            match network.send(entry, self.plant) {
                Err(errno) => short.push(Short { index, sent: Err(errno) }),
                Ok((taken, offered)) if taken == offered => {}
                Ok(_) if self.plant == Plant::LosesTail => {}
                Ok((taken, _)) => {
                    let again = usize::from(self.plant == Plant::SendsAgain && taken > 0);
                    short.push(Short { index, sent: Ok(taken - again) });
                }
            }
        }
    }
}
