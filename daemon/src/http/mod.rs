//! The local API: requests, responses, and which handler a path belongs to. No socket in this file.

pub mod client;
mod server;
mod socket;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
pub use hyper::header::{HeaderName, HeaderValue};
pub use hyper::{Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use server::{Limits, ServeError, Server, serve, serve_on};

/// A request, read to its end.
#[derive(Clone, Debug)]
pub struct Request {
    /// GET, POST, DELETE, ...
    pub method: Method,
    /// The path, as it was sent, without the query.
    pub path: String,
    /// The query's pairs, percent-decoded; a key without `=` has an empty value.
    pub query: BTreeMap<String, String>,
    /// What the `{name}` segments of the route stand for, percent-decoded.
    pub captures: BTreeMap<&'static str, String>,
    /// The `Accept` header, or nothing.
    pub accept: String,
    /// The body; empty if there was none.
    pub body: Bytes,
}

impl Request {
    /// What `{name}` stands for.
    ///
    /// # Panics
    /// Panics if the route has no `{name}`, a mistake of the one who wrote both.
    pub fn capture(&self, name: &str) -> &str {
        self.captures.get(name).unwrap_or_else(|| panic!("the route has no {{{name}}}"))
    }

    /// A flag of the query: `?verbose`, `?verbose=true`, `?verbose=1`.
    pub fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|value| matches!(value.as_str(), "" | "1" | "true"))
    }

    /// The body as JSON; if it is none, the response to give.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Response> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Response::error(StatusCode::BAD_REQUEST, format!("the body: {error}")))
    }
}

/// A response, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// How it went.
    pub status: StatusCode,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// 200 and plain text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::of("text/plain; charset=utf-8", Bytes::from(text.into()))
    }

    /// 200 and a value as JSON.
    pub fn json(value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self::of("application/json", body.into()),
            Err(error) => Self::error(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        }
    }

    /// A failure: one line for a person.
    pub fn error(status: StatusCode, line: impl fmt::Display) -> Self {
        Self { status, ..Self::text(format!("{line}\n")) }
    }

    /// 200 and this body.
    pub fn of(content_type: &'static str, body: Bytes) -> Self {
        Self { status: StatusCode::OK, content_type, headers: Vec::new(), body }
    }

    /// The same with a header more. `name` is in small letters.
    pub fn with_header(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.push((HeaderName::from_static(name), value));
        self
    }

    /// The same with another status.
    pub fn with_status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    fn into_hyper(self) -> hyper::Response<Full<Bytes>> {
        let mut response = hyper::Response::new(Full::new(self.body));
        *response.status_mut() = self.status;
        let content_type = hyper::header::HeaderValue::from_static(self.content_type);
        response.headers_mut().insert(hyper::header::CONTENT_TYPE, content_type);
        response.headers_mut().extend(self.headers);
        response
    }
}

type Handler = Arc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response> + Send>> + Send + Sync + 'static>;

/// Which handler a method and a path belong to.
#[derive(Clone, Default)]
pub struct Router {
    routes: Vec<Route>,
    rest: Option<Handler>,
}

#[derive(Clone)]
struct Route {
    method: Method,
    /// `/leases/{subnet}`: the segments between the slashes.
    segments: Vec<&'static str>,
    handler: Handler,
}

impl Router {
    /// A router that knows nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Answers GET (and HEAD) of a path. A segment `{name}` stands for any text without a slash.
    pub fn get<F, A>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::GET, path, handler)
    }

    /// Answers POST of a path.
    pub fn post<F, A>(self, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        self.route(Method::POST, path, handler)
    }

    /// Answers any method of a path. Of two routes that fit, the first counts.
    pub fn route<F, A>(mut self, method: Method, path: &'static str, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        let handler: Handler = Arc::new(move |request| Box::pin(handler(request)));
        self.routes.push(Route { method, segments: segments(path).collect(), handler });
        self
    }

    /// Answers whatever no route fits, whichever its method.
    pub fn rest<F, A>(self, handler: F) -> Self
    where
        F: Fn(Request) -> A + Send + Sync + 'static,
        A: Future<Output = Response> + Send + 'static,
    {
        Self { rest: Some(Arc::new(move |request| Box::pin(handler(request)))), ..self }
    }

    /// All routes of both; those of `self` count first.
    pub fn merge(mut self, other: Router) -> Self {
        self.routes.extend(other.routes);
        self.rest = self.rest.or(other.rest);
        self
    }

    /// Runs the handler, or says why there is none.
    pub async fn answer(&self, mut request: Request) -> Response {
        // A HEAD is a GET whose body hyper leaves out.
        let method = if request.method == Method::HEAD { Method::GET } else { request.method.clone() };
        let fitting = self.routes.iter().filter_map(|route| Some((route, route.captures(&request.path)?)));
        let mut other_methods = Vec::new();
        for (route, captures) in fitting {
            if route.method == method {
                request.captures = captures;
                return (route.handler)(request).await;
            }
            other_methods.push(route.method.as_str());
        }
        if let Some(rest) = &self.rest {
            return rest(request).await;
        }
        if other_methods.is_empty() {
            return Response::error(StatusCode::NOT_FOUND, format!("nothing is at `{}`", request.path));
        }
        let (path, methods) = (&request.path, other_methods.join(" and "));
        Response::error(StatusCode::METHOD_NOT_ALLOWED, format!("`{path}` takes {methods}, not {method}"))
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes =
            self.routes.iter().map(|route| format!("{} /{}", route.method, route.segments.join("/")));
        f.debug_list().entries(routes).finish()
    }
}

