//! HTTP/1.1 framing without I/O: bytes in, requests out; responses in, bytes out.
//!
//! The subset is what an API on a local socket needs: keep-alive, pipelining, `Content-Length`
//! bodies, `Expect: 100-continue`. References: RFC 9110 (semantics), RFC 9112 (framing).

use serde_json::Value;

use super::model::Fault;
use crate::prometheus;

/// The longest request line and headers together. Ours need some hundred bytes; 8 KiB is what
/// common servers accept, so no client library sends more unasked.
pub(crate) const MAX_HEAD: usize = 8 << 10;

/// The longest body: Firecracker's own default (`--http-api-max-payload-size`), so that a client
/// meets the same bound here.
pub const MAX_BODY: usize = 51_200;

/// The most headers of one request; they are parsed into an array on the stack. Clients send
/// about five, proxies ten more.
const MAX_HEADERS: usize = 64;

/// The longest piece of a request that is quoted back in an error, in characters: enough to
/// recognise it, too little to make an answer large.
const MAX_QUOTE: usize = 256;

const JSON: &str = "application/json";

/// A JSON object on each line.
const NDJSON: &str = "application/x-ndjson";

/// The interim answer to `Expect: 100-continue`.
pub(crate) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// One request, complete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The method as sent: methods are case-sensitive.
    pub(crate) method: String,
    /// The absolute path, without a trailing slash.
    pub(crate) path: String,
    pub(crate) body: Vec<u8>,
    /// The client wants to send another request on this connection.
    pub(crate) keep_alive: bool,
    /// The client accepts plain text and does not name JSON, as Prometheus does.
    pub(crate) wants_text: bool,
    /// The client speaks HTTP/1.1: it knows a body in chunks.
    pub(crate) takes_chunks: bool,
}

/// Bytes that are not a request. The connection ends after the answer, because where the next
/// request would begin is unknown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this is not an HTTP/1.1 request ({0})")]
    Garbage(httparse::Error),
    #[error("the request line and headers are longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    #[error(
        "the request target {0:?} is not a path; send a path such as /vm, or http://localhost/vm"
    )]
    Target(String),
    #[error("Content-Length is not one decimal number")]
    Length,
    #[error("Transfer-Encoding is not supported; send the body whole, with Content-Length")]
    Chunked,
    #[error("the only expectation understood is \"Expect: 100-continue\"")]
    Expectation,
    #[error("the body has {0} bytes, more than the {MAX_BODY} accepted")]
    BodyTooLong(String),
}

impl Refusal {
    /// The answer to the client.
    pub(crate) fn response(&self) -> Response {
        let status = match self {
            Self::BodyTooLong(_) => Status::PayloadTooLarge,
            _ => Status::BadRequest,
        };
        Response::fault(status, self.to_string())
    }
}

/// What the parser has to say about the bytes fed so far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// They end within a request, or are used up: feed more.
    More,
    /// The client waits for [`CONTINUE`] before it sends its body.
    Continue,
    /// The next request.
    Request(Request),
    /// They are no request. The rest of the input is forgotten.
    Refused(Refusal),
}

/// Cuts a stream of bytes into requests.
///
/// It holds at most [`MAX_HEAD`] + [`MAX_BODY`] bytes and what was fed last, as long as the caller
/// feeds only after [`Step::More`].
#[derive(Debug, Default)]
pub(crate) struct Parser {
    input: Vec<u8>,
    /// A request whose body has not arrived.
    head: Option<Head>,
}

#[derive(Debug)]
struct Head {
    request: Request,
    body_length: usize,
    expects_continue: bool,
}

