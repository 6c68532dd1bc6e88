//! Framing: what is a request, what is not, and that no input breaks it.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn steps(input: &[u8]) -> Vec<Step> {
    let mut parser = Parser::default();
    parser.feed(input);
    drain(&mut parser)
}

/// Every step until the parser wants more. Bounded: each step but the last uses up input.
fn drain(parser: &mut Parser) -> Vec<Step> {
    let mut steps = Vec::new();
    loop {
        match parser.step() {
            Step::More => return steps,
            step => steps.push(step),
        }
    }
}

fn request(input: &str) -> Request {
    match steps(input.as_bytes()).pop() {
        Some(Step::Request(request)) => request,
        other => panic!("{input:?} gave {other:?}"),
    }
}

fn refusal(input: &str) -> Refusal {
    match steps(input.as_bytes()).pop() {
        Some(Step::Refused(refusal)) => refusal,
        other => panic!("{input:?} gave {other:?}"),
    }
}

#[test]
fn request_with_a_body_is_read_whole() {
    let parsed = request("PATCH /vm HTTP/1.1\r\nHost: x\r\ncontent-length: 2\r\n\r\n{}");

    let expected = Request {
        method: "PATCH".to_owned(),
        path: "/vm".to_owned(),
        body: b"{}".to_vec(),
        keep_alive: true,
        wants_text: false,
        takes_chunks: true,
    };
    assert_eq!(parsed, expected);
}

