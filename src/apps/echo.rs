//! `serverd echo`: an echo server (RFC 862 over TCP).

use crate::r#loop::{Accepted, App, Flow, LoopLimits, Phase, Wire};

/// An [`App`] that sends back every byte it receives, in order.
///
/// Bytes are written directly from the read buffer; only what the socket does not accept is buffered. If more than
/// [`Echo::HIGH_WATERMARK_BYTES`] are buffered, reading pauses (back-pressure) until no more than
/// [`Echo::LOW_WATERMARK_BYTES`] are left. After the peer's half-close the remaining output is sent, then the
/// connection is closed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Echo {
    /// Unsent bytes above which reading from the peer pauses.
    pub const HIGH_WATERMARK_BYTES: usize = 64 * 1024;
    /// Unsent bytes at or below which reading resumes.
    pub const LOW_WATERMARK_BYTES: usize = 16 * 1024;

    /// Sets the watermarks in the limits of a loop; never raises `output_bytes_max`.
    pub fn set_watermarks(limits: &mut LoopLimits) {
        limits.output_bytes_max = limits.output_bytes_max.min(Self::HIGH_WATERMARK_BYTES);
        limits.output_resume_bytes = (limits.output_bytes_max / 2).min(Self::LOW_WATERMARK_BYTES);
    }
}

impl App for Echo {
    type State = ();
    type Message = ();

    fn open(&mut self, _: &Accepted<'_>, _: &mut Wire<'_, ()>) -> ((), Flow) {
        ((), Flow::Read(Phase::Unlimited))
    }

    fn receive(&mut self, _state: &mut (), wire: &mut Wire<'_, ()>) -> Flow {
        wire.send_back(wire.input().len());
        wire.restart_timer();
        Flow::Read(Phase::Unlimited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::r#loop::Output;

    fn echoed(input: &[u8], pending: &[u8]) -> (Vec<u8>, Flow) {
        let (mut output, mut messages) = (Output::new(), Vec::new());
        output.extend(pending);
        let mut wire = Wire::from_bytes(input, false, &mut output, &mut messages);
        let flow = Echo.receive(&mut (), &mut wire);
        assert_eq!(wire.consumed(), input.len());
        (wire.output().to_vec(), flow)
    }

    #[test]
    fn input_is_echoed_after_pending_output() {
        assert_eq!(echoed(b"abc", b""), (b"abc".to_vec(), Flow::Read(Phase::Unlimited)));
        assert_eq!(echoed(b"abc", b"012"), (b"012abc".to_vec(), Flow::Read(Phase::Unlimited)));
        assert_eq!(echoed(b"", b""), (Vec::new(), Flow::Read(Phase::Unlimited)));
    }

    #[test]
    fn echoed_input_and_other_output_keep_their_order() {
        let (mut output, mut messages) = (Output::new(), Vec::new());
        let mut wire: Wire<'_, ()> = Wire::from_bytes(b"abcdef", false, &mut output, &mut messages);
        wire.send_back(2);
        wire.output().extend(b"-");
        wire.send_back(1);
        wire.send_back(3);
        assert_eq!(wire.output().to_vec(), b"ab-cdef");
    }
}
