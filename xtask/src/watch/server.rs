//! What is answered to a browser: a fixed list of paths, to requests for this machine's own addresses alone. A page from
//! elsewhere can make a browser send requests here, and can give its own name this address (DNS rebinding); it still
//! cannot name `localhost` as the host that it asks.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use oxhttp::Server;
use oxhttp::model::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HOST, HeaderName, HeaderValue,
    REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use oxhttp::model::{Body, Method, Request, Response, StatusCode};

use super::curves::QUANTITIES;
use super::view::View;

const PAGE: &str = include_str!("page.html");
const SCRIPT: &str = include_str!("page.js");
const STYLE: &str = include_str!("page.css");

/// Largest number of connections at a time.
const CONNECTIONS: usize = 64;
/// The port if none is asked for and this one is free.
const PORT: u16 = 8737;

/// The page may load what is on this list, and nothing else; no other page may show it in a frame.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
     connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// The report has a policy of its own inside; this one keeps other pages from showing it.
const REPORT_POLICY: &str = "frame-ancestors 'self'";
/// A picture has a style, and loads nothing.
const PICTURE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
const NOTHING: &str = "default-src 'none'; frame-ancestors 'none'";

/// The port to listen on: the one that is asked for, or a free one.
pub(super) fn port(asked: Option<u16>) -> Result<u16> {
    let free = |port: u16| {
        let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        bound
            .and_then(|bound| bound.local_addr())
            .map(|at| at.port())
    };
    match asked {
        Some(port) => free(port).with_context(|| format!("--port {port}")),
        None => free(PORT)
            .or_else(|_| free(0))
            .context("looking for a free port"),
    }
}

/// Answers requests on a port of the loopback address until the process ends.
pub(super) fn serve(port: u16, view: Arc<Mutex<View>>) -> Result<()> {
    let hosts = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let server = Server::new(move |request| {
        let view = view.lock().unwrap_or_else(PoisonError::into_inner);
        answer(request, &hosts, &view)
    });
    let server = server.with_max_concurrent_connections(CONNECTIONS);
    let spawned = server.bind((Ipv4Addr::LOCALHOST, port)).spawn();
    spawned.with_context(|| format!("listening on port {port}"))?;
    Ok(())
}

fn answer(request: &Request<Body>, hosts: &[String; 2], view: &View) -> Response<Body> {
    let mut host = request.headers().get_all(HOST).iter();
    let named = host
        .next()
        .is_some_and(|host| hosts.iter().any(|ours| host == ours.as_str()));
    if !named || host.next().is_some() {
        let text = format!(
            "This page is at http://{}/ and at no other address.\n",
            hosts[0]
        );
        return reply(StatusCode::FORBIDDEN, TEXT, NOTHING, text);
    }
    let head = request.method() == Method::HEAD;
    if !head && request.method() != Method::GET {
        let text = "Only GET and HEAD are answered.\n";
        let mut refused = reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, NOTHING, text);
        refused
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    let found = find(request.uri().path(), view);
    match head {
        true => found.map(|_| Body::empty()),
        false => found,
    }
}

const TEXT: &str = "text/plain; charset=utf-8";

fn find(path: &str, view: &View) -> Response<Body> {
    let ok = |kind, policy, body: Body| reply(StatusCode::OK, kind, policy, body);
    match path {
        "/" => ok("text/html; charset=utf-8", PAGE_POLICY, PAGE.into()),
        "/page.js" => ok("text/javascript; charset=utf-8", NOTHING, SCRIPT.into()),
        "/page.css" => ok("text/css; charset=utf-8", NOTHING, STYLE.into()),
        "/state" => ok("application/json", NOTHING, view.state().to_string().into()),
        "/report.html" => match &view.report {
            Some(report) => ok(
                "text/html; charset=utf-8",
                REPORT_POLICY,
                report.html.clone().into(),
            ),
            None => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                NOTHING,
                "There is no report yet.\n",
            ),
        },
        path => match QUANTITIES.iter().find(|quantity| quantity.path == path) {
            Some(quantity) => {
                let picture = quantity.picture(&view.progress.records);
                ok("image/svg+xml", PICTURE_POLICY, picture.into())
            }
            None => reply(
                StatusCode::NOT_FOUND,
                TEXT,
                NOTHING,
                "There is nothing here.\n",
            ),
        },
    }
}

fn reply(
    status: StatusCode,
    kind: &'static str,
    policy: &'static str,
    body: impl Into<Body>,
) -> Response<Body> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let headers = [
        (CONTENT_TYPE, kind),
        (CONTENT_SECURITY_POLICY, policy),
        (CACHE_CONTROL, "no-store"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
        (
            HeaderName::from_static("cross-origin-resource-policy"),
            "same-origin",
        ),
        (
            HeaderName::from_static("cross-origin-opener-policy"),
            "same-origin",
        ),
    ];
    for (name, value) in headers {
        response
            .headers_mut()
            .insert(name, HeaderValue::from_static(value));
    }
    response
}
