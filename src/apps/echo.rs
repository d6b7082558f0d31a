//! `serverd echo`: every byte comes back, in order (RFC 862 over TCP).

use crate::r#loop::{Accepted, App, ConnId, Ending, Flow, Limits, Phase, Remote, Wire};

/// Sends back every byte.
///
/// Bytes leave from where they were read; only what the socket does not take is kept, and above
/// [`Echo::HIGH_BYTES`] of that nothing more is read from the peer until [`Echo::LOW_BYTES`] are left. When the peer
/// has sent its last byte the rest of the queue is sent, then the connection is closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Echo {
    /// Unsent bytes above which reading stops.
    pub const HIGH_BYTES: usize = 64 * 1024;
    /// Unsent bytes at which it goes on.
    pub const LOW_BYTES: usize = 16 * 1024;

    /// Sets these marks in the limits of a loop, or lower ones where less may be kept.
    pub fn bound(limits: &mut Limits) {
        limits.output_bytes_max = limits.output_bytes_max.min(Self::HIGH_BYTES);
        limits.output_resume_bytes = (limits.output_bytes_max / 2).min(Self::LOW_BYTES);
    }
}

impl App for Echo {
    type State = ();
    type Letter = ();

    fn start(&mut self, _: Remote<()>) {}

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Read(Phase::Open))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        wire.send_back(wire.input().len());
        wire.restart_clock();
        Flow::Read(Phase::Open)
    }

    fn letter(&mut self, _state: &mut (), (): (), _: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn drained(&mut self, _state: &mut (), _: &mut Wire<'_, ()>) -> Flow {
        Flow::Read(Phase::Open)
    }

    fn timer(&mut self, _state: &mut (), _: Phase, _: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn drain(&mut self, _state: &mut (), _: &mut Wire<'_, ()>) -> Flow {
        Flow::Close
    }

    fn closed(&mut self, _: ConnId, _state: (), _: Ending) {}

    fn end_of_turn(&mut self, _: &mut Vec<(ConnId, ())>) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::Output;

    fn echoed(input: &[u8], before: &[u8]) -> (Vec<u8>, Flow) {
        let (mut output, mut posts) = (Output::new(), Vec::new());
        output.extend(before);
        let mut wire = Wire::over(input, false, &mut output, &mut posts);
        let flow = Echo.receive(&mut (), &mut wire);
        assert_eq!(wire.consumed(), input.len());
        (wire.output().to_vec(), flow)
    }

    #[test]
    fn every_byte_comes_back_behind_what_waits() {
        assert_eq!(echoed(b"abc", b""), (b"abc".to_vec(), Flow::Read(Phase::Open)));
        assert_eq!(echoed(b"abc", b"012"), (b"012abc".to_vec(), Flow::Read(Phase::Open)));
        assert_eq!(echoed(b"", b""), (Vec::new(), Flow::Read(Phase::Open)));
    }

    #[test]
    fn two_pieces_sent_back_and_text_between_them_keep_their_order() {
        let (mut output, mut posts) = (Output::new(), Vec::new());
        let mut wire: Wire<'_, ()> = Wire::over(b"abcdef", false, &mut output, &mut posts);
        wire.send_back(2);
        wire.output().extend(b"-");
        wire.send_back(1);
        wire.send_back(3);
        assert_eq!(wire.output().to_vec(), b"ab-cdef");
    }
}