impl Parser {
    /// Takes over more bytes from the client.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
    }

    /// The next step. Call again until it is [`Step::More`].
    pub(crate) fn step(&mut self) -> Step {
        if self.head.is_none() {
            match parse_head(&self.input) {
                Ok(None) => return Step::More,
                Ok(Some((length, head))) => {
                    self.consume(length);
                    let expects_continue = head.expects_continue;
                    self.head = Some(head);
                    // Sent even if the body is here already: the answer then does not depend on
                    // how the bytes happened to be cut.
                    if expects_continue {
                        return Step::Continue;
                    }
                }
                Err(refusal) => {
                    self.input = Vec::new();
                    return Step::Refused(refusal);
                }
            }
        }
        let available = self.input.len();
        match self.head.take_if(|head| head.body_length <= available) {
            None => Step::More,
            Some(Head { mut request, body_length, .. }) => {
                request.body = self.input[..body_length].to_vec();
                self.consume(body_length);
                Step::Request(request)
            }
        }
    }

    /// Bytes of memory held for input.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.input.capacity()
    }

    fn consume(&mut self, length: usize) {
        self.input.drain(..length);
        if self.input.is_empty() {
            // An idle connection keeps no memory of its last large request.
            self.input = Vec::new();
        }
    }
}

/// The head at the start of `input` and its length, if it is there whole.
fn parse_head(input: &[u8]) -> Result<Option<(usize, Head)>, Refusal> {
    let window = &input[..input.len().min(MAX_HEAD)];
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(window).map_err(Refusal::Garbage)? {
        httparse::Status::Partial if window.len() == MAX_HEAD => Err(Refusal::HeadTooLong),
        httparse::Status::Partial => Ok(None),
        httparse::Status::Complete(length) => {
            let target = parsed.path.unwrap_or_default();
            let framing = Framing::read(parsed.headers)?;
            let keep_alive = framing.keep_alive.unwrap_or(parsed.version == Some(1));
            let head = Head {
                request: Request {
                    method: parsed.method.unwrap_or_default().to_owned(),
                    path: path_of(target).ok_or_else(|| Refusal::Target(quote(target)))?,
                    body: Vec::new(),
                    keep_alive,
                    wants_text: framing.wants_text,
                    takes_chunks: parsed.version == Some(1),
                },
                body_length: framing.body_length,
                // A client of HTTP/1.0 does not know interim answers (RFC 9110, 10.1.1).
                expects_continue: framing.expects_continue
                    && framing.body_length > 0
                    && parsed.version == Some(1),
            };
            Ok(Some((length, head)))
        }
    }
}

/// What the headers say about where the body ends, what follows it, and what is wanted.
#[derive(Default)]
struct Framing {
    wants_text: bool,
    body_length: usize,
    expects_continue: bool,
    keep_alive: Option<bool>,
}

impl Framing {
    fn read(headers: &[httparse::Header<'_>]) -> Result<Self, Refusal> {
        let mut framing = Self::default();
        let mut lengths = 0;
        for header in headers {
            let value = header.value.trim_ascii();
            if header.name.eq_ignore_ascii_case("content-length") {
                lengths += 1;
                framing.body_length = body_length(value)?;
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                return Err(Refusal::Chunked);
            } else if header.name.eq_ignore_ascii_case("expect") {
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Refusal::Expectation);
                }
                framing.expects_continue = true;
            } else if header.name.eq_ignore_ascii_case("accept") {
                let names = |kind: &str| String::from_utf8_lossy(value).contains(kind);
                framing.wants_text = names("text/plain") && !names(JSON);
            } else if header.name.eq_ignore_ascii_case("connection") {
                framing.note_connection(value);
            }
        }
        // Two lengths, even equal ones, are a sign of a confused or hostile sender
        // (RFC 9112, 6.3, item 5).
        if lengths > 1 {
            return Err(Refusal::Length);
        }
        Ok(framing)
    }

    fn note_connection(&mut self, value: &[u8]) {
        for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
            if token.eq_ignore_ascii_case(b"close") {
                self.keep_alive = Some(false);
            } else if token.eq_ignore_ascii_case(b"keep-alive") {
                // "close" wins wherever it stands (RFC 9112, 9.3).
                self.keep_alive.get_or_insert(true);
            }
        }
    }
}

