//! Any bytes on the control socket, and any body of each request.
#![allow(clippy::unwrap_used)]

use serde_json::Value;

use super::fake::FakeVm;
use super::http::{Parser, Request, Step};
use super::model::State;
use super::routes::{self, Answer, ROUTES};

/// A VM that has not started, or runs.
fn vm(running: bool) -> FakeVm {
    let state = if running { State::Running } else { State::NotStarted };
    FakeVm { state, ..FakeVm::default() }
}

/// A stream of requests, in pieces of a length: how it is cut makes no difference.
pub(crate) fn requests(data: &[u8]) {
    let (&options, stream) = data.split_first().unwrap_or((&0, data));
    let steps = steps(stream, stream.len().max(1));
    let piece = usize::from(options >> 1).max(1);
    assert_eq!(self::steps(stream, piece), steps, "in pieces of {piece}");
    let mut vm = vm(options & 1 != 0);
    for step in steps {
        match step {
            Step::Request(request) => answer(&mut vm, &request),
            Step::Refused(refusal) => {
                let mut output = Vec::new();
                refusal.response().encode(false, &mut output);
                check_response(&output);
            }
            Step::More | Step::Continue => {}
        }
    }
}

/// What the parser makes of a stream, up to what is no request.
fn steps(stream: &[u8], piece: usize) -> Vec<Step> {
    let mut parser = Parser::default();
    let mut steps = Vec::new();
    for piece in stream.chunks(piece) {
        parser.feed(piece);
        loop {
            match parser.step() {
                Step::More => break,
                refused @ Step::Refused(_) => {
                    steps.push(refused);
                    return steps;
                }
                step => steps.push(step),
            }
        }
    }
    steps
}

fn answer(vm: &mut FakeVm, request: &Request) {
    let Answer::Response(response) = routes::answer(vm, request) else { return };
    let mut output = Vec::new();
    response.encode(request.keep_alive, &mut output);
    check_response(&output);
}

/// Checks that an answer is one response of HTTP with the body that it announces.
fn check_response(output: &[u8]) {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(output).unwrap() else {
        panic!("the head of an answer is cut short")
    };
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name == name);
        header.map(|header| std::str::from_utf8(header.value).unwrap())
    };
    let body = &output[head..];
    assert_eq!(header("Content-Length").map_or(0, |length| length.parse().unwrap()), body.len());
    if header("Content-Type") == Some("application/json") {
        serde_json::from_slice::<Value>(body).unwrap();
    }
}

/// A body of one of the requests: its number, the state of the VM, the end of the path, the body.
pub(crate) fn bodies(data: &[u8]) {
    let [route, options, rest @ ..] = data else { return };
    let route = &ROUTES[usize::from(*route) % ROUTES.len()];
    let (name, body) = match route.path.contains('{') {
        true => rest.split_at(rest.iter().position(|byte| *byte == b'\n').unwrap_or(0)),
        false => (&[][..], rest),
    };
    let before = route.path.split('{').next().unwrap_or_default();
    let request = Request {
        method: route.method.to_owned(),
        path: format!("{before}{}", String::from_utf8_lossy(name)),
        body: body.to_vec(),
        keep_alive: true,
        wants_text: options & 2 != 0,
        takes_chunks: true,
    };
    answer(&mut vm(options & 1 != 0), &request);
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    let requests: [&[u8]; 8] = [
        b"GET / HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\nAccept: text/plain\r\n\r\n",
        b"PATCH /vm HTTP/1.1\r\nContent-Length: 18\r\n\r\n{\"state\":\"Paused\"}GET / HTTP/1.0\r\n\r\n",
        b"PUT /actions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 31\r\n\r\n{\"action_type\":\"InstanceStart\"}\n",
        b"PUT /balloon HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://localhost/vm/config/ HTTP/1.1\r\nConnection: keep-alive, close\r\n\r\n",
        b"DELETE /drives/root HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        b"GET /events HTTP/1.1\r\n\r\n",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ];
    requests.iter().map(|request| [&[41], *request].concat()).collect()
}

pub(crate) fn body_seeds() -> Vec<Vec<u8>> {
    let bodies = [
        ("PATCH", "/balloon", r#"{"amount_mib": 10, "free_page_reporting": false}"#),
        ("PATCH", "/balloon/statistics", r#"{"stats_polling_interval_s": 2}"#),
        ("PATCH", "/drives/{drive_id}", "root\n{\"drive_id\": \"root\", \"path_on_host\": \"/a\"}"),
        (
            "PUT",
            "/drives/{drive_id}",
            "a\n{\"drive_id\": \"a\", \"path_on_host\": \"/a\", \"is_root_device\": false}",
        ),
        (
            "PUT",
            "/network-interfaces/{iface_id}",
            "eth0\n{\"iface_id\": \"eth0\", \"host_dev_name\": \"tap0\", \"guest_mac\": \"02:00:00:00:00:01\"}",
        ),
        (
            "PATCH",
            "/network-interfaces/{iface_id}",
            "eth0\n{\"iface_id\": \"eth0\", \"rx_rate_limiter\": {\"ops\": {\"size\": 1, \"refill_time\": 9}}}",
        ),
        ("PUT", "/boot-source", r#"{"kernel_image_path": "/k", "boot_args": "quiet"}"#),
        ("PUT", "/machine-config", r#"{"vcpu_count": 2, "mem_size_mib": 256, "huge_pages": "2M"}"#),
        ("PATCH", "/machine-config", r#"{"vcpu_count": 4, "track_dirty_pages": true}"#),
        ("PUT", "/vsock", r#"{"guest_cid": 3, "uds_path": "/tmp/v"}"#),
        ("PUT", "/balloon", r#"{"amount_mib": 0, "deflate_on_oom": true}"#),
        ("PUT", "/entropy", r#"{"rate_limiter": {"bandwidth": {"size": 9, "refill_time": 1}}}"#),
        ("PUT", "/serial", r#"{"target": "file:/tmp/s"}"#),
        ("PUT", "/logger", r#"{"log_path": "/tmp/l", "level": "Info"}"#),
        ("PUT", "/metrics", r#"{"metrics_path": "/tmp/m"}"#),
        ("PUT", "/mte", r#"{"mode": "require"}"#),
        ("PUT", "/tag-storage", r#"{"mode": "demand", "on_exhausted": "pause"}"#),
        (
            "PUT",
            "/snapshot/create",
            r#"{"snapshot_path": "/s", "mem_file_path": "/m", "snapshot_type": "Full"}"#,
        ),
        ("PUT", "/snapshot/confirm", r#"{"id": "00000000000000000000000000000000"}"#),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "/s", "mem_backend": {"backend_type": "File", "backend_path": "/m"}, "resume_vm": true}"#,
        ),
        ("PATCH", "/vm", r#"{"state": "Resumed"}"#),
        ("PUT", "/actions", r#"{"action_type": "SendCtrlAltDel"}"#),
    ];
    bodies
        .iter()
        .flat_map(|(method, path, body)| {
            let is = |route: &routes::Route| route.method == *method && route.path == *path;
            let route = ROUTES.iter().position(is).unwrap() as u8;
            [0, 1].map(|options| [&[route, options], body.as_bytes()].concat())
        })
        .collect()
}
