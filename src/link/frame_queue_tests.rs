//! One direction of a session, with numbers for frames.

use super::super::frame::FrameReader;
use super::*;
use std::sync::Mutex;

/// Frames are numbers; acknowledgements are numbers above a thousand, and a beat is zero.
struct Numbers;

impl LinkDirection for Numbers {
    type Mark = u64;

    fn ack(received: u64) -> LinkFrame {
        LinkFrame::bare(&(1000 + received))
    }

    fn beat() -> LinkFrame {
        LinkFrame::bare(&0_u64)
    }

    fn written(_: &mut u64, asks: &mut usize) {
        *asks = asks.saturating_sub(1);
    }
}

const WINDOW: LinkWindow = LinkWindow { frames: 8, bytes: 1000 };

fn frame(number: u64) -> (LinkFrame, u64) {
    (LinkFrame::bare(&number), number)
}

/// The frames written until the queue ends.
fn written(queue: &FrameQueue<Numbers>, connection: u64) -> Vec<u64> {
    let mut bytes = Vec::new();
    queue.write(connection, &mut bytes, Duration::from_secs(60)).unwrap();
    let mut reader = FrameReader::new(&bytes[..], 64, 0);
    std::iter::from_fn(|| reader.next().ok().map(|(number, _)| number)).collect()
}

#[test]
fn what_was_not_acknowledged_goes_out_again_once() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    queue.send((1..=4).map(frame)).unwrap();
    let first = queue.connect(WINDOW);
    assert_eq!(queue.acknowledge(1, |_| ()), Err(NeverSent(1)), "nothing was written yet");
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(first, &mut io::sink(), Duration::from_secs(60)).unwrap());
        let mut seen = Vec::new();
        while queue.acknowledge(3, |mark| seen.push(mark)).is_err() {
            std::thread::yield_now();
        }
        assert_eq!(seen, [1, 2, 3]);
        queue.disconnect(first);
    });
    assert_eq!(queue.acknowledge(2, |_| panic!("an old one")), Ok(()));
    let second = queue.connect(WINDOW);
    queue.disconnect(first);
    queue.send([frame(5)]).unwrap();
    queue.end(Some(frame(99).0));
    assert_eq!(written(&queue, second), [4, 5, 99]);
    assert_eq!(queue.send([frame(6)]), Err(QueueEnded));
    assert!(queue.wait_finished(Duration::ZERO) && queue.wait_finished(Duration::MAX));
}

#[test]
fn what_went_out_over_an_earlier_connection_may_be_acknowledged_over_the_next_but_one() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    queue.send((1..=4).map(frame)).unwrap();
    let first = queue.connect(WINDOW);
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(first, &mut io::sink(), Duration::from_secs(60)).unwrap());
        while queue.lock().written < 4 {
            std::thread::yield_now();
        }
        queue.disconnect(first);
    });
    queue.send([frame(5)]).unwrap();
    // A hello that was late: its peer is not there, and nothing goes out.
    let late = queue.connect(WINDOW);
    assert_eq!(queue.acknowledge(5, |_| ()), Err(NeverSent(5)));
    let mut seen = Vec::new();
    assert_eq!(queue.acknowledge(3, |mark| seen.push(mark)), Ok(()));
    assert_eq!(seen, [1, 2, 3]);
    {
        let state = queue.lock();
        assert_eq!((state.written, state.unwritten_bytes), (0, state.kept_bytes));
    }
    queue.disconnect(late);
    let next = queue.connect(WINDOW);
    queue.end(Some(frame(99).0));
    assert_eq!(written(&queue, next), [4, 5, 99]);
    assert_eq!(queue.lock().unwritten_bytes, 0);
}

#[test]
fn a_full_window_waits_for_acknowledgements() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let connection = queue.connect(WINDOW);
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| queue.send((1..=20).map(frame)));
        scope.spawn(|| queue.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
        let mut seen = 0;
        while seen < 20 {
            assert!(queue.lock().kept.len() <= WINDOW.frames as usize);
            let _ = queue.acknowledge(seen + 1, |mark| seen = mark);
            std::thread::yield_now();
        }
        assert_eq!(sender.join().unwrap(), Ok(()));
        queue.disconnect(connection);
    });
    assert_eq!((queue.counts(), queue.lock().kept_bytes), ((20, 0), 0));
}

