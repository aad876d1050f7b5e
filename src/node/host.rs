//! The node's side of the HTTP server: its message type, its terminal prints, and its check of a password.
//!
//! Implemented by the node on a type of its own, so that neither side needs to own the other's types. For nodes whose
//! types are those of Kinode and Hyperdrive, [`node_host`](crate::node_host) writes the implementation.

use super::message::KernelMessage;

/// A node, as the HTTP server needs it. Conversions should move, not copy: blobs may be large.
pub trait Host: Send + Sync + 'static {
    /// The node's KernelMessage.
    type Message: Send + 'static;
    /// A line for the node's terminal.
    type Print: Send + 'static;

    /// A message of the node as ours; none if it is nothing for the HTTP server.
    fn to_ours(&self, message: Self::Message) -> Option<KernelMessage>;

    /// A message of ours as the node's.
    fn to_node(&self, message: KernelMessage) -> Self::Message;

    /// A line for the terminal, printed as the HTTP server's; `verbosity` is the node's own: 0 is always shown, 2 only
    /// to users who ask for the runtime's details.
    fn print(&self, verbosity: u8, text: String) -> Self::Print;

    /// Returns whether `password_hash`, which the login page sent, opens the keyfile. Both are secrets. Called beside
    /// the shards, one at a time, so it may take its time.
    fn is_password(&self, keyfile: &[u8], password_hash: &str) -> bool;
}

/// Defines a type that is the [`Host`] of a Kinode or Hyperdrive node: how its messages and ours become each other, by
/// moves.
///
/// `of` names the module of the node's types: `KernelMessage`, `Message`, `Request`, `Response`, `Address`,
/// `ProcessId`, `LazyLoadBlob` and `Printout`, with the fields that they have in Kinode 0.8 to 1.0 and Hyperdrive 1.9
/// (node contract, section 1). What differs between these is given: `print` makes a `Printout` of a verbosity (`u8`)
/// and a text (`String`), `is_password` says whether a password's hash (`&str`) opens a keyfile (`&[u8]`), as in
/// [`Host::is_password`]. Neither may capture anything. A node with other types implements [`Host`] itself.
///
/// ```ignore
/// use lib::types::core as theirs;
///
/// pushring::node_host! {
///     /// The node, as its HTTP server needs it.
///     pub struct Node of theirs;
///     print: |verbosity, text| theirs::Printout::new(verbosity, theirs::HTTP_SERVER_PROCESS_ID.clone(), text),
///     is_password: |keyfile, hash| crate::keygen::decode_keyfile(keyfile, hash).is_ok(),
/// }
/// ```
#[macro_export]
macro_rules! node_host {
    (
        $(#[$attribute:meta])*
        $visible:vis struct $host:ident of $($types:ident)::+;
        print: $print:expr,
        is_password: $is_password:expr $(,)?
    ) => {
        $(#[$attribute])*
        $visible struct $host;

        const _: () = {
            use $($types)::+ as its;
            use $crate::node as ours;

            impl ours::Host for $host {
                type Message = its::KernelMessage;
                type Print = its::Printout;

                fn to_ours(&self, message: its::KernelMessage) -> ::core::option::Option<ours::KernelMessage> {
                    ::core::option::Option::Some(ours::KernelMessage {
                        id: message.id,
                        source: address_in(message.source)?,
                        target: address_in(message.target)?,
                        rsvp: message.rsvp.and_then(address_in),
                        message: match message.message {
                            its::Message::Request(request) => ours::Message::request(
                                request.inherit,
                                request.expects_response,
                                request.body,
                                request.metadata,
                            ),
                            its::Message::Response((response, context)) => {
                                ours::Message::response(response.inherit, response.body, response.metadata, context)
                            }
                        },
                        lazy_load_blob: message
                            .lazy_load_blob
                            .map(|blob| ours::LazyLoadBlob { mime: blob.mime, bytes: blob.bytes }),
                    })
                }

                fn to_node(&self, message: ours::KernelMessage) -> its::KernelMessage {
                    // The HTTP server gives none.
                    let capabilities = ::std::vec::Vec::new();
                    its::KernelMessage {
                        id: message.id,
                        source: address_out(message.source),
                        target: address_out(message.target),
                        rsvp: message.rsvp.map(address_out),
                        message: match message.message {
                            ours::Message::Request(request) => its::Message::Request(its::Request {
                                inherit: request.inherit,
                                expects_response: request.expects_response,
                                body: request.body,
                                metadata: request.metadata,
                                capabilities,
                            }),
                            ours::Message::Response((response, context)) => its::Message::Response((
                                its::Response {
                                    inherit: response.inherit,
                                    body: response.body,
                                    metadata: response.metadata,
                                    capabilities,
                                },
                                context,
                            )),
                        },
                        lazy_load_blob: message
                            .lazy_load_blob
                            .map(|blob| its::LazyLoadBlob { mime: blob.mime, bytes: blob.bytes }),
                    }
                }

                fn print(&self, verbosity: u8, text: ::std::string::String) -> its::Printout {
                    let print: fn(u8, ::std::string::String) -> its::Printout = $print;
                    print(verbosity, text)
                }

                fn is_password(&self, keyfile: &[u8], password_hash: &str) -> bool {
                    let is_password: fn(&[u8], &str) -> bool = $is_password;
                    is_password(keyfile, password_hash)
                }
            }

            fn address_in(its::Address { node, process }: its::Address) -> ::core::option::Option<ours::Address> {
                ours::Address::of_parts(node, process.process(), process.package(), process.publisher())
            }

            fn address_out(ours::Address { node, process }: ours::Address) -> its::Address {
                let (name, package, publisher) = (process.process(), process.package(), process.publisher());
                its::Address { node, process: its::ProcessId::new(::core::option::Option::Some(name), package, publisher) }
            }
        };
    };
}
