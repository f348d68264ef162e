//! A real browser on the admin page, told what to do over the DevTools protocol. Single answers of the API can be replaced
//! within it, so that a state of the world that is hard to bring about is on the page at once.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::process::TOKEN;
use super::{client, wait};

/// Counts what the page asks for, notes how long it would wait, and answers what a test has set.
const BETWEEN: &str = r#"
if (location.protocol === "http:") {
  sessionStorage.setItem("token", TOKEN);
  window.asked = {};
  window.patience = {};
  const [fetched, timeout] = [window.fetch, AbortSignal.timeout];
  let waits = 0;
  AbortSignal.timeout = (ms) => { waits = ms; return timeout.call(AbortSignal, ms); };
  window.fetch = (path, options = {}) => {
    const call = `${options.method ?? "GET"} ${path}`;
    asked[call] = (asked[call] ?? 0) + 1;
    patience[call] = waits;
    const answer = answers[call];
    if (!answer) return fetched(path, options);
    if (answer.status === 0) return Promise.reject(new TypeError("no connection"));
    return Promise.resolve(new Response(JSON.stringify(answer.body), { status: answer.status, headers: { "Content-Type": "application/json" } }));
  };
}
"#;

pub(crate) struct Browser {
    child: Child,
    page: WebSocketStream<TcpStream>,
    calls: u64,
    _profile: TempDir,
}

fn program() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|program| program.exists())
}

impl Browser {
    /// The page of the admin listener at `admin`, signed in, with `answers` (call to status and body) in the place of the
    /// API's. `None`: this machine has no browser, and the test is left out (`make deps` says so).
    pub(crate) async fn open(admin: SocketAddr, tab: &str, answers: &Value) -> Option<Self> {
        let Some(program) = program() else {
            eprintln!("LEFT OUT: there is no chromium here to look at the page with");
            return None;
        };
        let profile = tempfile::tempdir().expect("a private folder");
        let child = Command::new(program)
            .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"])
            // It looks for nobody outside: a closed network makes it wait.
            .args([
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-quic",
            ])
            .arg("--disable-dev-shm-usage")
            .args(["--remote-debugging-port=0", "--window-size=1200,1000"])
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .arg("about:blank")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the browser starts");
        let page = connect(profile.path()).await;
        let mut browser = Self {
            child,
            page,
            calls: 0,
            _profile: profile,
        };
        browser.call("Page.enable", json!({})).await;
        let script = format!("const TOKEN = {TOKEN:?}; window.answers = {answers};{BETWEEN}");
        let script = json!({"source": script});
        browser.call("Page.addScriptToEvaluateOnNewDocument", script).await;
        let url = format!("http://{admin}/#{tab}");
        browser.call("Page.navigate", json!({"url": url})).await;
        Some(browser)
    }

    async fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let order = json!({"id": id, "method": method, "params": params}).to_string();
        self.page.send(Message::text(order)).await.expect("the browser reads");
        let answer = wait::within(method, async {
            loop {
                let message = self.page.next().await.expect("the browser runs").expect("a message");
                let heard: Value = serde_json::from_str(message.to_text().unwrap_or_default()).unwrap_or_default();
                if heard["id"] == id {
                    return heard;
                }
            }
        });
        let answer = answer.await;
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    /// The value of an expression, evaluated in the page.
    pub(crate) async fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "returnByValue": true, "awaitPromise": true});
        let done = self.call("Runtime.evaluate", params).await;
        assert!(done.get("exceptionDetails").is_none(), "{expression}: {done}");
        done["result"]["value"].clone()
    }

    /// What a person reads in this element; nothing if it is not shown.
    pub(crate) async fn text(&mut self, id: &str) -> String {
        let shown = format!(
            "(() => {{ const e = document.getElementById({id:?}); return e?.checkVisibility() ? e.innerText : ''; }})()"
        );
        self.value(&shown).await.as_str().unwrap_or_default().to_owned()
    }

    /// Waits until the element reads so; returns all of its text.
    pub(crate) async fn reads(&mut self, id: &str, part: &str) -> String {
        let mut last = String::new();
        let deadline = std::time::Instant::now() + wait::DEADLINE;
        while std::time::Instant::now() < deadline {
            last = self.text(id).await;
            if last.contains(part) {
                return last;
            }
            tokio::time::sleep(wait::POLL).await;
        }
        panic!("#{id} does not read {part:?} but {last:?}");
    }

    pub(crate) async fn click(&mut self, selector: &str) {
        self.value(&format!("document.querySelector({selector:?}).click()"))
            .await;
    }

    /// From now on the page gets this answer; status 0: the connection breaks. `None`: the real one.
    pub(crate) async fn answer(&mut self, call: &str, answer: Option<(u16, Value)>) {
        let answer = answer.map_or(Value::Null, |(status, body)| json!({"status": status, "body": body}));
        self.value(&format!("answers[{call:?}] = {answer}; 0")).await;
    }

    /// Waits until the page has refreshed itself twice more: the last one began after this was called.
    pub(crate) async fn next_refresh(&mut self) {
        let count = "asked['GET /health/comprehensive']";
        let before = self.value(count).await.as_u64().unwrap_or(0);
        wait::until("the page to refresh itself", async || {
            (self.value(count).await.as_u64() >= Some(before + 2)).then_some(())
        })
        .await;
    }

    /// With `PAGE_PICTURES=folder` a picture of the page goes there, to be looked at.
    pub(crate) async fn picture(&mut self, name: &str) {
        let Some(folder) = std::env::var_os("PAGE_PICTURES") else {
            return;
        };
        let params = json!({"format": "png", "captureBeyondViewport": true});
        let done = self.call("Page.captureScreenshot", params).await;
        let png = base64::Engine::decode(
            &base64::prelude::BASE64_STANDARD,
            done["data"].as_str().unwrap_or_default(),
        );
        std::fs::write(
            PathBuf::from(folder).join(format!("{name}.png")),
            png.expect("a picture"),
        )
        .expect("the picture is written");
    }
}

/// The protocol's socket of the one page. The browser writes where it listens into its profile.
async fn connect(profile: &Path) -> WebSocketStream<TcpStream> {
    let address: SocketAddr = wait::until("the browser's port", async || {
        let text = std::fs::read_to_string(profile.join("DevToolsActivePort")).ok()?;
        let port: u16 = text.lines().next()?.parse().ok()?;
        Some(([127, 0, 0, 1], port).into())
    })
    .await;
    let url = wait::until("the browser's page", async || {
        let listed = client::get(address, "/json/list", "").await.json();
        let page = listed
            .as_array()?
            .iter()
            .find(|target| target["type"] == "page")?
            .clone();
        page["webSocketDebuggerUrl"].as_str().map(str::to_owned)
    })
    .await;
    let stream = TcpStream::connect(address).await.expect("the browser listens");
    let (page, _) = tokio_tungstenite::client_async(url, stream)
        .await
        .expect("the browser talks");
    page
}

impl Drop for Browser {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}
