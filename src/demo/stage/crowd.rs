//! The simulated receivers: real sockets to the broker's own listener, read by one thread.
//!
//! Invariants: a stalled receiver reads nothing, as a client whose page hangs; the measured time is from the push to
//! the end of the read, of receivers that are not stalled and have caught up; a closed one returns after a pause;
//! without orders it sleeps; it ends with its [`Crowd`].

use super::receiver::{self, Receiver, ReceiverEvent};
use crate::driver::epoll::{EpollEvents, ReadySet};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// The socket buffer of a receiver that does not read: small, so that the broker's own queue visibly fills.
const RECEIVE_BUFFER_BYTES: usize = 64 << 10;

/// How many connect between two looks at the others.
const CONNECTS_AT_ONCE: usize = 32;

const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long one that was closed or refused waits before it comes again.
const PAUSE: Duration = Duration::from_secs(1);

/// The most times kept until they are taken: some seconds of a full stage.
const TIMES_MAX: usize = 1 << 18;

/// Where they connect.
pub(super) struct ReceiverAddress {
    /// The listener.
    pub(super) address: SocketAddr,
    /// The path of a seat, less its number.
    pub(super) path: String,
    /// In what order they stall: a seat is stalled if its rank is below the count.
    pub(super) ranks: Arc<[usize]>,
    /// When the stage's clock began.
    pub(super) began: Instant,
}

/// Measurements since they were last taken.
#[derive(Default)]
pub(super) struct Measurements {
    /// From push to read, in microseconds.
    pub(super) times_us: Vec<u32>,
    /// Messages that receivers have found missing, by the numbers in them.
    pub(super) missed: u64,
    /// Why the last one could not come.
    pub(super) trouble: Option<String>,
}

struct CrowdState {
    wanted: AtomicUsize,
    stalled: AtomicUsize,
    newest: AtomicU64,
    has_ended: AtomicBool,
    catching_up: Box<[AtomicBool]>,
    measured: Mutex<Measurements>,
}

impl CrowdState {
    fn measured(&self) -> MutexGuard<'_, Measurements> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The receivers.
pub(super) struct Crowd {
    shared: Arc<CrowdState>,
    thread: Thread,
    ended: Option<JoinHandle<()>>,
}

impl Crowd {
    /// Starts without receivers.
    ///
    /// # Errors
    /// No thread, or no descriptor.
    pub(super) fn start(seats: ReceiverAddress) -> io::Result<Self> {
        let shared = Arc::new(CrowdState {
            wanted: AtomicUsize::new(0),
            stalled: AtomicUsize::new(0),
            newest: AtomicU64::new(0),
            has_ended: AtomicBool::new(false),
            catching_up: seats.ranks.iter().map(|_| AtomicBool::new(false)).collect(),
            measured: Mutex::default(),
        });
        let ready = ReadySet::new()?;
        let receivers = seats.ranks.iter().map(|_| ReceiverSlot::default()).collect();
        let room = CrowdThread { seats, shared: shared.clone(), ready, receivers, times_us: Vec::new(), missed: 0 };
        let ended = thread::Builder::new().name("receivers".to_owned()).spawn(move || room.run())?;
        Ok(Self { shared, thread: ended.thread().clone(), ended: Some(ended) })
    }

    /// So many are to be there.
    pub(super) fn invite(&self, wanted: usize) {
        self.shared.wanted.store(wanted, Ordering::Relaxed);
        self.thread.unpark();
    }

    /// So many of them are to read nothing.
    pub(super) fn stall(&self, stalled: usize) {
        self.shared.stalled.store(stalled, Ordering::Relaxed);
    }

    /// This is the number of the message that is pushed now.
    pub(super) fn pushed(&self, number: u64) {
        self.shared.newest.store(number, Ordering::Relaxed);
    }

    /// Returns whether a receiver reads again but has not read all that waited for it.
    pub(super) fn is_catching_up(&self, seat: usize) -> bool {
        self.shared.catching_up[seat].load(Ordering::Relaxed)
    }

    /// Takes the measurements since the last call.
    pub(super) fn take_measured(&self) -> Measurements {
        std::mem::take(&mut *self.shared.measured())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
        self.thread.unpark();
        if let Some(ended) = self.ended.take() {
            // A panic there has been reported by its thread.
            let _ = ended.join();
        }
    }
}

/// Where one receiver is, or will be.
#[derive(Default)]
struct ReceiverSlot {
    here: Option<(TcpStream, Receiver)>,
    comes_again: Option<Instant>,
    last_number: Option<u64>,
    was_stalled: bool,
}

struct CrowdThread {
    seats: ReceiverAddress,
    shared: Arc<CrowdState>,
    ready: ReadySet,
    receivers: Vec<ReceiverSlot>,
    times_us: Vec<u32>,
    missed: u64,
}

impl CrowdThread {
    fn run(mut self) {
        let mut events = EpollEvents::with_capacity(256);
        let mut buffer = vec![0; 64 << 10];
        while !self.shared.has_ended.load(Ordering::Relaxed) {
            let wanted = self.shared.wanted.load(Ordering::Relaxed);
            if wanted == 0 {
                self.receivers.iter_mut().for_each(|place| *place = ReceiverSlot::default());
                thread::park();
                continue;
            }
            self.fill(wanted);
            self.let_read(&mut buffer);
            // The set is valid for as long as we are.
            if self.ready.wait(&mut events, LOOK_EVERY).is_err() {
                return;
            }
            for event in events.iter() {
                let seat = event.token as usize;
                if !self.is_stalled(seat) {
                    self.read(seat, &mut buffer);
                }
            }
            self.hand_over();
        }
    }

