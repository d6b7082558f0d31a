//! The protocols that a request offers in its Upgrade header (RFC 9110 section 7.8).

use crate::http1::{Head, ReplyContext, list_elements};

/// The protocols that a request offers in its Upgrade header; none if it does not ask for an upgrade.
#[derive(Default)]
pub(super) struct Offer(Option<Box<[u8]>>);

impl Offer {
    /// Returns the offer of the request `head`, which was parsed from `bytes`; its response has the context `reply`.
    pub(super) fn of(head: &Head, bytes: &[u8], reply: ReplyContext) -> Self {
        if !reply.asks_for_upgrade() {
            return Offer(None);
        }
        let lines = head.headers(bytes).filter(|(name, _)| name.eq_ignore_ascii_case(b"upgrade"));
        let values: Vec<&[u8]> = lines.map(|(_, value)| value).collect();
        Offer(Some(values.join(&b',').into()))
    }

    /// Returns whether the client offers the protocol or protocols of an Upgrade header.
    pub(super) fn includes(&self, upgrade: &[u8]) -> bool {
        let offered = self.0.as_deref().unwrap_or_default();
        list_elements(upgrade).all(|protocol| list_elements(offered).any(|offer| is_version_of(offer, protocol)))
    }
}

/// Returns whether `offer` is `protocol`, or a version of it if `protocol` has no version.
fn is_version_of(offer: &[u8], protocol: &[u8]) -> bool {
    let name = offer.split(|&byte| byte == b'/').next().unwrap_or_default();
    let offer = if protocol.contains(&b'/') { offer } else { name };
    offer.eq_ignore_ascii_case(protocol)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_protocol_is_offered_by_its_name_and_version() {
        for (offer, protocol, is_offered) in [
            ("echo", "echo", true),
            ("Echo", "eCHO", true),
            ("other, echo ,x", "echo", true),
            ("echo/2", "echo", true),
            ("echo/2", "ECHO/2", true),
            ("echo/1, echo/2", "echo/2", true),
            ("a, b/1", "b, a", true),
            ("", "echo", false),
            (",", "echo", false),
            ("other", "echo", false),
            ("echoes", "echo", false),
            ("echo", "echo/2", false),
            ("echo/1", "echo/2", false),
            ("a", "a, b", false),
        ] {
            let offered = Offer(Some(offer.as_bytes().into()));
            assert_eq!(offered.includes(protocol.as_bytes()), is_offered, "{offer:?} {protocol:?}");
        }
        assert!(!Offer::default().includes(b"echo"));
    }
}
