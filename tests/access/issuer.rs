//! Owns an issuer of credentials for tests: tokens as `texto token` makes them, and such as nobody should.

#![allow(dead_code)] // Each test uses what it needs.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures_util::SinkExt;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey};
use serde_json::{Value, json};
use tempfile::TempDir;
use texto_lab::client::{self, Socket};
use texto_lab::gateway::Gateway;
use texto_lab::issuer::KeyPair;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use uuid::Uuid;

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_texto");

pub(crate) struct Issuer {
    pub(crate) folder: TempDir,
}

impl Issuer {
    pub(crate) fn new() -> Self {
        Self { folder: TempDir::new().unwrap() }
    }

    /// A secret, as a file.
    pub(crate) fn secret(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, format!("{}\n", name.repeat(64))).unwrap();
        path
    }

    pub(crate) fn pair(&self, kind: &str, name: &str) -> KeyPair {
        KeyPair::new(self.folder.path(), name, kind).unwrap()
    }
}

pub(crate) async fn gateway(arguments: &[&str]) -> Gateway {
    Gateway::start(Path::new(BINARY), arguments, &[]).await.unwrap()
}

/// What `texto token` prints.
pub(crate) fn token(key: &Path, flags: &[&str]) -> String {
    let output = Command::new(BINARY).args(["token", "--key-file"]).arg(key).args(flags).output().unwrap();
    assert!(output.status.success(), "{flags:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// A token that says just this, signed by whatever is given.
pub(crate) fn craft(header: &Value, claims: &Value, key: &EncodingKey, algorithm: Algorithm) -> String {
    let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let message = format!("{}.{}", encode(header), encode(claims));
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

/// A JWKS of public keys, each with its name.
pub(crate) fn jwks(keys: &[(&str, &KeyPair)]) -> String {
    let jwk = |(kid, pair): &(&str, &KeyPair)| {
        let pem = std::fs::read(&pair.public).unwrap();
        let key = DecodingKey::from_ec_pem(&pem).or_else(|_| DecodingKey::from_ed_pem(&pem));
        let key = key.or_else(|_| DecodingKey::from_rsa_pem(&pem)).unwrap();
        let mut jwk = serde_json::to_value(Jwk::from_decoding_key(&key, None).unwrap()).unwrap();
        jwk["kid"] = json!(kid);
        jwk
    };
    json!({ "keys": keys.iter().map(jwk).collect::<Vec<_>>() }).to_string()
}

/// What a connection that began with a registration was answered with.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) socket: Socket,
    pub(crate) frame: Value,
}

impl Answered {
    pub(crate) fn id(&self) -> Uuid {
        let id = self.frame["data"]["client_id"].as_str();
        id.unwrap_or_else(|| panic!("{}", self.frame)).parse().unwrap()
    }

    pub(crate) fn resume_token(&self) -> String {
        self.frame["data"]["resume"]["token"].as_str().unwrap_or_else(|| panic!("{}", self.frame)).to_owned()
    }

    /// Registers once more, on the same connection, and gives the answer; messages before it are passed over.
    pub(crate) async fn again(&mut self, data: Value) -> Value {
        let id = Uuid::new_v4().to_string();
        write(&mut self.socket, &json!({ "id": id, "kind": "registration", "data": data })).await;
        loop {
            let frame = next(&mut self.socket).await;
            if frame["id"] == *id {
                return frame;
            }
        }
    }
}

pub(crate) async fn write(socket: &mut Socket, frame: &Value) {
    socket.send(Message::text(frame.to_string())).await.unwrap();
}

pub(crate) async fn next(socket: &mut Socket) -> Value {
    texto_lab::resumer::next(socket).await.unwrap()
}

pub(crate) async fn closed(socket: &mut Socket) -> u16 {
    texto_lab::resumer::closed(socket).await.unwrap()
}

pub(crate) async fn register(address: SocketAddr, data: Value) -> Answered {
    let mut socket = client::open(address, "/v1/texto?register=1").await.unwrap();
    write(&mut socket, &json!({ "id": Uuid::new_v4(), "kind": "registration", "data": data })).await;
    let frame = next(&mut socket).await;
    Answered { socket, frame }
}

/// The same, which is refused: the description, and the close code.
pub(crate) async fn refused(address: SocketAddr, data: Value) -> (String, u16) {
    let mut answered = register(address, data).await;
    let frame = &answered.frame;
    assert_eq!((frame["kind"].as_str(), frame["data"]["code"].as_str()), (Some("error"), Some("EAUTH")), "{frame}");
    (frame["data"]["description"].as_str().unwrap().to_owned(), closed(&mut answered.socket).await)
}

/// A handshake with further headers: the socket, or the status and what came with it.
pub(crate) async fn open(
    address: SocketAddr,
    path: &str,
    headers: &[(&'static str, &str)],
) -> Result<Socket, http::Response<Option<Vec<u8>>>> {
    let mut request = format!("ws://{address}{path}").into_client_request().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => Err(*response),
        Err(error) => panic!("{error}"),
    }
}

/// A v1 connection with credentials in its handshake, and its greeting.
pub(crate) async fn bearer(address: SocketAddr, token: &str) -> Answered {
    let authorization = format!("Bearer {token}");
    let mut socket = open(address, "/v1/texto", &[("Authorization", &authorization)]).await.unwrap();
    let frame = next(&mut socket).await;
    assert_eq!(frame["kind"], "connection", "{frame}");
    Answered { socket, frame }
}

pub(crate) fn body(response: &http::Response<Option<Vec<u8>>>) -> String {
    String::from_utf8(response.body().clone().unwrap_or_default()).unwrap()
}

/// Sends a text, and gives the kind of the answer, or the code of an error.
pub(crate) async fn send(socket: &mut Socket, from: Uuid, to: Uuid, text: &str) -> String {
    let request = Uuid::new_v4();
    let frame = client::send_frame(from, request, to, text);
    socket.send(Message::text(frame)).await.unwrap();
    loop {
        let frame = next(socket).await;
        if frame["id"] == request.to_string() {
            let code = frame["data"]["code"].as_str().or(frame["kind"].as_str());
            return code.unwrap().to_owned();
        }
    }
}