impl Route {
    fn captures(&self, path: &str) -> Option<BTreeMap<&'static str, String>> {
        let mut captures = BTreeMap::new();
        let mut sent = segments(path);
        for segment in &self.segments {
            let text = sent.next()?;
            match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
                Some(name) => drop(captures.insert(name, percent_decoded(text, false)?)),
                None if *segment == text => {}
                None => return None,
            }
        }
        sent.next().is_none().then_some(captures)
    }
}

fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.strip_prefix('/').unwrap_or(path).split('/')
}

/// The pairs of `a=1&b=x%20y&c`; a pair that does not decode is left out.
fn parse_query(query: &str) -> BTreeMap<String, String> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).filter_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        Some((percent_decoded(key, true)?, percent_decoded(value, true)?))
    });
    pairs.collect()
}

/// `%41` as `A` (RFC 3986, 2.1), and in queries `+` as a space. Not UTF-8, or no two hex digits: `None`.
fn percent_decoded(text: &str, plus_is_space: bool) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit()?, digit()?);
                u8::try_from(high << 4 | low).ok()?
            }
            b'+' if plus_is_space => b' ',
            plain => plain,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, target: &str) -> Request {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        Request {
            method,
            path: path.to_owned(),
            query: parse_query(query),
            captures: BTreeMap::new(),
            accept: String::new(),
            body: Bytes::new(),
        }
    }

    #[tokio::test]
    async fn a_path_finds_its_handler() {
        let router = Router::new()
            .get("/peers", |_| async { Response::text("all") })
            .get("/peers/{name}", |r| async move { Response::text(format!("one {}", r.capture("name"))) })
            .post("/leases/{subnet}/drain", |r| async move {
                Response::text(format!("drain {}", r.capture("subnet")))
            })
            .route(Method::DELETE, "/peers/{name}", |_| async { Response::text("gone") });
        let table = [
            (Method::GET, "/peers", 200, "all"),
            (Method::HEAD, "/peers", 200, "all"),
            (Method::GET, "/peers?x=1", 200, "all"),
            (Method::GET, "/peers/ash", 200, "one ash"),
            (Method::GET, "/peers/a%2Fb%20c", 200, "one a/b c"),
            (Method::GET, "/peers/a+b", 200, "one a+b"),
            (Method::DELETE, "/peers/ash", 200, "gone"),
            (Method::POST, "/leases/10.1.2.0-24/drain", 200, "drain 10.1.2.0-24"),
            (Method::POST, "/peers", 405, "`/peers` takes GET, not POST\n"),
            (Method::PUT, "/peers/ash", 405, "`/peers/ash` takes GET and DELETE, not PUT\n"),
            (Method::GET, "/peers/", 200, "one "),
            (Method::GET, "/peers/a/b", 404, "nothing is at `/peers/a/b`\n"),
            (Method::GET, "/peers/%zz", 404, "nothing is at `/peers/%zz`\n"),
            (Method::GET, "/peers/%ff", 404, "nothing is at `/peers/%ff`\n"),
            (Method::GET, "/peers/%f", 404, "nothing is at `/peers/%f`\n"),
            (Method::GET, "/", 404, "nothing is at `/`\n"),
        ];
        for (method, target, status, body) in table {
            let response = router.answer(request(method.clone(), target)).await;
            assert_eq!(
                (response.status.as_u16(), &*response.body),
                (status, body.as_bytes()),
                "{method} {target}"
            );
        }
    }

    #[test]
    fn queries() {
        let pairs = |text: &str| -> Vec<(String, String)> { parse_query(text).into_iter().collect() };
        assert_eq!(
            pairs("a=1&b=x%20y+z&c&&=v"),
            [("", "v"), ("a", "1"), ("b", "x y z"), ("c", "")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
        );
        assert!(request(Method::GET, "/?verbose").flag("verbose"));
        assert!(request(Method::GET, "/?verbose=1").flag("verbose"));
        assert!(!request(Method::GET, "/?verbose=0").flag("verbose"));
        assert!(!request(Method::GET, "/").flag("verbose"));
    }

    #[test]
    fn a_body_that_is_no_json_is_the_callers_mistake() {
        let request = Request { body: "{".into(), ..request(Method::POST, "/") };
        let response = request.json::<BTreeMap<String, u8>>().unwrap_err();
        assert_eq!(response.status, StatusCode::BAD_REQUEST);
    }

    proptest::proptest! {
        #[test]
        fn outside_text_never_panics(text in "[%+&=a-f0-9{}/\\PC]{0,20}") {
            parse_query(&text);
            percent_decoded(&text, false);
            segments(&text).count();
        }
    }
}