#[test]
fn what_finds_no_room_is_not_waited_for_where_none_can_come() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let never = Duration::from_secs(3600);
    for number in 1..=8 {
        assert_eq!(queue.offer(frame(number).0, number, never), Ok(true));
    }
    assert_eq!(queue.offer(frame(9).0, 9, never), Ok(false), "nobody is there to make room");
    let connection = queue.connect(WINDOW);
    assert_eq!(queue.offer(frame(9).0, 9, Duration::from_millis(1)), Ok(false), "nobody has made room in time");
    std::thread::scope(|scope| {
        let offered = scope.spawn(|| queue.offer(frame(9).0, 9, never));
        scope.spawn(|| queue.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
        while queue.acknowledge(1, |_| ()).is_err() {
            std::thread::yield_now();
        }
        assert_eq!(offered.join().unwrap(), Ok(true));
        queue.end(None);
    });
    assert_eq!(queue.offer(frame(10).0, 10, never), Err(QueueEnded));
}

#[test]
fn the_other_side_is_told_what_was_taken_in() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let connection = queue.connect(WINDOW);
    queue.took(1, false);
    assert!(!queue.lock().has_work(), "that is little");
    queue.took(1, false);
    assert!(queue.lock().has_work(), "a quarter of the window");
    queue.took(1, true);
    queue.end(None);
    assert_eq!(written(&queue, connection), [1003]);
}

#[test]
fn questions_are_counted_until_their_answer_is_written() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    assert!(queue.ask(2) && queue.ask(2) && !queue.ask(2));
    let connection = queue.connect(WINDOW);
    queue.send_now(frame(1).0, 1).unwrap();
    queue.end(None);
    assert_eq!(written(&queue, connection), [1]);
    assert!(queue.ask(2));
}

#[test]
fn answers_that_are_never_acknowledged_end_the_asking() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let connection = queue.connect(WINDOW);
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(connection, &mut io::sink(), Duration::from_secs(60)).unwrap());
        let mut answers = 0;
        while queue.lock().kept.len() < KEPT_FRAMES_MAX {
            // Written, so answered, and not collected.
            match queue.ask(2) {
                true => queue.send_now(frame(1).0, 1).unwrap(),
                false => std::thread::yield_now(),
            }
            answers += 1;
        }
        assert!(!queue.ask(usize::MAX) && answers >= KEPT_FRAMES_MAX);
        queue.disconnect(connection);
    });
}

/// Takes a few bytes at a time, then none for a while.
struct Narrow {
    taken: Mutex<Vec<u8>>,
    calls: Mutex<usize>,
}

impl WriteNow for Narrow {
    fn write_now(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut calls = self.calls.lock().unwrap();
        *calls += 1;
        let count = if calls.is_multiple_of(3) { 0 } else { bytes.len().min(5) };
        self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
        Ok(count)
    }
}

/// The same pipe, waited for.
impl Write for &Narrow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(7);
        self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn who_has_a_frame_writes_it_and_what_does_not_go_is_the_writers_in_order() {
    let queue = FrameQueue::<Numbers>::new(LinkWindow { frames: 10_000, bytes: 1 << 20 });
    let pipe = Arc::new(Narrow { taken: Mutex::default(), calls: Mutex::default() });
    let connection = queue.connect(LinkWindow { frames: 10_000, bytes: 1 << 20 });
    queue.write_through(connection, pipe.clone());
    // There is no writer yet; of those that follow it depends on the machine who writes them.
    queue.send([frame(1)]).unwrap();
    assert!(*pipe.calls.lock().unwrap() > 0, "it was written by who had it");
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(connection, &mut &*pipe, Duration::from_secs(60)).unwrap());
        for number in 2..=3_000 {
            queue.send([frame(number)]).unwrap();
            if number % 100 == 0 {
                std::thread::sleep(2 * APART);
            }
        }
        queue.end(Some(frame(99_999).0));
        assert!(queue.wait_finished(Duration::from_secs(60)));
    });
    let bytes = pipe.taken.lock().unwrap().clone();
    let mut reader = FrameReader::new(&bytes[..], 64, 0);
    let seen: Vec<u64> = std::iter::from_fn(|| reader.next().ok().map(|(number, _)| number)).collect();
    assert_eq!(seen[..3_000], (1..=3_000).collect::<Vec<_>>());
    assert_eq!(seen[3_000..], [99_999]);
}

#[test]
fn a_frame_is_written_without_the_writer_and_an_acknowledgement_rides_on_it() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let stream = Arc::new(crate::driver::peer_socket::PeerStream::Unix(here));
    let connection = queue.connect(WINDOW);
    queue.write_through(connection, stream);
    queue.took(1, true);
    queue.send([frame(7)]).unwrap();
    let mut reader = FrameReader::new(&there, 64, 0);
    let mut next = || reader.next::<u64>().unwrap().0;
    assert_eq!((next(), next()), (1001, 7), "nobody else has written");
}

