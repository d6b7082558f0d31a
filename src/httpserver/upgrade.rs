//! Responses with which a connection leaves HTTP, and their refusals.

use http::StatusCode;

use super::headers;
use super::offer::Offer;
use super::response::{self, Body, Response};
use super::session::Session;
use crate::http1::{self, ReplyContext};

impl Response {
    /// Creates a 101 (Switching Protocols) response: the connection continues with `session`, in the protocol of this
    /// name, which the client must have offered in the Upgrade header (RFC 9110 section 7.8).
    ///
    /// A request that does not offer it is answered with 426 (Upgrade Required) instead, which names the protocol, and
    /// the connection closes. So is a request without `Connection: upgrade`, or in HTTP/1.0. Names are compared ignoring
    /// case. A `protocol` without a version, such as `echo`, is offered by each version of it, such as `echo/2`; one
    /// with a version only by the same version. If `protocol` is a list of protocols, all of them must be offered.
    ///
    /// A request whose body has not been read is answered with 400, and one during a graceful shutdown with 503.
    pub fn upgrade(protocol: &str, session: impl Session + 'static) -> Self {
        if protocol.is_empty() || !http1::is_header_value(protocol.as_bytes()) {
            log::error!("replaced a handler's response with 500: invalid protocol {protocol:?}");
            return response::internal_error();
        }
        let headers = format!("Upgrade: {protocol}\r\nConnection: Upgrade\r\n").into_bytes();
        let body = Body::Session(Box::new(session));
        Response { headers, body, ..Response::new(StatusCode::SWITCHING_PROTOCOLS) }
    }

    /// Creates a 200 (OK) response to CONNECT: the connection continues with `session`, usually as a tunnel to the host
    /// that the client has named. The end of one direction cannot be passed on while the other continues; see [`Session`].
    ///
    /// Handlers get CONNECT requests only if they handle all methods; see
    /// [`HttpServer::with`](crate::HttpServer::with). A request with another method is answered with 500. Any other
    /// response to CONNECT closes the connection.
    pub fn tunnel(session: impl Session + 'static) -> Self {
        Response { body: Body::Session(Box::new(session)), ..Response::new(StatusCode::OK) }
    }

    /// Returns the response to a request that cannot continue with the session of this response. The connection closes.
    pub(super) fn refuse_session(self, is_draining: bool, is_unread: bool) -> Self {
        if is_draining {
            return Response::error(StatusCode::SERVICE_UNAVAILABLE, "shutting down\n").close();
        }
        if self.status != StatusCode::SWITCHING_PROTOCOLS {
            log::error!("a tunnel was returned for a request that is not CONNECT; replied 500");
            return response::internal_error().close();
        }
        if is_unread {
            return Response::error(StatusCode::BAD_REQUEST, "an upgrade must not have a body\n").close();
        }
        let mut refusal = Response::error(StatusCode::UPGRADE_REQUIRED, "an upgrade of the protocol is required\n");
        refusal.headers.extend_from_slice(&self.headers);
        refusal.close()
    }
}

impl Offer {
    /// Applies the offer to the response: keeps it in a deferred one, and returns the context that an upgrade to another
    /// protocol, which must not be sent (RFC 9110 section 7.8), does not have.
    pub(super) fn apply(self, reply: ReplyContext, response: &mut Response) -> ReplyContext {
        if let Body::Deferred(pending) = &mut response.body {
            pending.offer = self;
        } else if matches!(response.body, Body::Session(_))
            && !response.upgrades().all(|upgrade| self.includes(upgrade))
        {
            return reply.without_upgrade();
        }
        reply
    }
}

impl Response {
    /// Returns the values of Upgrade.
    fn upgrades(&self) -> impl Iterator<Item = &[u8]> {
        let lines = self.headers.split(|&byte| byte == b'\n');
        lines.filter(|line| headers::is_line_of(line, "upgrade")).map(|line| line["upgrade:".len()..].trim_ascii())
    }
}
