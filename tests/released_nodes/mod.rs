//! The types of released nodes as far as an HTTP server meets them: names, fields, constructors and derives are theirs.
#![allow(dead_code)]

/// The common types of Hyperdrive 1.9 and Kinode 0.8 to 1.0.
macro_rules! core_types {
    ($server:literal) => {
        use std::sync::LazyLock;
        use tokio::sync::mpsc::{Receiver, Sender};

        pub type NodeId = String;
        pub type Context = Vec<u8>;
        pub type Rsvp = Option<Address>;
        pub type MessageSender = Sender<KernelMessage>;
        pub type MessageReceiver = Receiver<KernelMessage>;
        pub type PrintSender = Sender<Printout>;

        pub static HTTP_SERVER_PROCESS_ID: LazyLock<ProcessId> =
            LazyLock::new(|| ProcessId::new(Some($server), "distro", "sys"));

        #[derive(Clone, Debug, Eq, PartialEq, Hash)]
        pub struct ProcessId {
            process_name: String,
            package_name: String,
            publisher_node: NodeId,
        }

        impl ProcessId {
            pub fn new(process_name: Option<&str>, package_name: &str, publisher_node: &str) -> Self {
                Self {
                    process_name: process_name.unwrap_or("a number drawn at random").to_string(),
                    package_name: package_name.to_string(),
                    publisher_node: publisher_node.to_string(),
                }
            }

            pub fn process(&self) -> &str {
                &self.process_name
            }

            pub fn package(&self) -> &str {
                &self.package_name
            }

            pub fn publisher(&self) -> &str {
                &self.publisher_node
            }
        }

        #[derive(Clone, Debug, Hash, Eq, PartialEq)]
        pub struct Address {
            pub node: NodeId,
            pub process: ProcessId,
        }

        #[derive(Clone, Debug)]
        pub struct KernelMessage {
            pub id: u64,
            pub source: Address,
            pub target: Address,
            pub rsvp: Rsvp,
            pub message: Message,
            pub lazy_load_blob: Option<LazyLoadBlob>,
        }

        #[derive(Clone, Debug)]
        pub enum Message {
            Request(Request),
            Response((Response, Option<Context>)),
        }

        #[derive(Clone, Debug)]
        pub struct Request {
            pub inherit: bool,
            pub expects_response: Option<u64>,
            pub body: Vec<u8>,
            pub metadata: Option<String>,
            pub capabilities: Vec<(Capability, Vec<u8>)>,
        }

        #[derive(Clone, Debug)]
        pub struct Response {
            pub inherit: bool,
            pub body: Vec<u8>,
            pub metadata: Option<String>,
            pub capabilities: Vec<(Capability, Vec<u8>)>,
        }

        #[derive(Clone, Debug)]
        pub struct Capability {
            pub issuer: Address,
            pub params: String,
        }

        #[derive(Clone, Debug)]
        pub struct LazyLoadBlob {
            pub mime: Option<String>,
            pub bytes: Vec<u8>,
        }
    };
}

/// Hyperdrive 1.9; Kinode 0.10 to 1.0 has the same.
pub mod hyperdrive {
    pub mod types {
        pub mod core {
            core_types!("http-server");

            pub struct Printout {
                pub verbosity: u8,
                pub source: ProcessId,
                pub content: String,
            }

            impl Printout {
                pub fn new<T: Into<ProcessId>, U: Into<String>>(verbosity: u8, source: T, content: U) -> Self {
                    Self { verbosity, source: source.into(), content: content.into() }
                }
            }
        }
    }
}

/// Kinode 0.8 and 0.9.
pub mod kinode {
    pub mod types {
        pub mod core {
            core_types!("http_server");

            pub struct Printout {
                pub verbosity: u8,
                pub content: String,
            }

            // 0.8.0 and 0.8.1 have no constructor.
        }
    }
}

/// The decrypted contents of a node's keyfile.
pub struct Keyfile {
    pub username: String,
    pub routers: Vec<String>,
    pub jwt_secret_bytes: Vec<u8>,
    pub file_key: Vec<u8>,
}

/// The same of all: here a keyfile is the hash of its password.
pub fn decode_keyfile(keyfile: &[u8], password_hash: &str) -> Result<Keyfile, &'static str> {
    if keyfile != password_hash.as_bytes() {
        return Err("failed to decrypt keyfile");
    }
    Ok(Keyfile {
        username: "fake.os".to_owned(),
        routers: Vec::new(),
        jwt_secret_bytes: b"secret".to_vec(),
        file_key: Vec::new(),
    })
}