/// A `Content-Length` within the bound.
fn body_length(value: &[u8]) -> Result<usize, Refusal> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::Length);
    }
    let text = String::from_utf8_lossy(value);
    // A number too large for usize is too large all the same.
    match text.parse::<usize>() {
        Ok(length) if length <= MAX_BODY => Ok(length),
        _ => Err(Refusal::BodyTooLong(quote(&text))),
    }
}

/// The path of a request target in origin or absolute form (RFC 9112, 3.2).
fn path_of(target: &str) -> Option<String> {
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    if !path.starts_with('/') {
        return None;
    }
    Some(match path.strip_suffix('/') {
        Some(trimmed) if !trimmed.is_empty() => trimmed.to_owned(),
        _ => path.to_owned(),
    })
}

/// As much of a client's text as an error message repeats.
pub(crate) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTE) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text.to_owned(),
    }
}

/// The status codes the server uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    NoContent,
    BadRequest,
    PayloadTooLarge,
    InternalServerError,
    ServiceUnavailable,
}

impl Status {
    #[cfg(test)]
    pub(crate) fn code(self) -> u16 {
        self.line()[..3].parse().unwrap_or_default()
    }

    fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::NoContent => "204 No Content",
            Self::BadRequest => "400 Bad Request",
            Self::PayloadTooLarge => "413 Payload Too Large",
            Self::InternalServerError => "500 Internal Server Error",
            Self::ServiceUnavailable => "503 Service Unavailable",
        }
    }
}

/// One answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Response {
    pub(crate) status: Status,
    pub(crate) body: Option<Value>,
}

impl Response {
    /// 200 with a body, or 204 without one.
    pub(crate) fn success(body: Option<Value>) -> Self {
        let status = match body {
            Some(_) => Status::Ok,
            None => Status::NoContent,
        };
        Self { status, body }
    }

    /// An error in Firecracker's form.
    pub(crate) fn fault(status: Status, fault_message: String) -> Self {
        let fault = Fault { fault_message };
        Self { status, body: serde_json::to_value(fault).ok() }
    }

    /// Appends the answer to `output`; a body that is a mere string is plain text. Without `keep_alive` the
    /// client learns that no other answer follows.
    pub(crate) fn encode(&self, keep_alive: bool, output: &mut Vec<u8>) {
        let mut head = first_lines(self.status, keep_alive);
        let body = self.body.as_ref().map(|body| match body {
            Value::String(text) => (prometheus::CONTENT_TYPE, text.clone()),
            json => (JSON, json.to_string()),
        });
        if let Some((kind, body)) = &body {
            let length = body.len();
            head.push_str(&format!("Content-Type: {kind}\r\n"));
            head.push_str(&format!("Content-Length: {length}\r\n"));
        }
        head.push_str("\r\n");
        output.extend_from_slice(head.as_bytes());
        output.extend_from_slice(body.map_or(String::new(), |(_, text)| text).as_bytes());
    }
}

/// What the head of every answer begins with.
fn first_lines(status: Status, keep_alive: bool) -> String {
    let connection = if keep_alive { "keep-alive" } else { "close" };
    let line = status.line();
    format!("HTTP/1.1 {line}\r\nServer: Tessera\r\nConnection: {connection}\r\n")
}

/// The head of an answer whose body goes on until the connection ends (RFC 9112, 6.3).
pub(crate) fn stream_head(chunked: bool) -> String {
    let framing = if chunked { "Transfer-Encoding: chunked\r\n" } else { "" };
    let first = first_lines(Status::Ok, false);
    format!("{first}Content-Type: {NDJSON}\r\n{framing}\r\n")
}

/// Appends a piece of such a body to `output`; an empty one is its end.
pub(crate) fn push_piece(chunked: bool, piece: &str, output: &mut Vec<u8>) {
    if chunked {
        output.extend_from_slice(format!("{:x}\r\n{piece}\r\n", piece.len()).as_bytes());
    } else {
        output.extend_from_slice(piece.as_bytes());
    }
}

#[cfg(test)]
mod tests;
