//! The promise: settings are read again while clients stay: the whole file or none of it, each change when its setting
//! says, and what needs a restart is told.

use crate::support::daemon::{Daemon, TemporaryFile, output, pushring};
use crate::support::{recv, recv_close, send};
use serde_json::{Value, json};
use tungstenite::Message;

const ECHO: &str = "/echo:pushring:sys/";

struct Running {
    daemon: Daemon,
    file: TemporaryFile,
    control: String,
}

impl Running {
    fn start(name: &str, settings: &str) -> Self {
        let file = TemporaryFile::new(&format!("reload-{name}.toml"), settings);
        let control = std::env::temp_dir().join(format!("pushring-reload-{name}-{}.sock", std::process::id()));
        let control = control.to_str().unwrap().to_owned();
        let daemon = Daemon::start(&["demo", "--shards", "2", "--config", file.path(), "--control", &control]);
        Self { daemon, file, control }
    }

    fn reload(&self, settings: &str) -> Result<Value, String> {
        std::fs::write(&self.file.0, settings).unwrap();
        let output = output(&mut pushring(&["reload", "--json", "--control", &self.control]));
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }

    /// The last reload, as reported to operators.
    fn last(&self) -> Value {
        let stats = output(&mut pushring(&["stats", "--json", "--control", &self.control])).stdout;
        let stats: Value = serde_json::from_slice(&stats).unwrap();
        stats["reload"].clone()
    }
}

#[test]
fn each_class_of_key_is_obeyed_when_it_says_and_no_client_is_dropped() {
    let running = Running::start("classes", "");
    let mut clients: Vec<_> = (0..100).map(|_| running.daemon.connect(ECHO)).collect();
    let echoes = |clients: &mut Vec<crate::support::Client>| {
        for client in clients {
            send(client, "hello");
            assert_eq!(recv(client), Message::text("hello"));
        }
    };
    echoes(&mut clients);
    assert_eq!(running.last(), Value::Null);
    let changes =
        running.reload("message_bytes_max = \"10B\"\nsubprotocols = [\"chat\"]\nnode = \"other.os\"\n").unwrap();
    assert_eq!(
        changes,
        json!({"now": ["message_bytes_max"], "new_connections": ["subprotocols"], "restart": ["node"]})
    );
    assert_eq!((&running.last()["changes"], &running.last()["failed"]), (&changes, &Value::Null));
    // Now: a message that was small enough is too large. No other client is affected.
    let mut loud = clients.pop().unwrap();
    send(&mut loud, "more than ten bytes");
    assert_eq!(recv_close(&mut loud).0, 1009);
    echoes(&mut clients);
    // For new connections: a subprotocol is agreed on.
    let upgrade = "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
                   Sec-WebSocket-Protocol: chat\r\n";
    let mut stream = running.daemon.stream();
    std::io::Write::write_all(
        &mut stream,
        format!("GET {ECHO} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\n{upgrade}\r\n").as_bytes(),
    )
    .unwrap();
    let mut answer = [0; 512];
    let count = std::io::Read::read(&mut stream, &mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer[..count]).to_lowercase();
    assert!(answer.starts_with("http/1.1 101") && answer.contains("sec-websocket-protocol: chat"), "{answer}");
    // After a restart: it is told again as long as it is so.
    let again =
        running.reload("message_bytes_max = \"10B\"\nsubprotocols = [\"chat\"]\nnode = \"other.os\"\n").unwrap();
    assert_eq!(again, json!({"now": [], "new_connections": [], "restart": ["node"]}));
    echoes(&mut clients);
}

#[test]
fn a_fault_in_the_file_changes_nothing() {
    let running = Running::start("fault", "");
    let mut client = running.daemon.connect(ECHO);
    for wrong in [
        "message_bytes_max = \"2B\"\npolicy = \"drop\"\n",
        "message_bytes_max = \"2B\"\nping_interval = \"48h\"\n",
        "mesage = 1\n",
        // The next start would fail.
        "message_bytes_max = \"2B\"\nlink_tcp = \"localhost:9001\"\nlink_token_file = \"token\"\n",
        "message_bytes_max = \"2B\"\nfleet_nats = [\"nats://127.0.0.1:4222\"]\nfleet_node = \"a node\"\n",
        "message_bytes_max = \"2B\"\nadmin_token_file = \"/no/such/file\"\n",
        "message_bytes_max = \"2B\"\napi_token_file = \"/no/such/file\"\n",
        "message_bytes_max = \"2B\"\nhub = true\nhub_open = true\nhub_webhook_url = \"http://127.0.0.1:1/\"\n\
         hub_webhook_secret_file = \"/no/such/file\"\n",
    ] {
        let why = running.reload(wrong).unwrap_err();
        let keys = ["policy", "ping_interval", "mesage", "link_tcp", "fleet_node", "token_file", "secret_file"];
        assert!(keys.iter().any(|key| why.contains(key)), "{why}");
        let failed = running.last()["failed"].as_str().unwrap().to_owned();
        assert!(why.contains(&failed), "{why} and {failed}");
        send(&mut client, "hello");
        assert_eq!(recv(&mut client), Message::text("hello"));
    }
    // Right as a whole, but not without what only a restart obeys.
    let authority = "auth_jwks_file = \"keys\"\nauth_issuer = \"i\"\nauth_audience = \"a\"\n";
    let why = running.reload(&format!("hub = true\nhub_open = true\n{authority}")).unwrap_err();
    assert!(why.contains("restart") && why.contains("auth_jwks_file, hub"), "{why}");
    running.reload("mesage = 1\n").unwrap_err();
    // A signal does the same, and the log says what came of it.
    running.daemon.signal("HUP");
    send(&mut client, "hello");
    assert_eq!(recv(&mut client), Message::text("hello"));
    drop(client);
    running.daemon.signal("TERM");
    let (code, log) = running.daemon.wait();
    assert!(code == Some(0) && log.contains("the settings are unchanged"), "{log}");
}

/// What only a restart applies is in nobody's way before: neither is there a certificate of an authority yet, nor is
/// one looked for.
#[test]
fn a_host_whose_certificate_is_to_be_obtained_is_one_after_a_restart() {
    let pair = crate::support::tls::make(&["localhost"]);
    let chain = TemporaryFile::new("reload-acme-chain.pem", &pair.chain);
    let key = TemporaryFile::new("reload-acme-key.pem", &pair.key);
    let before = format!("tls_listen = \"127.0.0.1:0\"\ntls_certs = [\"{}:{}\"]\n", chain.path(), key.path());
    let running = Running::start("acme", &before);
    let state = std::env::temp_dir().join(format!("pushring-reload-acme-{}", std::process::id()));
    let after = format!("{before}tls_acme = [\"push.example.com\"]\ntls_acme_state = \"{}\"\n", state.display());
    let changes = running.reload(&after).unwrap();
    assert_eq!(changes, json!({"now": [], "new_connections": [], "restart": ["tls_acme", "tls_acme_state"]}));
    assert!(!state.exists());
    assert_eq!(running.last()["failed"], Value::Null);
}