    fn is_stalled(&self, seat: usize) -> bool {
        self.seats.ranks[seat] < self.shared.stalled.load(Ordering::Relaxed)
    }

    /// Lets some of those come that are missing.
    fn fill(&mut self, wanted: usize) {
        let now = Instant::now();
        let missing = |place: &ReceiverSlot| place.here.is_none() && place.comes_again.is_none_or(|at| at <= now);
        let seats: Vec<usize> = (0..wanted.min(self.receivers.len()))
            .filter(|&seat| missing(&self.receivers[seat]) && !self.is_stalled(seat))
            .take(CONNECTS_AT_ONCE)
            .collect();
        for seat in seats {
            match self.connect(seat) {
                Ok(socket) => self.receivers[seat].here = Some((socket, Receiver::default())),
                Err(error) => {
                    self.disconnect(seat);
                    self.shared.measured().trouble = Some(error.to_string());
                    // The others would fare no better.
                    return;
                }
            }
        }
    }

    fn connect(&self, seat: usize) -> io::Result<TcpStream> {
        let address = self.seats.address;
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
        socket.connect_timeout(&address.into(), CONNECT_WITHIN)?;
        let mut socket = TcpStream::from(socket);
        let request = receiver::request(&address.to_string(), &format!("{}{seat}", self.seats.path));
        socket.write_all(request.as_bytes())?;
        socket.set_nonblocking(true)?;
        self.ready.add(&socket, seat as u64)?;
        Ok(socket)
    }

    /// It is gone, and comes back after a pause.
    fn disconnect(&mut self, seat: usize) {
        self.receivers[seat] = ReceiverSlot { comes_again: Some(Instant::now() + PAUSE), ..ReceiverSlot::default() };
        self.shared.catching_up[seat].store(false, Ordering::Relaxed);
    }

    /// Those that were stalled until now read what waits for them.
    fn let_read(&mut self, buffer: &mut [u8]) {
        for seat in 0..self.receivers.len() {
            let is_stalled = self.is_stalled(seat);
            let was_stalled = std::mem::replace(&mut self.receivers[seat].was_stalled, is_stalled);
            if was_stalled && !is_stalled && self.receivers[seat].here.is_some() {
                self.shared.catching_up[seat].store(true, Ordering::Relaxed);
                self.read(seat, buffer);
            }
        }
    }

    /// Reads all that is there.
    fn read(&mut self, seat: usize, buffer: &mut [u8]) {
        let Some((mut socket, mut receiver)) = self.receivers[seat].here.take() else { return };
        loop {
            let read = match socket.read(buffer) {
                Ok(0) => return self.disconnect(seat),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => return self.disconnect(seat),
            };
            let read_ns = self.seats.began.elapsed().as_nanos() as u64;
            let mut has_closed = false;
            let taken = receiver.take(&buffer[..read], |heard| match heard {
                ReceiverEvent::Open => {}
                ReceiverEvent::Tick { number, pushed_ns } => {
                    self.measure_delivery(seat, number, read_ns.saturating_sub(pushed_ns))
                }
                // A receiver without room for a pong will be dropped anyway.
                ReceiverEvent::Ping(payload) => drop(socket.write(&receiver::pong(&payload))),
                ReceiverEvent::Close => has_closed = true,
            });
            if has_closed || taken.is_err() {
                return self.disconnect(seat);
            }
        }
        self.receivers[seat].here = Some((socket, receiver));
    }

    fn measure_delivery(&mut self, seat: usize, number: u64, ns: u64) {
        let last = self.receivers[seat].last_number.replace(number);
        self.missed += last.map_or(0, |last| number.saturating_sub(last + 1));
        let catching_up = &self.shared.catching_up[seat];
        if catching_up.load(Ordering::Relaxed) {
            // The message that found it reading is the first that counts again.
            let has_caught_up = number >= self.shared.newest.load(Ordering::Relaxed);
            catching_up.store(!has_caught_up, Ordering::Relaxed);
            return;
        }
        self.times_us.push(u32::try_from(ns / 1000).unwrap_or(u32::MAX));
    }

    fn hand_over(&mut self) {
        if self.times_us.is_empty() && self.missed == 0 {
            return;
        }
        let mut measured = self.shared.measured();
        let room = TIMES_MAX.saturating_sub(measured.times_us.len());
        measured.times_us.extend(self.times_us.drain(..).take(room));
        measured.missed += std::mem::take(&mut self.missed);
    }
}