#[test]
fn frames_that_a_thread_holds_back_leave_together_when_it_releases_them() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = queue.connect(WINDOW);
    queue.write_through(connection, Arc::new(crate::driver::peer_socket::PeerStream::Unix(here)));
    let mut reader = FrameReader::new(&there, 64, 0);
    let mut number = 0;
    // A thread that is not run for longer than frames may be held writes them itself: then once more.
    loop {
        let began = Instant::now();
        queue.hold();
        queue.send([frame(number + 1)]).unwrap();
        queue.send([frame(number + 2)]).unwrap();
        let written = queue.lock().written;
        let in_time = began.elapsed() < HOLD_WITHIN;
        queue.release();
        let mut next = || reader.next::<u64>().unwrap().0;
        assert_eq!((next(), next()), (number + 1, number + 2), "there is no writer");
        number += 2;
        queue.acknowledge(number, |_| ()).unwrap();
        if in_time {
            assert_eq!(written, 0);
            return;
        }
    }
}

/// Ends a connection, and so its writer, also where a test fails.
struct DisconnectOnDrop<'a>(&'a FrameQueue<Numbers>, u64);

impl Drop for DisconnectOnDrop<'_> {
    fn drop(&mut self) {
        self.0.disconnect(self.1);
    }
}

#[test]
fn frames_that_are_held_back_and_never_released_leave_all_the_same() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = queue.connect(WINDOW);
    let through = crate::driver::peer_socket::PeerStream::Unix(here.try_clone().unwrap());
    queue.write_through(connection, Arc::new(through));
    // Far from a beat, for which nothing must wait.
    let beat = Duration::from_secs(3600);
    there.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut reader = FrameReader::new(&there, 64, 0);
    let mut next = || reader.next::<u64>().unwrap().0;
    std::thread::scope(|scope| {
        let end = DisconnectOnDrop(&queue, connection);
        scope.spawn(|| queue.write(connection, &mut here, beat).unwrap());
        // Those of another thread take them along.
        queue.hold();
        queue.send([frame(1)]).unwrap();
        scope.spawn(|| queue.send([frame(2)]).unwrap()).join().unwrap();
        assert_eq!((next(), next()), (1, 2));
        // The writer sends them in time.
        for number in 3..6 {
            queue.hold();
            queue.send([frame(number)]).unwrap();
            assert_eq!(next(), number);
        }
        // Also where another thread was writing when they were put in, and had nothing to do with them.
        while queue.lock().writer_until.is_none() {
            std::thread::yield_now();
        }
        queue.lock().writing = true;
        queue.hold();
        queue.send([frame(6)]).unwrap();
        queue.lock().writing = false;
        assert_eq!(next(), 6);
        drop(end);
        // A great many are not held.
        queue.connect(LinkWindow { frames: 1000, bytes: 1 << 20 });
        queue.hold();
        queue.send((7..8 + LITTLE_FRAMES_MAX as u64).map(frame)).unwrap();
        assert_eq!(queue.lock().hold, None);
    });
}

#[test]
fn an_acknowledgement_that_finds_no_frame_goes_alone_soon() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    let connection = queue.connect(WINDOW);
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(connection, &mut here, Duration::from_secs(60)).unwrap());
        let mut reader = FrameReader::new(&there, 64, 0);
        for count in 1..=3 {
            queue.took(1, true);
            assert_eq!(reader.next::<u64>().unwrap().0, 1000 + count, "long before a beat");
        }
        queue.disconnect(connection);
    });
}

#[test]
fn a_notice_is_said_once_to_each_connection() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let first = queue.connect(WINDOW);
    queue.notice(LinkFrame::bare(&8_u64));
    queue.notice(LinkFrame::bare(&9_u64));
    let mut gather = GatheredFrames::default();
    queue.lock().gather::<Numbers>(&mut gather);
    queue.disconnect(first);
    let second = queue.connect(WINDOW);
    queue.send([frame(1)]).unwrap();
    queue.notice(LinkFrame::bare(&10_u64));
    queue.end(Some(frame(99).0));
    assert_eq!(written(&queue, second), [10, 1, 99]);
    let mut bytes = Vec::new();
    gather.write(&mut bytes).unwrap();
    let mut reader = FrameReader::new(&bytes[..], 64, 0);
    assert_eq!(reader.next::<u64>().unwrap().0, 8);
}

#[test]
fn a_silent_line_beats() {
    let queue = FrameQueue::<Numbers>::new(WINDOW);
    let connection = queue.connect(WINDOW);
    let (mut here, there) = std::os::unix::net::UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| queue.write(connection, &mut here, Duration::from_millis(1)).unwrap());
        let mut reader = FrameReader::new(&there, 64, 0);
        for _ in 0..3 {
            assert_eq!(reader.next::<u64>().unwrap().0, 0);
        }
        queue.disconnect(connection);
    });
}