#[test]
fn pipelined_requests_come_out_in_order() {
    let found = steps(
        b"GET / HTTP/1.1\r\n\r\nPUT /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET /b HTTP/1.1\r\n\r\n",
    );

    let paths: Vec<_> = found
        .iter()
        .map(|step| match step {
            Step::Request(request) => request.path.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(paths, ["/", "/a", "/b"]);
}

#[test]
fn path_is_taken_from_any_form_of_target() {
    for (target, path) in [
        ("/", "/"),
        ("/vm", "/vm"),
        ("/vm/", "/vm"),
        ("http://localhost", "/"),
        ("http://localhost/", "/"),
        ("http://localhost/vm/config", "/vm/config"),
        ("/vm?x=1", "/vm?x=1"),
    ] {
        assert_eq!(request(&format!("GET {target} HTTP/1.1\r\n\r\n")).path, path);
    }
}

#[test]
fn target_without_a_path_is_refused() {
    for target in ["*", "vm", "localhost:80"] {
        let found = refusal(&format!("OPTIONS {target} HTTP/1.1\r\n\r\n"));
        assert_eq!(found, Refusal::Target(target.to_owned()));
    }
}

#[test]
fn connection_is_kept_as_version_and_header_say() {
    for (version, header, keep) in [
        ("1.1", "", true),
        ("1.0", "", false),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive, CLOSE\r\n", false),
        ("1.1", "Connection: close, keep-alive\r\n", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.1", "Connection: upgrade\r\n", true),
    ] {
        let parsed = request(&format!("GET / HTTP/{version}\r\n{header}\r\n"));
        assert_eq!(parsed.keep_alive, keep, "{version} {header:?}");
    }
}

#[test]
fn expectation_is_answered_before_the_body_is_there() {
    let mut parser = Parser::default();
    parser.feed(b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n");

    assert_eq!(drain(&mut parser), [Step::Continue]);
    parser.feed(b"x");
    assert!(matches!(drain(&mut parser)[..], [Step::Request(_)]));
}

#[test]
fn expectation_without_a_body_or_in_http_1_0_is_passed_over() {
    for head in [
        "GET / HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        "PUT / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx",
    ] {
        assert!(matches!(steps(head.as_bytes())[..], [Step::Request(_)]));
    }
}

#[test]
fn framing_that_is_not_understood_is_refused() {
    for (header, expected) in [
        ("Transfer-Encoding: chunked", Refusal::Chunked),
        ("Transfer-Encoding: identity", Refusal::Chunked),
        ("Expect: 200-ok", Refusal::Expectation),
        ("Content-Length: ", Refusal::Length),
        ("Content-Length: -1", Refusal::Length),
        ("Content-Length: +1", Refusal::Length),
        ("Content-Length: 0x10", Refusal::Length),
        ("Content-Length: 1, 1", Refusal::Length),
        ("Content-Length: 1\r\nContent-Length: 1", Refusal::Length),
        ("Content-Length: 51201", Refusal::BodyTooLong("51201".to_owned())),
    ] {
        let found = refusal(&format!("PUT / HTTP/1.1\r\n{header}\r\n\r\nx"));
        assert_eq!(found, expected, "{header}");
    }
}

#[test]
fn length_beyond_any_integer_is_too_long_and_not_garbage() {
    let found = refusal(&format!("PUT / HTTP/1.1\r\nContent-Length: {}\r\n\r\n", "9".repeat(400)));

    assert!(matches!(found, Refusal::BodyTooLong(_)));
    assert_eq!(found.response().status, Status::PayloadTooLarge);
}

#[test]
fn longest_body_is_accepted() {
    let body = "x".repeat(MAX_BODY);

    let parsed = request(&format!("PUT / HTTP/1.1\r\nContent-Length: {MAX_BODY}\r\n\r\n{body}"));

    assert_eq!(parsed.body.len(), MAX_BODY);
}

#[test]
fn head_is_bounded_to_the_byte() {
    let head = |length: usize| {
        let frame = "GET / HTTP/1.1\r\nX: \r\n\r\n";
        format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(length - frame.len()))
    };

    assert_eq!(request(&head(MAX_HEAD)).path, "/");
    assert_eq!(refusal(&head(MAX_HEAD + 1)), Refusal::HeadTooLong);
    assert_eq!(refusal(&"\r\n".repeat(MAX_HEAD)), Refusal::HeadTooLong);
}

#[test]
fn too_many_headers_and_other_protocols_are_garbage() {
    let headers = "A: b\r\n".repeat(MAX_HEADERS + 1);
    for input in [
        format!("GET / HTTP/1.1\r\n{headers}\r\n"),
        "\u{16}\u{3}\u{1}\u{2}".to_owned(),
        "GET / HTTP/2.0\r\n\r\n".to_owned(),
        "SSH-2.0-client\r\n".to_owned(),
    ] {
        assert!(matches!(refusal(&input), Refusal::Garbage(_)), "{input:?}");
    }
}

#[test]
fn refusal_forgets_the_rest_of_the_input() {
    let found = steps(b"\x00\x00GET / HTTP/1.1\r\n\r\n");

    assert_eq!(found.len(), 1);
}

#[test]
fn answers_are_framed_by_their_length_or_by_having_none() {
    let mut output = Vec::new();

    Response::success(Some(json!({ "a": 1 }))).encode(true, &mut output);
    Response::success(None).encode(false, &mut output);

    let expected = "HTTP/1.1 200 OK\r\nServer: Tessera\r\nConnection: keep-alive\r\n\
        Content-Type: application/json\r\nContent-Length: 7\r\n\r\n{\"a\":1}\
        HTTP/1.1 204 No Content\r\nServer: Tessera\r\nConnection: close\r\n\r\n";
    assert_eq!(String::from_utf8(output).unwrap(), expected);
}

#[test]
fn quotation_cuts_between_characters() {
    let text = "\u{e9}".repeat(MAX_QUOTE + 1);

    let quoted = quote(&text);

    assert_eq!(quoted.chars().count(), MAX_QUOTE + 3);
}

/// Bytes that look like requests more often than chance would have it.
fn scraps() -> impl Strategy<Value = Vec<u8>> {
    let scrap = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..64),
        Just(b"GET / HTTP/1.1\r\n".to_vec()),
        Just(b"PUT /actions HTTP/1.1\r\n".to_vec()),
        Just(b"Content-Length: 5\r\n".to_vec()),
        Just(b"Content-Length: 18446744073709551616\r\n".to_vec()),
        Just(b"Expect: 100-continue\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Connection: close\r\n".to_vec()),
        Just(b"\r\n".to_vec()),
        Just(b"{\"action_type\":\"Stop\"}".to_vec()),
    ];
    prop::collection::vec(scrap, 0..24).prop_map(|scraps| scraps.concat())
}

proptest! {
    #[test]
    fn no_bytes_break_the_parser_and_their_cuts_do_not_matter(
        input in scraps(),
        cuts in prop::collection::vec(1_usize..40, 1..16),
    ) {
        let whole = steps(&input);
        let mut parser = Parser::default();
        let mut cut = Vec::new();
        let mut rest = &input[..];

        for length in cuts.iter().cycle() {
            let (chunk, left) = rest.split_at((*length).min(rest.len()));
            parser.feed(chunk);
            cut.extend(drain(&mut parser));
            rest = left;
            if rest.is_empty() || matches!(cut.last(), Some(Step::Refused(_))) {
                break;
            }
        }

        // After a refusal nothing counts: the connection ends.
        let end = whole.iter().position(|step| matches!(step, Step::Refused(_)));
        let whole = &whole[..end.map_or(whole.len(), |end| end + 1)];
        prop_assert_eq!(&cut[..], whole);
        prop_assert!(parser.input.len() <= MAX_HEAD + MAX_BODY);
    }
}

#[test]
fn text_is_wanted_by_who_names_it_and_not_json() {
    for (accept, wants_text) in [
        (
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            true,
        ),
        ("text/plain", true),
        ("*/*", false),
        ("application/json, text/plain", false),
    ] {
        let parsed = request(&format!("GET /metrics HTTP/1.1\r\nAccept: {accept}\r\n\r\n"));

        assert_eq!(parsed.wants_text, wants_text, "{accept}");
    }
}

#[test]
fn a_text_is_sent_as_it_is() {
    let mut output = Vec::new();

    Response::success(Some(json!("a 1\n"))).encode(true, &mut output);

    let text = String::from_utf8(output).unwrap();
    assert!(text.contains("Content-Type: text/plain; version=0.0.4\r\n"), "{text}");
    assert!(text.ends_with("\r\n\r\na 1\n"), "{text}");
}
