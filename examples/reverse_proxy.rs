//! A reverse proxy: forwards all requests to one upstream server, and streams both directions.
//!
//!     cargo run --example reverse_proxy 127.0.0.1:8888 http://127.0.0.1:9000
//!     curl -i http://127.0.0.1:8888/
//!
//! The upstream learns the address of the client from Forwarded (RFC 7239) and X-Forwarded-For, -Proto and -Host. Those of the
//! client itself are removed, since anyone can send them. An upstream that cannot be reached gives 502, and one that does not
//! respond in time 504.
//!
//! The upstream may be `https://host[:port]`; its certificate must be signed by an authority that the system trusts, or by one
//! in a PEM file. The third argument is the time limit for responses in seconds, and the fourth this file:
//!
//!     cargo run --example reverse_proxy 127.0.0.1:8888 https://localhost:8443 60 ca.pem

use std::error::Error;
use std::net::TcpListener;
use std::time::Duration;

use serverd::tls::ClientTls;
use serverd::{
    BodyMode, Client, ClientLimits, ClientRequest, DefaultLoop, Handler, HttpServer, Request, RequestHead, Response,
    StatusCode, Upstream,
};

/// Maximum size of a request body in bytes.
const BODY_BYTES_MAX: u64 = 1 << 30;

struct Proxy {
    client: Client,
    upstream: Upstream,
}

impl Proxy {
    /// Returns the request to the upstream, without its body.
    fn request(&self, head: &RequestHead<'_>) -> ClientRequest {
        self.client.forward(head, &self.upstream).forwarded_headers(head)
    }

    /// Returns the response to a request that is not forwarded: tunnels lead anywhere, and TRACE shows the headers that
    /// other programs have added.
    fn refusal(head: &RequestHead<'_>) -> Option<Response> {
        let is_refused = matches!(head.method(), "CONNECT" | "TRACE");
        is_refused.then(|| {
            Response::from(StatusCode::METHOD_NOT_ALLOWED)
                .header("Allow", "GET, HEAD, OPTIONS, POST, PUT, PATCH, DELETE")
        })
    }
}

impl Handler for Proxy {
    /// Forwards a request with a body, which is read only as fast as the upstream takes it.
    fn head(&mut self, head: &RequestHead<'_>) -> BodyMode {
        if let Some(refusal) = Proxy::refusal(head) {
            return BodyMode::Reject(refusal);
        }
        let request = self.request(head);
        BodyMode::read(BODY_BYTES_MAX, move |body, responder| request.body_reader(body).respond_to(responder))
    }

    fn call(&mut self, request: &Request<'_>) -> Response {
        Proxy::refusal(request).unwrap_or_else(|| self.request(request).respond())
    }
}

/// Returns a client with TLS if the upstream needs it.
fn client(limits: ClientLimits, upstream: &str, authorities: Option<String>) -> Result<Client, Box<dyn Error>> {
    let client = Client::with_limits(limits);
    if !upstream.to_ascii_lowercase().starts_with("https:") {
        return Ok(client);
    }
    let tls = match authorities {
        Some(path) => ClientTls::with_roots(&std::fs::read(path)?)?,
        None => ClientTls::system_roots()?,
    };
    Ok(client.tls(&tls))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let address = args.next().unwrap_or_else(|| "127.0.0.1:8888".into());
    let upstream = args.next().unwrap_or_else(|| "http://127.0.0.1:9000".into());
    let seconds: f64 = args.next().unwrap_or_else(|| "60".into()).parse()?;
    let limits = ClientLimits::default()
        .connect_timeout(Duration::from_secs(5))
        .response_timeout(Duration::try_from_secs_f64(seconds)?);
    let proxy = Proxy { client: client(limits, &upstream, args.next())?, upstream: upstream.parse()? };
    let listener = TcpListener::bind(address)?;
    println!("listening on http://{}", listener.local_addr()?);
    DefaultLoop::new(listener, None, HttpServer::with(proxy))?.run()?;
    Ok(())
}
