//! Responses with which a connection leaves HTTP, and their refusals.

use http::StatusCode;

use super::response::{self, Body, Response};
use super::session::Session;
use crate::http1;

impl Response {
    /// Creates a 101 (Switching Protocols) response: the connection continues with `session`, in the protocol of this
    /// name, which the client must have offered in the Upgrade header.
    ///
    /// A request without `Connection: upgrade` and an Upgrade header, or in HTTP/1.0, is answered with 426 (Upgrade
    /// Required) instead, and the connection closes. A request whose body has not been read is answered with 400, and
    /// one during a graceful shutdown with 503.
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
    /// that the client has named.
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
